"""Plans by the weight tensors that they were made from.

A cached plan is only right while the weights are those it packed. Three things end that, and each is
noticed at the next call: an in-place update (torch's version counter; a sample of the elements, since
writes through `.data` and updates of inference tensors leave the counter alone), memory that was
freed and given to another tensor (a weak reference to the storage), and another view of the same
memory (address, shape and strides are in the key). `clear()` is for what no counter and no sample
can see. On a GPU no element is sampled: plans read the weights where they are, and of a bias that was written
past torch's counter `clear()` must be told.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from flexact._core import ContentSample

if TYPE_CHECKING:
    from flexact.device_plan import DevicePlan
    from flexact.moe import Plan


@dataclass
class _Entry:
    plan: Plan | DevicePlan
    storages: list[StorageWeakRef]
    versions: tuple[int, ...]
    sample: ContentSample

    def alive(self) -> bool:
        return not any(storage.expired() for storage in self.storages)

    def current(self, versions: tuple[int, ...]) -> bool:
        return self.versions == versions and self.sample.unchanged()


def _version(tensor: torch.Tensor) -> int:
    # Inference tensors have no counter; the sample of their elements has to do.
    return -1 if tensor.is_inference() else tensor._version


class PlanCache:
    """A bounded cache, least recently used out first; safe for concurrent use.

    Attributes:
        max_entries: The most plans that are kept.
    """

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forgets every plan."""
        with self._lock:
            self._entries.clear()

    def get(
        self,
        settings: Hashable,
        tensors: Mapping[str, torch.Tensor],
        make: Callable[[], Plan | DevicePlan],
    ) -> Plan | DevicePlan:
        """The plan for these weights: the cached one while they are unchanged, else a new one.

        Args:
            settings: What else the plan depends on.
            tensors: The weights by name.
            make: Makes the plan from the weights as they are now.
        """
        storages = [tensor.untyped_storage() for tensor in tensors.values()]
        key = (settings, *map(_identity, tensors, tensors.values(), storages))
        versions = tuple(map(_version, tensors.values()))
        with self._lock:
            entry = self._entries.get(key)
            # The weak references keep a freed storage's identity from being given to another one, so an
            # equal key is the very same memory.
            if entry is not None and entry.current(versions):
                self._entries.move_to_end(key)
                return entry.plan
            # The old packed copy goes before the new one is made, so that both never exist at once.
            self._entries.pop(key, None)
            for stale in [each for each, old in self._entries.items() if not old.alive()]:
                del self._entries[stale]
            del entry
            plan = make()
            sample = ContentSample(
                [
                    (tensor.data_ptr(), tensor.element_size(), tuple(tensor.shape), tensor.stride())
                    for tensor in tensors.values()
                    if tensor.device.type == "cpu"
                ]
            )
            self._entries[key] = _Entry(plan, list(map(StorageWeakRef, storages)), versions, sample)
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)
            return plan


def _identity(name: str, tensor: torch.Tensor, storage: torch.UntypedStorage) -> Hashable:
    return name, storage._cdata, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
