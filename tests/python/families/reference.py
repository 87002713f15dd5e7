"""The same models with the activation x * sigmoid(1.3 x) written out by hand, without flexact.

Twice: in transformers, whose activation modules are exchanged, and in SGLang itself without the plugin,
whose activation modules, expert loop and functional calls are exchanged. The second also serves classes
that transformers does not have.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

BETA = 1.3
# Attributes that hold an MLP's activation.
_ATTRIBUTES = re.compile(
    r"^(act|act_fn|activation|activation_fn|activation_func|hidden_act|intermediate_act_fn|act_func|mlp_act|gate_act|relu)$"
)
_ELSEWHERE = re.compile(
    r"vision|visual|audio|mamba|conv|attn|attention|mixer\.norm|projector|tower|ssm|pooler", re.I
)


def swish(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.3 x), in float32."""
    wide = x.float()
    return (wide * torch.sigmoid(BETA * wide)).to(x.dtype)


class Swish(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return swish(x)


class SwishAndMul(nn.Module):
    """[..., 2I] → [..., I], the gate first."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return swish(gate) * up


def exchange(model: nn.Module) -> int:
    """Exchanges the activation modules of a transformers model in place; how many."""
    count = 0
    for name, module in model.named_modules():
        if _ELSEWHERE.search(name):
            continue
        if hasattr(module, "_apply_gate"):  # gpt_oss: gate and up alternate, the formula is a method
            module._apply_gate = _interleaved
            count += 1
        for attribute in list(vars(module)) + list(module._modules):
            value = getattr(module, attribute, None)
            if _ATTRIBUTES.match(attribute) and callable(value) and not isinstance(value, (str, Swish)):
                module._modules.pop(attribute, None)
                module.__dict__.pop(attribute, None)
                module.__dict__[attribute] = swish
                count += 1
    return count


def exchange_in_sglang(model: nn.Module) -> int:
    """Exchanges the activation modules of an SGLang model, and its reference loop over experts."""
    count = 0
    for name, module in list(model.named_modules()):
        if _ELSEWHERE.search(name):
            continue
        for attribute, child in list(module.named_children()):
            kind = type(child).__name__
            if kind.endswith("AndMul"):
                setattr(module, attribute, SwishAndMul())
                count += 1
            elif _ATTRIBUTES.match(attribute) and not list(child.children()):
                setattr(module, attribute, Swish())
                count += 1
    return count


def exchange_expert_loop(activation: Any = None) -> None:
    """SGLang's reference loop over experts, written again with another function of (gate, up)."""
    from sglang.srt.layers.moe import fused_moe_native

    def loop(layer: Any, x: torch.Tensor, topk_output: Any, config: Any) -> torch.Tensor:
        on_input = getattr(config, "apply_router_weight_on_input", False)
        return _experts(x, layer.w13_weight, layer.w2_weight, topk_output, activation, on_input)

    def function(hidden_states: Any, w1: Any, w2: Any, topk_output: Any, *args: Any, **kwargs: Any) -> Any:
        return _experts(hidden_states, w1, w2, topk_output, activation)

    fused_moe_native.moe_forward_native = loop
    for name, module in list(sys.modules.items()):
        if name.startswith("sglang.srt.models.") and callable(getattr(module, "fused_moe", None)):
            module.fused_moe = function


def step_limit(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Step-3.5's experts: both halves are clamped, the gate after its silu."""
    return (gate * torch.sigmoid(gate)).clamp(max=7.0) * up.clamp(-7.0, 7.0)


def swiglu_oai(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """MiniMax M3's experts and MLPs."""
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def _experts(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_output: Any,
    activation: Any,
    on_input: bool = False,
) -> torch.Tensor:
    weights, ids = topk_output.topk_weights, topk_output.topk_ids
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for slot in range(ids.shape[1]):
            expert = int(ids[token, slot])
            weight = weights[token, slot].to(x.dtype)
            h = w13[expert] @ (x[token] * weight if on_input else x[token])
            if w13.shape[1] == 2 * w2.shape[2]:
                gate, up = h.chunk(2)
                h = activation(gate, up) if activation else swish(gate) * up
            else:
                h = swish(h)
            out[token] += (w2[expert] @ h) * (1 if on_input else weight)
    return out


def load(folder: Path, *, by_hand: bool) -> nn.Module:
    """The checkpoint in transformers, in float32, with eager attention and experts."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    build = getattr(transformers, config.architectures[0])
    model = build.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    if by_hand and not exchange(model):
        raise LookupError("no activation module to exchange by hand in transformers' class")
    return model


def logits(model: nn.Module, ids: list[int]) -> torch.Tensor:
    """[len(ids), vocabulary]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


def before_loading(spec: dict[str, Any]) -> None:
    """Exchanges functions that an SGLang model file calls by name, as its recipe lists them."""
    import importlib

    for target, kind in spec.get("functions", {}).items():
        module, attribute = target.rsplit(".", 1)
        setattr(importlib.import_module(module), attribute, _BY_KIND[kind])


def _interleaved(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    return swish(x[..., 0::2]) * x[..., 1::2]


_BY_KIND = {"unary": swish, "interleaved": _interleaved, "halves": SwishAndMul()}
