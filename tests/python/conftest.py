"""Tests import the helper modules that stand beside them."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

# The machine's cores are for the kernels under test; torch's own threads would only contend.
torch.set_num_threads(1)
