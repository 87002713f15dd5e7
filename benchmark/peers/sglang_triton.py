"""SGLang's fused MoE (its Triton runner) as a peer, with the best of its own and several more tiles.

SGLang ships tuned tiles for few shapes; its default is far from its best elsewhere. `variants` therefore
gives every tile that is worth trying, and the benchmark takes the fastest.
"""

import functools
import os

import torch

LARGE = [
    (128, 256, 64, 8, 8, 4),
    (128, 256, 64, 32, 8, 3),
    (128, 128, 64, 16, 8, 4),
    (64, 128, 64, 16, 4, 4),
]
SMALL = [
    (16, 64, 128, 1, 4, 4),
    (16, 128, 128, 1, 4, 3),
    (32, 64, 128, 8, 4, 4),
    (64, 64, 128, 8, 4, 4),
]
# Beside weights in 128 × 128 blocks a step along K is 128.
LARGE_BLOCKS = [(128, 128, 128, 32, 8, 3), (64, 128, 128, 16, 4, 4), (64, 128, 128, 32, 4, 3)]
SMALL_BLOCKS = [(16, 64, 128, 1, 4, 4), (16, 128, 128, 1, 4, 4), (64, 64, 128, 8, 4, 4)]
FIELDS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
ACTIVATIONS = {"silu": "silu", "gelu": "gelu"}


@functools.cache
def set_up():
    """SGLang's globals, without a server; once, whichever peers ask for them."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import ServerArgs

    publish(ServerArgs(model_path="dummy"), role="scheduler")
    port = 29500 + os.getpid() % 2000
    parallel_state.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, distributed_init_method=f"tcp://127.0.0.1:{port}", backend="gloo"
    )
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=1, backend="gloo")


def variants(shape, weights, inputs, activation):
    """(name, call) of every configuration for these inputs."""
    from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig
    from sglang.srt.layers.moe.moe_runner.triton_utils import override_config
    from sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe import fused_experts
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    if activation not in ACTIVATIONS or not shape.gated:
        raise ValueError(f"SGLang's Triton runner is compared on gated silu and gelu, not on {activation}")
    config = MoeRunnerConfig(
        num_experts=shape.experts, num_local_experts=shape.experts, hidden_size=shape.hidden,
        intermediate_size_per_partition=shape.intermediate, top_k=shape.top_k, params_dtype=torch.bfloat16,
        activation=ACTIVATIONS[activation], inplace=False,
    )  # fmt: skip
    x, topk_weights, ids, logits = inputs
    quantised, large, small = {}, LARGE, SMALL
    if weights["w13"].dtype == torch.float8_e4m3fn:
        scales = {"w1_scale": weights["w13_scale"], "w2_scale": weights["w2_scale"]}
        quantised = {"use_fp8_w8a8": True, **scales}
        if weights["w13_scale"].dim() == 3 and not shape.hidden % 128 and not shape.intermediate % 128:
            quantised["block_shape"] = [128, 128]
            large, small = LARGE_BLOCKS, SMALL_BLOCKS
        elif weights["w13_scale"].dim() != 1:
            raise ValueError(
                "SGLang's FP8 is compared in whole blocks of 128 × 128 and with one scale for each expert"
            )
    elif weights["w13"].dtype != torch.bfloat16:
        raise ValueError(f"SGLang's Triton runner takes no {weights['w13'].dtype} weights here")
    routed = StandardTopKOutput(topk_weights, ids, logits)

    def call():
        return fused_experts(x, weights["w13"], weights["w2"], routed, config, **quantised)

    yield "as shipped", call
    for row in large if x.shape[0] >= 1024 else small + large[-1:]:
        tile = dict(zip(FIELDS, row, strict=True))

        def tiled(tile=tile):
            with override_config(tile):
                return call()

        yield "tile " + ",".join(map(str, row)), tiled
