"""The MoE block in plain torch, float64, one token and one expert at a time."""

import torch


def sizes(w13, pairing):
    return w13.shape[1] if pairing == "none" else w13.shape[1] // 2


def split(rows, pairing):
    """Gate and up from the output of w13, [..., 2I], by their definition."""
    half = rows.shape[-1] // 2
    if pairing == "concat":
        return rows[..., :half], rows[..., half:]
    if pairing == "up_first":
        return rows[..., half:], rows[..., :half]
    assert pairing == "interleaved"
    return rows[..., 0::2], rows[..., 1::2]


def reference_moe(
    x, w13, w2, topk_weights, topk_ids, function, *, pairing="concat", w13_bias=None, w2_bias=None,
    router_weight_on_input=False, routed_scaling_factor=1.0, combine=True,
):  # fmt: skip
    """`function(expert, g, u)` or `function(expert, x)`; everything in float64."""
    x, w13, w2, topk_weights = (each.double() for each in (x, w13, w2, topk_weights))
    outputs = torch.zeros(*topk_ids.shape, x.shape[1], dtype=torch.float64)
    for token, slot in ((m, k) for m in range(topk_ids.shape[0]) for k in range(topk_ids.shape[1])):
        expert = int(topk_ids[token, slot])
        if not 0 <= expert < w13.shape[0]:
            continue
        row = x[token] * topk_weights[token, slot] if router_weight_on_input else x[token]
        inner = w13[expert] @ row
        if w13_bias is not None:
            inner = inner + w13_bias[expert].double()
        inner = function(expert, inner) if pairing == "none" else function(expert, *split(inner, pairing))
        outputs[token, slot] = w2[expert] @ inner
        if w2_bias is not None:
            outputs[token, slot] += w2_bias[expert].double()
    if not combine:
        return outputs
    if not router_weight_on_input:
        outputs = outputs * topk_weights[..., None]
    return routed_scaling_factor * outputs.sum(1)
