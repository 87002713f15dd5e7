"""These tests need a GPU; `make test-gpu` runs them."""

import sys
from pathlib import Path

import pytest
import torch
from flexact import _core

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))


# What these tests are to prove is refused elsewhere until it is.
_core.allow_untried(True)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no GPU"))
