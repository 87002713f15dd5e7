"""The quantised formats on torch tensors: exact packers and unpackers for weights and activations.

Every format's layout, scales, rounding and saturation are stated in docs/formats.md; the C++ core has the
same packers, and tests hold the two equal bit for bit. All functions work on any device.

    weights = quantise_experts(w13, w2, format="fp8_block")
    y = flexact.fused_moe(x, topk_weights=…, topk_ids=…, activation=…, format="fp8_block", **weights)

Values beyond a format's largest number saturate; rounding is to nearest, ties to even; a group that holds
an infinity or NaN comes back as NaN.
"""

from __future__ import annotations

import torch

from flexact.errors import InvalidArgument

__all__ = [
    "FP4_FORMATS",
    "FP8_FORMATS",
    "decode_e2m1",
    "decode_e8m0",
    "dequantise",
    "dequantise_activations",
    "dequantise_experts",
    "e8m0_scale",
    "encode_e2m1",
    "encode_e4m3",
    "fp8_scale",
    "nvfp4_global_scale",
    "pack_e2m1",
    "quantise",
    "quantise_activations",
    "quantise_experts",
    "unpack_e2m1",
]

FP8_FORMATS = ("fp8_block", "fp8_tensor", "fp8_channel")
FP4_FORMATS = ("mxfp4", "nvfp4", "mxfp4_fp8")

E4M3_MAX = 448.0
E2M1_MAX = 6.0
FP8_BLOCK = 128
_GROUPS = {"mxfp4": 32, "mxfp4_fp8": 32, "nvfp4": 16}
_LEAST_LARGEST = 1e-10
_E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


# --- Single values --------------------------------------------------------------------------------


def encode_e4m3(values: torch.Tensor) -> torch.Tensor:
    """fp32 to torch.float8_e4m3fn, round to nearest even, saturating at ±448; NaN stays NaN."""
    return values.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def encode_e2m1(values: torch.Tensor) -> torch.Tensor:
    """fp32 to E2M1 codes 0 … 15 (uint8), round to nearest even, saturating at ±6; NaN becomes 6."""
    values = values.float()
    bits = values.contiguous().view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    small = (magnitude.view(torch.float32) + 2.0**22).view(torch.int32) - 0x4A800000
    rounded = magnitude + 0x1FFFFF + ((magnitude >> 22) & 1)
    large = ((rounded >> 22) - (126 << 1)).clamp_max(7)
    codes = torch.where(magnitude < 0x3F800000, small, large) | ((bits >> 28) & 8)
    return torch.where(values.isnan(), 7, codes).to(torch.uint8)


