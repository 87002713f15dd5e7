"""One copy of an expert layer's weights: in the module's parameters, or packed for the kernel.

While they are packed, the parameters hold nothing. Whoever asks the module for one, to save, move,
update or look at it, gets the weights back, bit for bit, before the answer: every way to a module's
parameters goes through its `_parameters`, and while weights are packed that is the dictionary below.
The next step packs them again.

Where something else already holds the tensors (an optimizer, a view of them), they stay where they
are, and the plan cache notices their updates; such a layer has two copies while it is held.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from flexact.moe import Plan


class WeightStore:
    """Who has the weights of one module.

    Attributes:
        plan: The packed weights; None while the parameters have them.
        restored: How often they were given back.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        """Makes a store for the parameters `names`; others are small and stay where they are."""
        self.plan: Plan | None = None
        self.restored = 0
        self._names = names
        self._key: Any = None
        self._original: Callable[[Plan], dict[str, torch.Tensor]] | None = None
        self._lock = threading.RLock()

    def packed(
        self,
        module: nn.Module,
        key: Any,
        make: Callable[[], Plan],
        original: Callable[[Plan], dict[str, torch.Tensor]],
    ) -> Plan | None:
        """The plan of `module`'s weights, made where needed; None where someone else holds them.

        Args:
            module: The experts.
            key: What the plan depends on besides the weights.
            make: Packs the weights that the module's parameters hold.
            original: The parameters that a plan has packed, by name, as they were.
        """
        if self.plan is not None and self._key == key:
            return self.plan
        # Tensors made in inference mode could never be trained again.
        with self._lock, torch.inference_mode(False):
            self.restore(module)
            parameters = module.__dict__["_parameters"]
            if any(_is_held(parameters, name) for name in parameters):
                return None
            self.plan, self._key, self._original = make(), key, original
            for name in self._names:
                # The shape stays, the memory goes; what nobody is to read is NaN.
                parameter = parameters[name]
                parameter.data = torch.full((1,), torch.nan, dtype=parameter.dtype).expand(parameter.shape)
            module.__dict__["_parameters"] = _Packed(parameters, self, module)
            return self.plan

    def restore(self, module: nn.Module) -> None:
        """Gives the weights back to the module's parameters."""
        with self._lock, torch.inference_mode(False):
            plan, self.plan = self.plan, None
            if plan is None:
                return
            self.restored += 1
            parameters = dict(dict.items(module.__dict__["_parameters"]))
            for name, tensor in self._original(plan).items():
                parameters[name].data = tensor
            module.__dict__["_parameters"] = parameters

    def __deepcopy__(self, memo: Any) -> WeightStore:
        return WeightStore(self._names)

    def __reduce__(self) -> Any:
        return WeightStore, (self._names,)


def _counts(parameters: dict[str, Any], name: str) -> tuple[int, int]:
    """References to a parameter, and tensors that share its memory."""
    parameter = parameters[name]
    sharing = getattr(torch._C, "_storage_Use_Count", None)
    return sys.getrefcount(parameter), sharing(parameter.untyped_storage()._cdata) if sharing else 0


_ALONE = _counts({"alone": nn.Parameter(torch.zeros(1))}, "alone")


def _is_held(parameters: dict[str, Any], name: str) -> bool:
    """Whether anything but the module has the tensor, so that its memory cannot be let go."""
    if parameters[name] is None:
        return False
    references, sharing = _counts(parameters, name)
    return references > _ALONE[0] or sharing > _ALONE[1]


class _Packed(dict):
    """The parameters of a module whose weights are packed; reading any of them restores all."""

    def __init__(self, parameters: dict[str, Any], store: WeightStore, module: nn.Module) -> None:
        super().__init__(parameters)
        self._store, self._module = store, module

    def _plain(self) -> dict[str, Any]:
        self._store.restore(self._module)
        return self._module.__dict__["_parameters"]

    def __getitem__(self, name: str) -> Any:
        return self._plain()[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._plain()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._plain()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plain())

    def get(self, name: str, default: Any = None) -> Any:
        return self._plain().get(name, default)

    def pop(self, *arguments: Any) -> Any:
        return self._plain().pop(*arguments)

    def items(self) -> Any:
        return self._plain().items()

    def values(self) -> Any:
        return self._plain().values()

    def copy(self) -> dict[str, Any]:
        return self._plain().copy()

    def __deepcopy__(self, memo: Any) -> dict[str, Any]:
        import copy

        return copy.deepcopy(self._plain(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self._plain(),)
