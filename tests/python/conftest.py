"""Tests import the helper modules that stand beside them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import line_counting

# The machine's cores are for the kernels under test; torch's own threads would only contend.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def uncounted_processes() -> Iterator[None]:
    """Processes that tests start count no lines unless they are asked to: line_counting.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(line_counting.NAME, raising=False)
        yield
