"""How often a layer ran: counted on the host, and on a GPU by the device, where replays of graphs count too.

Python does not run when a CUDA graph is replayed, so a layer adds one to a number in device memory, a
kernel of its own that every captured graph holds. It is read back when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Count:
    """The executions of one layer."""

    def __init__(self) -> None:
        self._host = 0
        self._device: Any = None  # int64 [1]; storage of its own, as tracing wants of what is changed
        self._read = 0

    def bump(self) -> None:
        """Counts one execution, on the current stream of a GPU."""
        if self._device is None:
            self._host += 1
        else:
            self._device.add_(1)

    def start(self, device: Any) -> None:
        """Begins at zero, on a GPU's `device` or on the host."""
        import torch

        self._host = self._read = 0
        if device is not None and device.type != "cpu":
            self._device = torch.zeros(1, dtype=torch.int64, device=device)

    @property
    def total(self) -> int:
        """Executions, on a GPU as of the last `read`."""
        return self._host if self._device is None else self._read


def read(counts: Iterable[Count]) -> None:
    """Fetches the numbers of all counters that are on a device: one copy, one wait."""
    import torch

    on_device = [count for count in counts if count._device is not None]
    if on_device:
        for count, total in zip(on_device, torch.cat([c._device for c in on_device]).tolist(), strict=True):
            count._read = total