def decode_e2m1(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """E2M1 codes (uint8, the low four bits count) to their values."""
    table = torch.tensor(_E2M1_VALUES, dtype=dtype, device=codes.device)
    return table[(codes & 15).long()]


def pack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Codes [..., K] to bytes [..., K/2]: the even one of two in the low four bits."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Bytes [..., K/2] to codes [..., K]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def decode_e8m0(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """E8M0 codes (uint8) to 2^(code - 127); 255 is NaN."""
    wide = codes.to(torch.int32)
    # 2^-127 is subnormal in fp32, so its bits are not those of an exponent alone.
    bits = torch.where(wide == 0, 0x00400000, torch.where(wide == 255, 0x7FC00000, wide << 23))
    return bits.to(torch.int32).view(torch.float32).to(dtype)


def e8m0_scale(largest: torch.Tensor) -> torch.Tensor:
    """The E8M0 code of groups by their largest magnitude: 2^(floor(log2(largest)) - 2), as OCP MX says.

    Zero gives code 0, the smallest scale; an infinity or NaN gives 255.
    """
    exponent = (largest.float().abs().contiguous().view(torch.int32) >> 23) & 255
    return torch.where(exponent == 255, 255, (exponent - 2).clamp_min(0)).to(torch.uint8)


def fp8_scale(largest: torch.Tensor) -> torch.Tensor:
    """The fp32 scale of E4M3 codes by a group's largest magnitude: max(largest, 1e-10) / 448."""
    return _divided(largest.float().clamp_min(_LEAST_LARGEST), E4M3_MAX)


def nvfp4_global_scale(largest: torch.Tensor) -> torch.Tensor:
    """nvfp4's fp32 scale of a whole tensor: max(largest, 1e-10) / (6 * 448)."""
    return _divided(largest.float().clamp_min(_LEAST_LARGEST), E2M1_MAX * E4M3_MAX)


def _divided(values: torch.Tensor, by: float) -> torch.Tensor:
    """IEEE division: by a number, torch multiplies with its reciprocal on a GPU, and ties fall otherwise."""
    return values / torch.full_like(values, by)


# --- One matrix, or a stack of them ---------------------------------------------------------------


def quantise(
    w: torch.Tensor, format: str, *, global_scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds matrices [..., N, K] to a format.

    Args:
        w: fp32, bf16 or fp16. K is a multiple of 32 for mxfp4, of 16 for nvfp4.
        format: One of FP8_FORMATS or FP4_FORMATS.
        global_scale: nvfp4's fp32 scale, broadcast over the leading dimensions.

    Returns:
        Codes and scales: e4m3 [..., N, K] with fp32 scales [..., ceil(N/128), ceil(K/128)] (fp8_block),
        [..., N] (fp8_channel) or [...] (fp8_tensor); packed uint8 [..., N, K/2] with uint8 E8M0 scales
        [..., N, K/32] or, for nvfp4, e4m3 scales [..., N, K/16].
    """
    w = w.float()
    if format in _GROUPS:
        groups = w.unflatten(-1, (-1, _group(format, w.shape[-1])))
        largest = groups.abs().amax(-1)
        if format == "nvfp4":
            scale, step = _nvfp4_scales(largest, global_scale)
        else:
            scale = e8m0_scale(largest)
            step = torch.where(scale == 255, 0.0, decode_e8m0(scale))
        codes = encode_e2m1(groups / step.unsqueeze(-1))
        codes = torch.where((step > 0).unsqueeze(-1), codes, 0)
        return pack_e2m1(codes.flatten(-2)), scale
    if format == "fp8_block":
        tiles = _tiles(w)
        scale = fp8_scale(tiles.abs().amax((-3, -1)))
        return encode_e4m3(w * _spread(1.0 / scale, w.shape)), scale
    if format == "fp8_channel":
        scale = fp8_scale(w.abs().amax(-1))
        return encode_e4m3(w * (1.0 / scale).unsqueeze(-1)), scale
    if format == "fp8_tensor":
        scale = fp8_scale(w.abs().amax((-2, -1)))
        return encode_e4m3(w * (1.0 / scale)[..., None, None]), scale
    raise _unknown(format)


def dequantise(
    codes: torch.Tensor,
    scale: torch.Tensor,
    format: str,
    *,
    global_scale: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """The values of matrices that `quantise` made: exact in float64, rounded once to a smaller dtype."""
    if format in _GROUPS:
        values = decode_e2m1(unpack_e2m1(codes), torch.float64).unflatten(-1, (-1, _GROUPS[format]))
        if format == "nvfp4":
            steps = scale.double() * _broadcast(global_scale, scale)
        else:
            steps = decode_e8m0(scale, torch.float64)
        return (values * steps.unsqueeze(-1)).flatten(-2).to(dtype)
    values = codes.double()
    if format == "fp8_block":
        spread = _spread(scale.double(), values.shape)
    elif format == "fp8_channel":
        spread = scale.double().reshape(codes.shape[:-1]).unsqueeze(-1)
    elif format == "fp8_tensor":
        spread = scale.double()[..., None, None]
    else:
        raise _unknown(format)
    return (values * spread).to(dtype)


def _group(format: str, k: int) -> int:
    group = _GROUPS[format]
    if k % group:
        raise InvalidArgument(f"{k} values are not whole groups of {format}", hint=f"a multiple of {group}")
    return group


def _nvfp4_scales(
    largest: torch.Tensor, global_scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if global_scale is None:
        raise InvalidArgument("nvfp4 without a global scale", hint="nvfp4_global_scale(w.abs().amax())")
    whole = _broadcast(global_scale.float(), largest)
    ratio = _divided(largest, E2M1_MAX) / whole
    # The encoder would saturate; an infinite group has no scale.
    scale = encode_e4m3(torch.where(largest.isinf(), torch.nan, ratio))
    return scale, (scale.float() * whole).nan_to_num(0.0, 0.0)


def _broadcast(global_scale: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[...] to [..., 1, 1] beside the scales of matrices."""
    return global_scale.reshape(*global_scale.shape, *(1,) * (like.dim() - global_scale.dim()))


def _tiles(w: torch.Tensor) -> torch.Tensor:
    """[..., N, K] to [..., ceil(N/128), 128, ceil(K/128), 128], zeros at the ends."""
    rows, columns = (-size % FP8_BLOCK for size in w.shape[-2:])
    padded = torch.nn.functional.pad(w, (0, columns, 0, rows))
    return padded.unflatten(-1, (-1, FP8_BLOCK)).unflatten(-3, (-1, FP8_BLOCK))


def _spread(scale: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Each 128 x 128 block's scale at each of its weights."""
    wide = scale.repeat_interleave(FP8_BLOCK, -2).repeat_interleave(FP8_BLOCK, -1)
    return wide[..., : shape[-2], : shape[-1]]


def _unknown(format: str) -> InvalidArgument:
    return InvalidArgument(f"{format!r} is not a quantised format", hint=", ".join(FP8_FORMATS + FP4_FORMATS))


# --- The weights of a MoE block -------------------------------------------------------------------


def quantise_experts(
    w13: torch.Tensor, w2: torch.Tensor, *, format: str, pairing: str = "concat"
) -> dict[str, torch.Tensor]:
    """Rounds the weights of a MoE block to a format, in checkpoint layout.

    Gate and up have scales of their own wherever a format has fewer scales than rows.

    Args:
        w13: [E, 2I, H] with rows as `pairing` says; [E, I, H] with "none".
        w2: [E, H, I].
        format: One of FP8_FORMATS or FP4_FORMATS.
        pairing: "concat", "up_first", "interleaved" or "none".

    Returns:
        w13, w2, w13_scale, w2_scale, and for nvfp4 w13_global_scale and w2_global_scale: arguments of
        `flexact.fused_moe`.
    """
    if format not in FP8_FORMATS + FP4_FORMATS:
        raise _unknown(format)
    result = {}
    result["w13"], result["w13_scale"], whole = _quantise_w13(w13, format, pairing)
    whole2 = nvfp4_global_scale(w2.abs().amax((-2, -1))) if format == "nvfp4" else None
    result["w2"], result["w2_scale"] = quantise(w2, format, global_scale=whole2)
    if format == "nvfp4":
        result["w13_global_scale"], result["w2_global_scale"] = whole, whole2
    return result


def dequantise_experts(
    weights: dict[str, torch.Tensor],
    *,
    format: str,
    pairing: str = "concat",
    dtype: torch.dtype = torch.float64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """w13 and w2 of `quantise_experts` as plain tensors; exact in float64."""
    w2 = dequantise(
        weights["w2"], weights["w2_scale"], format, global_scale=weights.get("w2_global_scale"), dtype=dtype
    )
    codes, scale, whole = weights["w13"], weights["w13_scale"], weights.get("w13_global_scale")
    if pairing == "none" or (pairing == "interleaved" and format == "fp8_block"):
        return dequantise(codes, scale, format, global_scale=whole, dtype=dtype), w2
    halves = []
    for half, rows in enumerate(_halves(codes, pairing)):
        halves.append(
            dequantise(
                rows,
                _half_of_scale(scale, format, pairing, half),
                format,
                global_scale=_one_half(whole, half),
                dtype=dtype,
            )
        )
    return _join(halves, pairing), w2


def _quantise_w13(
    w13: torch.Tensor, format: str, pairing: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    if pairing == "none" or (pairing == "interleaved" and format == "fp8_block"):
        whole = nvfp4_global_scale(w13.abs().amax((-2, -1))) if format == "nvfp4" else None
        return *quantise(w13, format, global_scale=whole), whole
    codes, scales, wholes = [], [], []
    for rows in _halves(w13, pairing):
        wholes.append(nvfp4_global_scale(rows.abs().amax((-2, -1))) if format == "nvfp4" else None)
        code, scale = quantise(rows, format, global_scale=wholes[-1])
        codes.append(code)
        scales.append(scale)
    if format == "fp8_tensor":
        scale = torch.stack(scales, -1)
    elif format == "fp8_channel":
        scale = _join([each.unsqueeze(-1) for each in scales], pairing).squeeze(-1)
    else:
        scale = _join(scales, pairing)
    return _join(codes, pairing), scale, None if wholes[0] is None else torch.stack(wholes, -1)


def _halves(rows: torch.Tensor, pairing: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up of [..., 2N, K]."""
    if pairing == "interleaved":
        return rows[..., 0::2, :], rows[..., 1::2, :]
    if pairing not in ("concat", "up_first"):
        raise InvalidArgument(f"pairing {pairing!r}", hint="concat, up_first, interleaved or none")
    half = rows.shape[-2] // 2
    first, second = rows[..., :half, :], rows[..., half:, :]
    return (first, second) if pairing == "concat" else (second, first)


def _join(halves: list[torch.Tensor], pairing: str) -> torch.Tensor:
    gate, up = halves
    if pairing == "interleaved":
        return torch.stack((gate, up), -2).flatten(-3, -2)
    # torch concatenates e4m3 only on some devices.
    pair = [each.view(torch.uint8) if each.dtype == torch.float8_e4m3fn else each for each in (gate, up)]
    joined = torch.cat(pair if pairing == "concat" else pair[::-1], -2)
    return joined.view(gate.dtype)


def _half_of_scale(scale: torch.Tensor, format: str, pairing: str, half: int) -> torch.Tensor:
    if format == "fp8_tensor":
        return _one_half(scale, half)
    if format == "fp8_channel":
        return _halves(scale.reshape(scale.shape[0], -1, 1), pairing)[half].squeeze(-1)
    return _halves(scale, pairing)[half]


def _one_half(numbers: torch.Tensor | None, half: int) -> torch.Tensor | None:
    """[E, 2] (gate, up) or [E], one for both."""
    return numbers[:, half] if numbers is not None and numbers.dim() == 2 else numbers


# --- Activations ----------------------------------------------------------------------------------


def quantise_activations(
    x: torch.Tensor, format: str, *, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rounds activations [..., K] to E4M3 as the kernels of the FP8 formats do.

    The scale s is max(largest, 1e-10) / 448 and a code is e4m3(x * (1 / s)), each operation fp32.

    Args:
        x: fp32, bf16 or fp16.
        format: "fp8_block" and "mxfp4_fp8": one scale for 128 values; "fp8_channel": one a row;
            "fp8_tensor": one for all.
        scale: fp8_tensor's scale where the checkpoint gives one.

    Returns:
        e4m3 [..., K] and fp32 scales: [..., ceil(K/128)], [...] or [].
    """
    x = x.float()
    if format in ("fp8_block", "mxfp4_fp8"):
        k = x.shape[-1]
        groups = torch.nn.functional.pad(x, (0, -k % FP8_BLOCK)).unflatten(-1, (-1, FP8_BLOCK))
        scales = fp8_scale(groups.abs().amax(-1))
        inverse = (1.0 / scales).repeat_interleave(FP8_BLOCK, -1)[..., :k]
    elif format == "fp8_channel":
        scales = fp8_scale(x.abs().amax(-1))
        inverse = (1.0 / scales).unsqueeze(-1)
    elif format == "fp8_tensor":
        if scale is None:
            scale = fp8_scale(x.abs().amax()) if x.numel() else x.new_tensor(_LEAST_LARGEST / E4M3_MAX)
        scales = scale.float().reshape(())
        inverse = 1.0 / scales
    else:
        raise InvalidArgument(
            f"format {format!r} does not quantise activations", hint=", ".join((*FP8_FORMATS, "mxfp4_fp8"))
        )
    return encode_e4m3(x * inverse), scales


def dequantise_activations(
    codes: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """The values of `quantise_activations`' codes; the scale's shape says which format it was."""
    values = codes.double()
    if scale.dim() == 0:
        spread = scale.double()
    elif scale.dim() == codes.dim() - 1:
        spread = scale.double().unsqueeze(-1)
    else:
        spread = scale.double().repeat_interleave(FP8_BLOCK, -1)[..., : codes.shape[-1]]
    return (values * spread).to(dtype)
