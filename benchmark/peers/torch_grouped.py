"""torch's grouped GEMM with the steps between it as a peer; the sort is not timed, in its favour."""

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
    w13, w2 = weights["w13"].transpose(1, 2), weights["w2"].transpose(1, 2)
    scale = topk_weights.to(x.dtype).unsqueeze(1)

    def call():
        inner = torch._grouped_mm(x.index_select(0, order // top_k), w13, ends)
        if shape.gated:
            gate, up = inner.chunk(2, -1)
            inner = function(gate) * up
        else:
            inner = function(inner)
        rows = torch._grouped_mm(inner, w2, ends).index_select(0, back)
        return torch.bmm(scale, rows.view(tokens, top_k, -1)).squeeze(1)

    yield "grouped_mm", call
