"""Weights that flexact holds packed can be neither replaced nor read in place: say so instead.

SGLang's updates write into, and its exports read from, the parameters of a layer as its own processing
leaves them. On a CPU those parameters are placeholders after packing, on a GPU they were not processed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flexact.sglang._experts import packed_layers

logger = logging.getLogger("flexact")


def _reason(operation: str, model: Any) -> str | None:
    packed = packed_layers(model)
    if not packed:
        return None
    return (
        f"flexact: {operation} is not supported: {len(packed)} expert layers ({packed[0].name}, …) hold"
        " their weights packed, or as loaded without SGLang's processing. Restart the server with the new"
        " weights."
    )


def refuse_update(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the weight updater's methods, which return (success, message)."""
    reason = _reason(original.__name__, self.get_model())
    return (False, reason) if reason else original(self, *args, **kwargs)


def refuse_read(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `get_weights_by_name`, whose failures are a log line and None."""
    if reason := _reason(original.__name__, self.get_model()):
        logger.error(reason)
        return None
    return original(self, *args, **kwargs)


def refuse_save(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around the exporter's methods that write files: they run under SGLang's RPC, which reports errors."""
    if reason := _reason(original.__name__, self.get_model()):
        raise NotImplementedError(reason)
    return original(self, *args, **kwargs)
