"""torch's grouped GEMM with the steps between it as a peer, in bf16 and with scales of rows in FP8.

The sort is not timed, in its favour.
"""

import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda v: F.relu(v).square(),
}


def set_up():
    """Nothing to do."""


@torch.compile(dynamic=False)
def quantised(rows):
    """E4M3 codes of rows and a scale of each."""
    values = rows.float()
    scale = values.abs().amax(-1).clamp(min=1e-10) / 448
    return (values / scale.unsqueeze(1)).to(torch.float8_e4m3fn), scale


def product_of(weights, name, ends):
    """Rows of experts times their weights."""
    matrix = weights[name].transpose(1, 2)
    if matrix.dtype == torch.bfloat16:
        return lambda rows: torch._grouped_mm(rows, matrix, ends)
    scale = weights.get(f"{name}_scale")
    if matrix.dtype != torch.float8_e4m3fn or scale.dim() != 2 or scale.shape[1] != matrix.shape[2]:
        raise ValueError("torch's grouped product is compared in bf16 and fp8_channel")

    def multiply(rows):
        codes, of_rows = quantised(rows)
        return torch._scaled_grouped_mm(codes, matrix, of_rows, scale, offs=ends, out_dtype=rows.dtype)

    return multiply


def variants(shape, weights, inputs, activation):
    """One call."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"torch has no {activation} for this comparison")
    function = ACTIVATIONS[activation]
    x, topk_weights, ids, _ = inputs
    tokens, top_k = ids.shape
    flat = ids.flatten().long()
    order = flat.argsort(stable=True)
    back = order.argsort()
    ends = torch.bincount(flat, minlength=shape.experts).cumsum(0).to(torch.int32)
    first, second = product_of(weights, "w13", ends), product_of(weights, "w2", ends)
    scale = topk_weights.to(x.dtype).unsqueeze(1)

    def call():
        inner = first(x.index_select(0, order // top_k))
        if shape.gated:
            gate, up = inner.chunk(2, -1)
            inner = function(gate) * up
        else:
            inner = function(inner)
        rows = second(inner).index_select(0, back)
        return torch.bmm(scale, rows.view(tokens, top_k, -1)).squeeze(1)

    yield "grouped_mm", call
