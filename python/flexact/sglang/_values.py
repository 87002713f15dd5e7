"""Parameter values of one layer, and the reference that its proof compares with."""

from __future__ import annotations

from typing import Any


def _reader() -> Any:
    """Reads checkpoint tensors of the model that is being loaded."""
    from flexact.sglang import _checkpoint, _model

    return _checkpoint.Checkpoint(_model.loading().plan.folder).read


def rows(activation: Any, layer: int, experts: tuple[int, int]) -> list[list[float]]:
    """The parameter table [1 or experts, P] of `layer`."""
    return activation.values(layer, experts, _reader())


def table(entry: Any, layer: int, *, experts: tuple[int, int], experts_here: int) -> Any:
    """The fp32 table [1 or E, P] for the experts of this rank.

    Args:
        entry: The resolved activation.
        layer: Absolute layer number.
        experts: Global numbers of the routed experts on this rank.
        experts_here: Rows of the weight tensors, fused shared experts included.
    """
    from flexact import moe
    from flexact.sglang._stop import stop

    values = moe.activation_values(entry.activation, layer=layer, experts=experts, tensors=_reader())
    if values.shape[0] not in (1, experts_here):
        stop(
            f"layer {layer}: per-expert values for {values.shape[0]} routed experts, and SGLang fuses"
            f" {experts_here - values.shape[0]} shared experts into the layer; pass"
            " --disable-shared-experts-fusion"
        )
    return values


def constant(entry: Any, layer: int, *, expert: int = 0) -> Any:
    """The activation of `layer` (and of one expert) with plain numbers for values."""
    import flexact

    function = entry.activation.function
    names = (parameter.name for parameter in function.parameters)
    return flexact.Activation(
        function, dict(zip(names, rows(entry.activation, layer, (expert, expert + 1))[0], strict=True))
    )


def same(activation: Any, entry: Any, layer: int) -> bool:
    """Whether `activation` is the function of `entry` with the same values in this layer."""
    if activation.function.canonical != entry.activation.function.canonical:
        return False
    if not entry.activation.function.parameters:
        return True
    try:
        mine = rows(activation, layer, (0, 1))
        theirs = rows(entry.activation, layer, (0, 1))
    except Exception:  # a learned or per-expert value is never a constant of SGLang's
        return False
    return mine == theirs


def reference(entry: Any, layer: int, h: Any, pairing: str, *, expert: int = 0) -> Any:
    """The activation of `h` in float64.

    Args:
        entry: The resolved activation.
        layer: Absolute layer number.
        h: [..., 2I] float64 by `pairing` ("none": [..., I]).
        pairing: How gate and up lie in the last dimension.
        expert: Global expert number, for per-expert values.

    Returns:
        [..., I] float64.
    """
    values = rows(entry.activation, layer, (expert, expert + 1))[0]
    named = dict(zip((p.name for p in entry.activation.function.parameters), values, strict=True))
    if pairing == "none":
        return entry.activation(h, parameters=named)
    if pairing == "interleaved":
        return entry.activation(h[..., 0::2], h[..., 1::2], parameters=named)
    gate, up = h.chunk(2, dim=-1)
    return entry.activation(gate, up, parameters=named)
