"""The place of an activation that transformers does not have, until flexact is put there."""

from __future__ import annotations

from typing import Any

from torch import nn

from flexact.errors import Unsupported


class UnboundActivation(nn.Module):
    """Lets a model be constructed; raises when it is asked to compute.

    Args:
        name: The activation's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *inputs: Any) -> Any:
        """Raises: nothing here computes the function."""
        raise Unsupported(
            f"transformers has no activation {self.name!r}",
            "",
            'choose experts_implementation="flexact" and call flexact.transformers.convert(model)',
        )

    def extra_repr(self) -> str:
        """What print() shows between the parentheses."""
        return self.name
