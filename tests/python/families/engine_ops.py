"""Operators that have no form on a CPU here, written in torch by their definitions.

Most are sgl_kernel's, whose CPU build has no wheel: SGLang's CPU engine calls them in linear attention,
Mamba's mixer and Qwen3.5's attention. No activation of an MLP or of experts passes through any of them;
with them these models run here from end to end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

import torch
import torch.nn.functional as F

_KEPT: list[torch.library.Library] = []  # what is registered in one lives as long as it does


def install() -> None:
    """Supplies `sgl_kernel.mamba` and the operators, where sgl_kernel itself does not."""
    mamba = types.ModuleType("sgl_kernel.mamba")
    for function in (causal_conv1d_fn_cpu, causal_conv1d_update_cpu, chunk_gated_delta_rule_cpu):
        setattr(mamba, function.__name__, function)
    sys.modules.setdefault("sgl_kernel.mamba", mamba)
    for function in (
        fused_gdn_gating_cpu,
        fused_sigmoid_gating_delta_rule_update_cpu,
        fused_sigmoid_mul_cpu,
        fused_qk_gemma_rmsnorm_cpu,
        fused_qk_gemma_rmsnorm_with_gate_cpu,
        fused_qkvzba_split_reshape_cat_contiguous_cpu,
    ):
        if not hasattr(torch.ops.sgl_kernel, function.__name__):
            setattr(torch.ops.sgl_kernel, function.__name__, function)
    if importlib.util.find_spec("vllm") is None:  # one file imports a function for AWQ weights from it
        for name, attributes in (("vllm", {}), ("vllm._custom_ops", {"awq_dequantize": None})):
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            vars(module).update(attributes)
            sys.modules[name] = module
    # torch has the product with a wider result on GPUs alone.
    _KEPT.append(torch.library.Library("aten", "IMPL"))
    _KEPT[-1].impl("mm.dtype", lambda a, b, dtype: a.to(dtype) @ b.to(dtype), "CPU")
    # The mixer of Mamba-2 imports its convolution for every device but a CPU.
    from sglang.srt.layers.attention.mamba import mamba as mixer

    for name, function in (("fn", causal_conv1d_fn_cpu), ("update", causal_conv1d_update_cpu)):
        for suffix in ("", "_triton"):
            vars(mixer).setdefault(f"causal_conv1d_{name}{suffix}", function)
    # So does Kimi's delta attention.
    from sglang.srt.layers.attention.linear.kernels import kda_triton

    vars(kda_triton).setdefault("chunk_kda", chunk_kda)
    update = fused_sigmoid_gating_delta_rule_update_cpu
    vars(kda_triton).setdefault("fused_sigmoid_gating_delta_rule_update", update)
    # A gated norm asks for the number of multiprocessors to size its blocks.
    from sglang.kernels.ops.attention.fla import layernorm_gated

    if not torch.cuda.is_available():
        layernorm_gated._get_sm_count = lambda device: 1
    from sglang.srt.layers.moe import topk

    topk.select_experts = _scaled(topk.select_experts)
    if not hasattr(torch.cpu, "device"):  # the context that launches of Triton kernels stand in
        torch.cpu.device = contextlib.nullcontext


def _scaled(choose: Any) -> Any:
    """SGLang's choice of experts in torch, which has no factor on the chosen experts' weights."""

    def select(hidden_states: Any, router_logits: Any, topk_config: Any, **rest: Any) -> Any:
        if not topk_config.torch_native or topk_config.use_grouped_topk:
            return choose(hidden_states, router_logits, topk_config, **rest)
        factor = topk_config.routed_scaling_factor or 1.0
        if not topk_config.apply_routed_scaling_factor_on_output:
            factor = 1.0
        config = dataclasses.replace(topk_config, apply_routed_scaling_factor_on_output=False)
        chosen = choose(hidden_states, router_logits, config, **rest)
        return chosen._replace(topk_weights=chosen.topk_weights * factor)

    return select


# --- Convolution over the last few tokens -----------------------------------------------------------


def causal_conv1d_fn_cpu(
    x: torch.Tensor,  # [channels, tokens of all sequences]
    weight: torch.Tensor,  # [channels, width]
    bias: torch.Tensor | None,
    activation: str | None = "silu",
    conv_states: torch.Tensor | None = None,  # [slots, channels, >= width - 1]
    has_initial_state: torch.Tensor | None = None,
    cache_indices: torch.Tensor | None = None,
    query_start_loc: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Each sequence from its own state or from zeros; leaves the last tokens in the state."""
    out = torch.empty_like(x)
    width = weight.shape[1]
    for sequence, slot in enumerate(cache_indices.tolist()):
        begin, end = query_start_loc[sequence : sequence + 2].tolist()
        before = conv_states[slot, :, -(width - 1) :]
        if has_initial_state is None or not bool(has_initial_state[sequence]):
            before = torch.zeros_like(before)
        line = torch.cat((before.to(x.dtype), x[:, begin:end]), dim=1)
        out[:, begin:end] = _convolve(line, weight, bias, activation)
        conv_states[slot, :, -(width - 1) :] = line[:, -(width - 1) :].to(conv_states.dtype)
    return out


