"""A whole MoE block of unary experts with its router: reference_moe_forward on the Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flexact import ActivationRegistry
from flexact.errors import InvalidArgument
from flexact.moe import fused_moe

__all__ = ["triton_moe_forward"]


def triton_moe_forward(
    x: torch.Tensor,
    gate_weights: torch.Tensor,
    up_weights: torch.Tensor,
    down_weights: torch.Tensor,
    activation_type: int | str = 1,
    activation_params: Sequence[float] = (1.5,),
    top_k: int = 2,
) -> torch.Tensor:
    """Routes each token to its best experts and computes them; softmax weights, renormalised over top_k.

    Args:
        x: [M, H], bfloat16 or float16.
        gate_weights: The router, [H, E].
        up_weights: [E, H, I]; a token's inner row is x[m] @ up_weights[e]. They are read as they lie.
        down_weights: [E, I, H].
        activation_type: A frozen id (0 silu, 1 swish, 2 gelu, 3 relu, 4 leaky_relu), or a unary
            function's name.
        activation_params: Its parameters' values in the catalogue's order.
        top_k: Experts a token.

    Returns:
        [M, H] in x's dtype.

    Raises:
        InvalidArgument: The function is gated, or the number of values is wrong.
    """
    name = (
        ActivationRegistry.name_of_id(activation_type)
        if isinstance(activation_type, int)
        else activation_type
    )
    parameters = ActivationRegistry.get_function(name).parameters
    if len(activation_params) != len(parameters):
        raise InvalidArgument(
            f"{len(activation_params)} values", "activation_params",
            f"{name} has {len(parameters)} parameters: {', '.join(each.name for each in parameters)}",
        )  # fmt: skip
    values = {each.name: value for each, value in zip(parameters, activation_params, strict=True)}
    activation = ActivationRegistry.get_activation(name, values)
    if activation.function.is_gated:
        raise InvalidArgument(f"{name} is gated", "activation_type", "a unary function")
    probabilities = torch.softmax(x.float() @ gate_weights.float(), dim=-1)
    weights, experts = probabilities.topk(top_k, dim=-1)
    weights = weights / weights.sum(-1, keepdim=True)
    return fused_moe(
        x,
        up_weights.transpose(1, 2),
        down_weights.transpose(1, 2),
        weights,
        experts,
        activation,
        format={torch.bfloat16: "bf16", torch.float16: "fp16"}.get(x.dtype, "fp32"),
        pairing="none",
        backend="triton",
    )
