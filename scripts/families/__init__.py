"""Derives what every text model family computes in its MLPs and experts by running the packages."""

import os
import warnings

# Before transformers is imported: ask nothing of a network and say little.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")
