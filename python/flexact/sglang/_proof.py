"""The proof of an expert layer: two tokens and at most three experts against the checkpoint's weights.

Enough to see another function, another layout, other parameter values, a scale from the wrong place or
an empty output, at the price of a few matrix-vector products where the weights are. Weights are brought to
fp32 a few thousand rows at a time, so that a layer in a full memory can be proven too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flexact import formats

_ROWS = 4096
_E2M1_GROUP = {"mxfp4": 32, "nvfp4": 16}


@dataclass(frozen=True)
class Subject:
    """What is proven.

    Attributes:
        weights: Tensors by `moe.plan`'s names, in the checkpoint's layout.
        format: flexact's name of their format.
        pairing: How gate and up lie in w13.
        dtype: Of the hidden states.
        weight_on_input: Whether the router's weight multiplies the input.
    """

    weights: dict[str, Any]
    format: str
    pairing: str
    dtype: Any
    weight_on_input: bool


def inputs(subject: Subject, *, width: int, seed: int) -> tuple[Any, Any, Any]:
    """Two random tokens for the first, the middle and the last expert: x [2, H], weights and ids [2, ≤ 2]."""
    import torch

    w13, w2 = subject.weights["w13"], subject.weights["w2"]
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(2, w2.shape[1], generator=generator, dtype=torch.float32, device="cpu")
    last = w13.shape[0] - 1
    ids = torch.tensor([[0, last], [last, (last + 1) // 2 if last > 1 else 0]], device="cpu")
    ids = ids[:, : min(2, width, last + 1)]
    weights = torch.rand(ids.shape, generator=generator, dtype=torch.float32, device="cpu") + 0.5
    return x.to(w13.device, subject.dtype), weights.to(w13.device), ids.to(w13.device)


def reference(subject: Subject, activate: Any, x: Any, weights: Any, ids: Any) -> Any:
    """The block's result in float64, with the quantisation of activations that the format prescribes.

    Args:
        subject: The layer.
        activate: (h [2I] or [I] in float64, expert) → [I].
        x: [M, H].
        weights: [M, k] float32.
        ids: [M, k].
    """
    import torch

    given = subject.weights
    pairs = [(t, s, int(ids[t, s])) for t, s in (ids >= 0).nonzero().tolist()]
    x = _quantised(x, subject, given.get("a13_scale"))
    activated = []
    for token, slot, expert in pairs:
        h = _product(subject, "w13", expert, x[token])
        if subject.weight_on_input:
            h = h * weights[token, slot].double()
        if "w13_bias" in given:
            h = h + given["w13_bias"][expert].double()
        activated.append(activate(h, expert))
    inner = torch.stack(activated)
    if subject.format in ("fp8_channel", "fp8_tensor") and "a2_scale" not in given:
        inner = inner.to(subject.dtype)
    inner = _quantised(inner, subject, given.get("a2_scale"))
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for (token, slot, expert), h in zip(pairs, inner, strict=True):
        y = _product(subject, "w2", expert, h)
        if "w2_bias" in given:
            y = y + given["w2_bias"][expert].double()
        out[token] += y if subject.weight_on_input else y * weights[token, slot].double()
    return out


def _quantised(x: Any, subject: Subject, scale: Any) -> Any:
    """`x` in fp32 after the format's quantisation of activations, where it has one."""
    import torch

    if subject.format not in formats.FP8_FORMATS:
        return x.float()
    codes = formats.quantise_activations(
        x.float(), subject.format, scale=scale if subject.format == "fp8_tensor" else None
    )
    return formats.dequantise_activations(*codes, dtype=torch.float32)


def _product(subject: Subject, name: str, expert: int, x: Any) -> Any:
    """The expert's matrix times x, [N] in float64 of fp32 sums."""
    import torch

    rows = subject.weights[name].shape[1]
    parts = [
        _matrix(subject, name, expert, first, min(first + _ROWS, rows)) @ x for first in range(0, rows, _ROWS)
    ]
    return torch.cat(parts).double()


def _matrix(subject: Subject, name: str, expert: int, first: int, end: int) -> Any:
    """Rows [first, end) of an expert's w13 or w2 in fp32."""
    import torch

    given, format = subject.weights, subject.format
    codes = given[name][expert, first:end]
    pairing = subject.pairing if name == "w13" else "none"
    half = given[name].shape[1] // 2
    row = torch.arange(first, end, device=codes.device)
    if pairing in ("concat", "up_first"):
        up = (row >= half) if pairing == "concat" else (row < half)
    else:
        up = row % 2 == 1 if pairing == "interleaved" else row < 0

    def of_half(numbers: Any) -> Any:
        """One number an expert, or two: gate's and up's; [rows, 1]."""
        return (numbers[expert][up.long()] if numbers.dim() == 2 else numbers[expert].expand(end - first))[
            :, None
        ]

    if format in _E2M1_GROUP:
        values = formats.decode_e2m1(formats.unpack_e2m1(codes)).unflatten(-1, (-1, _E2M1_GROUP[format]))
        scale = given[f"{name}_scale"][expert, first:end]
        step = formats.decode_e8m0(scale) if format == "mxfp4" else scale.float()
        values = (values * step[..., None]).flatten(-2)
        return values * of_half(given[f"{name}_global_scale"]) if format == "nvfp4" else values
    values = codes.float()
    if format == "fp8_block":
        # Gate and up are cut into blocks each for itself.
        block = row // 128
        if pairing in ("concat", "up_first"):
            block = row // half * (-(-half // 128)) + row % half // 128
        scale = given[f"{name}_scale"][expert][block]
        return values * scale.repeat_interleave(128, -1)[:, : values.shape[1]]
    if format == "fp8_channel":
        return values * given[f"{name}_scale"][expert, first:end].reshape(-1, 1)
    if format == "fp8_tensor":
        return values * of_half(given[f"{name}_scale"])
    return values
