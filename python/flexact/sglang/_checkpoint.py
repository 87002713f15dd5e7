"""Parameter values that a checkpoint holds; what cannot be read safely ends the process."""

from __future__ import annotations

import flexact.checkpoint
from flexact.errors import Error
from flexact.sglang._stop import stop


class Checkpoint(flexact.checkpoint.Checkpoint):
    """The safetensors files of one folder."""

    def read(self, name: str) -> list[float]:
        """The values of tensor `name`, or an end with the reason."""
        try:
            return super().read(name)
        except Error as error:
            stop(str(error))
