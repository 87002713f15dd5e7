"""triton_kernels' matrix products as SGLang runs them, a peer for MXFP4 weights beside bf16.

They compute gpt-oss's activation on rows of gate and up that alternate: ours is timed on the same, with
--activation swiglu_oai --pairing interleaved. Their sort is worked out before and not timed, in their favour.
"""

import torch

# What the runner computes; ours has the same defaults.
ALPHA, LIMIT = 1.702, 7.0


def set_up():
    """SGLang's globals, which its kernels read."""
    from peers import sglang_triton

    sglang_triton.set_up()


def variants(shape, weights, inputs, activation):
    """One call, on its own swizzled copy of the weights."""
    if activation != "swiglu_oai" or weights["w13"].dtype != torch.uint8 or "w13_global_scale" in weights:
        raise ValueError(
            "triton_kernels is compared with mxfp4 weights on swiglu_oai, gate and up interleaved"
        )
    from sglang.srt.layers.moe.fused_moe_triton.triton_kernels_moe import (
        triton_kernel_fused_experts_with_bias,
    )
    from sglang.srt.layers.moe.topk import routing
    from sglang.srt.layers.quantization.mxfp4 import _swizzle_mxfp4
    from triton_kernels.matmul_ogs import FlexCtx, PrecisionConfig

    x, _, _, logits = inputs
    sides = {}
    for name, rows in (("w13", 2 * shape.intermediate), ("w2", shape.hidden)):
        swizzled, flex, scale = _swizzle_mxfp4(weights[name].clone(), weights[f"{name}_scale"].clone(), 8)
        precision = PrecisionConfig(weight_scale=scale, flex_ctx=FlexCtx(rhs_data=flex))
        sides[name] = swizzled, precision, torch.zeros(shape.experts, rows, device=x.device)
    routed = routing(logits, shape.top_k)

    def call():
        return triton_kernel_fused_experts_with_bias(
            x, *sides["w13"], *sides["w2"], *routed, gemm1_alpha=ALPHA, gemm1_clamp_limit=LIMIT
        )

    yield "matmul_ogs", call
