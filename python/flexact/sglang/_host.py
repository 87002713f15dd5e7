"""What SGLang's own expert kernels compute, as far as that is certain.

A row here is a promise read from SGLang's sources (0.5.17 to 0.5.23) and, on the CPU, checked on each
loaded layer. What is not in it counts as unknown, and flexact computes the layer or refuses it.
"""

from __future__ import annotations

import json
from typing import Any

# The functions of the rows below, whatever their parameters: known before a layer is built.
FUNCTIONS = ("swiglu", "swiglu_oai", "swiglu_step", "swiglu_clamp", "geglu", "geglu_tanh")


def host_activation(module: Any, chosen: dict[str, Any], pairing: str) -> tuple[Any | None, str]:
    """The activation that SGLang's kernel gives this layer, or None and the reason why it is not known.

    Args:
        module: The constructed `FusedMoE`.
        chosen: The arguments that its model passed: `activation`, `gemm1_alpha`, `gemm1_clamp_limit`, ….
        pairing: How gate and up rows lie.
    """
    import flexact

    rule = _on_cpu if module.w13_weight.device.type == "cpu" else _on_gpu
    known = rule(module, chosen, pairing)
    if isinstance(known, str):
        return None, known
    return flexact.Activation.from_json(json.dumps(known)).gated(), ""


def _on_cpu(module: Any, chosen: dict[str, Any], pairing: str) -> dict[str, Any] | str:
    """The reference loop of SGLang's CPU engine (`moe_forward_native`)."""
    method = type(module.quant_method).__name__
    if method != "UnquantizedFusedMoEMethod":
        return f"what {method} computes on a CPU is not known"
    if pairing == "none":
        return "SGLang's CPU kernel takes every expert for a gated one"
    if module.moe_ep_size > 1:
        return "SGLang's CPU kernel does not take the -1 of experts on other ranks"
    if module.moe_runner_config.apply_router_weight_on_input:
        return "SGLang's CPU kernel has no router weight on the input"
    if module.moe_runner_config.no_combine:
        return "SGLang's CPU kernel always combines the experts' outputs"
    name, alpha, limit = chosen["activation"], chosen["gemm1_alpha"], chosen["gemm1_clamp_limit"]
    if name == "silu" and alpha is not None:
        if pairing != "interleaved":
            return "SGLang's CPU kernel reads gate and up rows alternately where an alpha is given"
        return {"name": "swiglu_oai", "alpha": alpha, "limit": limit}
    if name == "silu":  # limits are ignored by this loop
        return {"name": "swiglu"}
    if name == "gelu":
        return {"name": "geglu_tanh"}
    return f"what SGLang's CPU kernel computes for {name!r} is not known"


def _on_gpu(module: Any, chosen: dict[str, Any], pairing: str) -> dict[str, Any] | str:
    """Plain SwiGLU everywhere; the documented variants where the Triton runner computes them."""
    method = type(module.quant_method).__name__
    name, alpha = chosen["activation"], chosen["gemm1_alpha"]
    clamp, limit = chosen["gemm1_clamp_limit"], chosen["swiglu_limit"]
    if pairing == "none":
        return "which kernel computes ungated experts is not known"
    if method.startswith("Mxfp4"):
        # These kernels put their own defaults in place of what is absent.
        if name == "silu" and alpha is not None and clamp is not None:
            return {"name": "swiglu_oai", "alpha": alpha, "limit": clamp}
        return f"{method} computes gpt_oss's function whatever is asked for"
    if name == "silu" and alpha is None and clamp is None and limit is None:
        return {"name": "swiglu"}
    runner = getattr(getattr(module, "runner", None), "runner_backend", None)
    if (
        runner is None
        or not runner.is_triton()
        or method not in ("UnquantizedFusedMoEMethod", "Fp8MoEMethod")
    ):
        return f"{method} is not known to forward the activation's parameters"
    if name == "silu" and alpha is not None and clamp is not None:
        return {"name": "swiglu_oai", "alpha": alpha, "limit": clamp}
    if name == "silu" and clamp is not None and limit is None:
        return {"name": "swiglu_step", "limit": clamp}
    if name == "silu" and limit == 10 and clamp is None:
        return {"name": "swiglu_clamp", "limit": limit}
    if name == "gelu" and clamp is None and limit is None:
        return {"name": "geglu"}
    return f"what SGLang's Triton kernel computes for {name!r} with these parameters is not known"
