"""One layer of experts: what it computes, by which path, and how often it did."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

import flexact
from flexact import moe
from flexact.errors import ConfigError, InternalError, Unsupported
from flexact.transformers import _probe
from flexact.transformers._probe import Layout
from flexact.transformers._weights import WeightStore

_FORMATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_SWITCHES = ("FLEXACT_BACKEND", "FLEXACT_NUMERICS", "FLEXACT_CPU_ISA")


class ExpertLayer:
    """What flexact knows about one experts module of a model.

    Attributes:
        name: The module's name in the model.
        layer: Absolute layer number.
        activation: What it computes.
        values: Parameter values [1 or E, P], float32.
        error: How far the class's own function is from the configuration without activation_params;
            None where transformers has no function of that name.
        calls: How often it ran.
    """

    def __init__(self, name: str, layer: int, module: nn.Module, entry: Any, values: torch.Tensor) -> None:
        self.name, self.layer = name, layer
        self.layout = Layout.of(module)
        self.function_name, self.source = entry.name, entry.source
        self.activation = entry.activation.gated() if self.layout.gated else entry.activation
        self.values = values
        self.error: float | None = None
        self.calls = 0
        self.path = "not run yet"
        self._store = WeightStore(self.layout.names())

    def describe(self) -> dict[str, Any]:
        """The layer's row in the report."""
        plan = self._store.plan
        return {
            "name": self.name,
            "layer": self.layer,
            "role": "routed",
            "function": self.function_name,
            "formula": self.activation.function.formula,
            "from": self.source,
            "computed_by": "flexact",
            "path": self.path,
            "kernel": plan.describe() if plan is not None else None,
            "resident_bytes": plan.resident_bytes if plan is not None else None,
            "restored": self._store.restored,
            "own_error": self.error,
            "calls": self.calls,
        }

    def release(self, module: nn.Module) -> None:
        """Gives packed weights back to the module."""
        self._store.restore(module)

    # --- Computing --------------------------------------------------------------------------------

    def run(
        self, module: nn.Module, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """The experts' output, in x's shape and dtype.

        Args:
            module: The experts.
            x: Tokens [T, H].
            ids: Expert numbers [T, k]; a number outside 0 … E-1 contributes nothing.
            weights: The router's weights [T, k].
        """
        self.calls += 1
        rows = x.reshape(-1, x.shape[-1])
        ids, weights = ids.reshape(len(rows), -1), weights.reshape(len(rows), -1)
        reason = self._why_torch(module, rows, weights)
        if reason:
            self.path = f"torch operations: {reason}"
            out = self._run_torch(module, rows, ids, weights)
        else:
            out = self._run_kernel(module, rows.contiguous(), ids, weights.float())
        return out.reshape(x.shape)

    def _why_torch(self, module: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> str:
        """Why this call runs on torch operations; empty: it runs on a kernel."""
        parameters = module.__dict__["_parameters"]
        named = [dict.get(parameters, name) for name in self.layout.names()]
        if any(parameter is None for parameter in named):
            return "the weights are computed (a parametrization)"
        inputs = (x, weights, *(p for p in dict.values(parameters) if p is not None))
        if torch.is_grad_enabled() and any(each.requires_grad for each in inputs):
            return "gradients are needed"
        if x.device.type not in ("cpu", "cuda") or any(p.device != x.device for p in named):
            return f"on {x.device.type}"
        known = x.dtype in _FORMATS and named[0].dtype in _FORMATS
        if x.is_cuda:
            known = x.dtype == named[0].dtype != torch.float32 and known
        return "" if known else f"hidden states in {x.dtype}, weights in {named[0].dtype}"

    def _run_kernel(
        self, module: nn.Module, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        combine = not self.layout.norm
        options = {
            "activation_values": self.values,
            "format": _FORMATS[dict.__getitem__(module.__dict__["_parameters"], "down_proj").dtype],
            "pairing": self.layout.pairing,
            "combine": combine,
        }

        def make() -> moe.Plan:
            w13, w2, biases = self._weights(module)
            return moe.plan(
                w13,
                w2,
                self.activation.function,
                top_k=ids.shape[1],
                io_dtype=x.dtype,
                **options,
                **biases,
            )

        plan = None
        if not x.is_cuda:
            key = (ids.shape[1], x.dtype, options["format"], *map(os.environ.get, _SWITCHES))
            plan = self._store.packed(module, key, make, self._original)
        if plan is not None:
            self.path = "packed weights"
            out = plan.run(x, weights, ids)
        else:
            # On a GPU the operator reads the weights where they lie.
            self.path = (
                "the module's own weights"
                if x.is_cuda
                else "packed weights beside the module's own, which something else holds"
            )
            w13, w2, biases = self._weights(module)
            canonical = self.activation.function.canonical
            out = moe.fused_moe(x, w13, w2, weights, ids, canonical, **options, **biases)
        if combine:
            return out
        normed = module.post_expert_norm(out)
        return (normed * weights[..., None]).sum(1).to(x.dtype)

    def _weights(self, module: nn.Module) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """w13 [E, 2I, H], w2 [E, H, I] and biases, as views of the module's tensors."""
        up, down = (getattr(module, name).detach() for name in self.layout.names())
        if self.layout.transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        biases = {}
        if self.layout.bias:
            for key, name in zip(("w13_bias", "w2_bias"), self.layout.biases(), strict=True):
                biases[key] = getattr(module, name).detach()
        return up, down, biases

    def _original(self, plan: moe.Plan) -> dict[str, torch.Tensor]:
        tensors = plan.unpack()
        if self.layout.transposed:
            tensors = tuple(tensor.transpose(1, 2).contiguous() for tensor in tensors)
        return dict(zip(self.layout.names(), tensors, strict=True))

    def _run_torch(
        self, module: nn.Module, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Expert by expert on torch operations; gradients flow to everything that asks for them."""
        up, down = (getattr(module, name) for name in self.layout.names())
        biases = [getattr(module, name) for name in self.layout.biases()] if self.layout.bias else None
        if not self.layout.transposed:
            up, down = up.transpose(1, 2), down.transpose(1, 2)
        if not up.dtype.is_floating_point or up.element_size() < 2:
            raise Unsupported(f"{self.name}: expert weights in {up.dtype}", hint="load unquantised weights")
        out = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for expert in torch.unique(ids).tolist():
            if not 0 <= expert < up.shape[0]:
                continue
            token, slot = (ids == expert).nonzero(as_tuple=True)
            h = x[token].to(up.dtype) @ up[expert]
            h = h if biases is None else h + biases[0][expert]
            row = self.values[min(expert, len(self.values) - 1)]
            y = _probe.apply(self.activation, h, self.layout.pairing, row) @ down[expert]
            y = y if biases is None else y + biases[1][expert]
            y = module.post_expert_norm(y) if self.layout.norm else y
            out = out.index_add(0, token, (y * weights[token, slot, None]).to(out.dtype))
        return out.to(x.dtype)

    # --- Proof ------------------------------------------------------------------------------------

    def check_own(self, module: nn.Module, base: Any, values: torch.Tensor) -> None:
        """Proves that the class itself computes what the configuration means without activation_params.

        Raises:
            flexact.ConfigError: It computes something else.
        """
        own = base.activation.gated() if self.layout.gated else base.activation
        self.error = _probe.check_own(module, own, values, self.name)

    def prove(self, module: nn.Module) -> None:
        """Proves on a stand-in that this layer's own computation is the configured function.

        Raises:
            flexact.InternalError: It is not.
        """
        stand = _probe.stand_in(module, torch.float32)
        trial = ExpertLayer.__new__(ExpertLayer)
        trial.__dict__.update(self.__dict__, _store=WeightStore(self.layout.names()))
        trial.values = self.values if len(self.values) == 1 else self.values[[0, -1]]
        expected = stand.reference(self.activation, trial.values)
        with torch.no_grad():
            off = _probe.error(trial.run(stand.module, stand.x, stand.ids, stand.weights), expected)
        if not off <= 1e-4:
            raise InternalError(f"{self.name}: {self.function_name} is off by {off:.2g}", "", trial.path)


# A packed layer cannot be traced: torch.compile leaves each block of experts as one break in the graph.
@torch.compiler.disable
def experts_forward(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What transformers calls for `experts_implementation="flexact"`."""
    layer = self.__dict__.get("_flexact")
    if layer is None:
        raise ConfigError(
            f"{type(self).__name__} runs outside a prepared model, so its layer is not known",
            "",
            "call flexact.transformers.prepare(model) on the model that holds it",
        )
    return layer.run(self, hidden_states, top_k_index, top_k_weights)


def values_for(entry: Any, layer: int, experts: int, tensors: Any) -> torch.Tensor:
    """The parameter table of one layer for all of its experts."""
    return flexact.moe.activation_values(entry.activation, layer=layer, experts=(0, experts), tensors=tensors)