def causal_conv1d_update_cpu(
    x: torch.Tensor,  # [batch, channels] or [batch, channels, 1]
    conv_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *args: Any,
    conv_state_indices: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """One more token of each sequence."""
    flat = x.reshape(x.shape[0], -1)
    out = torch.empty_like(flat)
    width = weight.shape[1]
    for row, slot in enumerate(conv_state_indices.tolist()):
        line = torch.cat((conv_states[slot, :, -(width - 1) :].to(x.dtype), flat[row, :, None]), dim=1)
        out[row] = _convolve(line, weight, bias, activation)[:, 0]
        conv_states[slot, :, -(width - 1) :] = line[:, 1:].to(conv_states.dtype)
    return out.reshape(x.shape)


def _convolve(
    line: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: Any
) -> torch.Tensor:
    out = F.conv1d(line[None], weight[:, None], bias, groups=weight.shape[0])[0]
    return F.silu(out) if activation in ("silu", "swish", True) else out


# --- Gated delta rule -------------------------------------------------------------------------------


def fused_gdn_gating_cpu(
    a_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log decay, beta), [1, tokens, heads]."""
    decay = -a_log.float().exp() * F.softplus(a.float() + dt_bias.float())
    return decay[None], b.float().sigmoid()[None]


def chunk_gated_delta_rule_cpu(
    q: torch.Tensor,  # [1, tokens, key heads, size]
    k: torch.Tensor,
    v: torch.Tensor,  # [1, tokens, value heads, size]
    g: torch.Tensor,  # [1, tokens, value heads]: the log of the decay
    beta: torch.Tensor,
    initial_state: torch.Tensor,  # [slots, value heads, value size, key size]
    cu_seqlens: torch.Tensor,
    initial_state_indices: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None, None]:
    """All tokens of some sequences, one after another; the pool keeps their last states."""
    out = torch.empty_like(v)
    for sequence, slot in enumerate(initial_state_indices.tolist()):
        begin, end = cu_seqlens[sequence : sequence + 2].tolist()
        state = initial_state[slot].float()
        for t in range(begin, end):
            state, out[0, t] = _delta_step(state, q[0, t], k[0, t], v[0, t], g[0, t], beta[0, t])
        initial_state[slot] = state.to(initial_state.dtype)
    return out, None, None


def fused_sigmoid_gating_delta_rule_update_cpu(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    is_kda: bool = False,
    lower_bound: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """One more token of each sequence."""
    if is_kda:
        g = _kda_decay(a, A_log, dt_bias, lower_bound, v.shape[-2])
        beta = b.float().reshape(1, -1, v.shape[-2]).sigmoid()
    else:
        g, beta = fused_gdn_gating_cpu(A_log, a, b, dt_bias)
    return chunk_gated_delta_rule_cpu(
        q, k, v, g, beta, initial_state_source, cu_seqlens, initial_state_indices
    )[0]


def chunk_kda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,  # the log of the decay by key channel; before its gate where A_log is given
    beta: torch.Tensor,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    A_log: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    lower_bound: float | None = None,
    beta_is_raw: bool = False,
    **kwargs: Any,
) -> torch.Tensor:
    """Kimi's delta attention: the rule above with a decay of its own for each channel of the key."""
    heads = v.shape[-2]
    decay = g.float().reshape(1, -1, heads, k.shape[-1])
    if A_log is not None:
        decay = _kda_decay(g, A_log, dt_bias, lower_bound, heads)
    beta = beta.float().reshape(1, -1, heads)
    beta = beta.sigmoid() if beta_is_raw else beta
    rule = chunk_gated_delta_rule_cpu
    return rule(q, k, v, decay, beta, initial_state, cu_seqlens, initial_state_indices)[0]


def _kda_decay(
    raw: torch.Tensor, a_log: torch.Tensor, bias: torch.Tensor | None, bound: float | None, heads: int
) -> torch.Tensor:
    """[1, tokens, heads, key size]."""
    rate = a_log.float().exp().reshape(heads, 1)
    by_head = raw.dim() > 2 and raw.shape[-2] == heads
    value = raw.float().reshape(1, -1, heads, raw.shape[-1] // (1 if by_head else heads))
    if bias is not None:
        value = value + bias.float().reshape(heads, -1)
    return -rate * F.softplus(value) if bound is None else bound * (rate * value).sigmoid()


def _delta_step(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """state [heads, value, key]: decays, then k's old value is exchanged for beta of the new one."""
    shared = v.shape[0] // k.shape[0]
    q, k = (_unit(x.float()).repeat_interleave(shared, dim=0) for x in (q, k))
    state = state * g.float().exp().reshape(v.shape[0], 1, -1)
    old = torch.einsum("hvk,hk->hv", state, k)
    new = (v.float() - old) * beta.float()[:, None]
    state = state + new[:, :, None] * k[:, None, :]
    return state, (torch.einsum("hvk,hk->hv", state, q) * k.shape[-1] ** -0.5).to(v.dtype)


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


# --- Around Qwen3.5's attention ---------------------------------------------------------------------


def fused_sigmoid_mul_cpu(x: torch.Tensor, gate: torch.Tensor) -> None:
    """x *= sigmoid(gate)."""
    x.mul_(gate.reshape(x.shape).sigmoid())


def fused_qk_gemma_rmsnorm_cpu(
    q: torch.Tensor, k: torch.Tensor, q_weight: Any, k_weight: Any, eps: float, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both normalised by head, as rows of `size`."""
    return _gemma_norm(q.reshape(-1, size), q_weight, eps), _gemma_norm(k.reshape(-1, size), k_weight, eps)


def fused_qk_gemma_rmsnorm_with_gate_cpu(
    q_gate: torch.Tensor, k: torch.Tensor, q_weight: Any, k_weight: Any, eps: float, size: int, heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same where each head has its gate beside its query."""
    q, gate = q_gate.reshape(-1, heads, 2 * size).chunk(2, dim=-1)
    q, k = fused_qk_gemma_rmsnorm_cpu(q, k, q_weight, k_weight, eps, size)
    return q, k, gate.reshape(-1, size).contiguous()


def _gemma_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * (1 + weight.float())).to(x.dtype)


def fused_qkvzba_split_reshape_cat_contiguous_cpu(
    qkvz: torch.Tensor, ba: torch.Tensor, key_heads: int, value_heads: int, key_size: int, value_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[q | k | v | z], [b | a] → [q | k | v], z by head, b, a."""
    width = 2 * key_heads * key_size + value_heads * value_size
    z = qkvz[:, width:].reshape(-1, value_heads, value_size).contiguous()
    b, a = ba.chunk(2, dim=-1)
    return qkvz[:, :width].contiguous(), z, b.contiguous(), a.contiguous()
