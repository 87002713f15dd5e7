"""SGLang's fused Marlin MoE as a peer, with MXFP4 and NVFP4 weights beside bf16."""

import types

import torch


def set_up():
    """SGLang's globals, which its kernels read."""
    from peers import sglang_triton

    sglang_triton.set_up()


def variants(shape, weights, inputs, activation):
    """One call, on its own repacked copy of the weights."""
    if activation != "silu" or not shape.gated or weights["w13"].dtype != torch.uint8:
        raise ValueError("Marlin is compared on gated silu with FP4 weights")
    from sglang.srt.layers.moe.fused_moe_triton.fused_marlin_moe import fused_marlin_moe
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
    from sglang.srt.layers.quantization.marlin_utils import marlin_make_workspace
    from sglang.srt.layers.quantization.marlin_utils_fp4 import (
        prepare_moe_mxfp4_layer_for_marlin,
        prepare_moe_nvfp4_layer_for_marlin,
    )

    x, topk_weights, ids, logits = inputs
    layer = torch.nn.Module()
    nvfp4 = "w13_global_scale" in weights
    for name in ("w13", "w2"):
        for suffix, source in (("weight", name), ("weight_scale", f"{name}_scale")):
            copy = weights[source].clone()
            setattr(layer, f"{name}_{suffix}", torch.nn.Parameter(copy, requires_grad=False))
        if nvfp4:
            whole = weights[f"{name}_global_scale"]
            if whole.dim() != 1:
                raise ValueError("Marlin takes one global scale for an expert's gate and up")
            whole = torch.nn.Parameter(whole.clone(), requires_grad=False)
            setattr(layer, f"{name}_weight_scale_2", whole)
    layer.orig_dtype = layer.params_dtype = torch.bfloat16
    layer.intermediate_size_per_partition = shape.intermediate
    layer.quant_config = types.SimpleNamespace(group_size=16)
    layer.moe_runner_config = MoeRunnerConfig(
        num_experts=shape.experts, num_local_experts=shape.experts, hidden_size=shape.hidden,
        intermediate_size_per_partition=shape.intermediate, top_k=shape.top_k, params_dtype=torch.bfloat16,
        activation="silu", inplace=False,
    )  # fmt: skip
    (prepare_moe_nvfp4_layer_for_marlin if nvfp4 else prepare_moe_mxfp4_layer_for_marlin)(layer)
    workspace = marlin_make_workspace(x.device, max_blocks_per_sm=4)

    def call():
        return fused_marlin_moe(
            hidden_states=x, w1=layer.w13_weight, w2=layer.w2_weight, w1_scale=layer.w13_weight_scale,
            w2_scale=layer.w2_weight_scale, gating_output=logits, topk_weights=topk_weights, topk_ids=ids,
            w1_global_scale=getattr(layer, "w13_weight_scale_2", None),
            w2_global_scale=getattr(layer, "w2_weight_scale_2", None), workspace=workspace, num_bits=4,
        )  # fmt: skip

    yield "fused", call
