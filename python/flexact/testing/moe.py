"""One call of a MoE block: random data at a realistic scale, its exact answer, and a stated recipe.

`reference` evaluates the formula in float64 on exactly the stored weights and inputs. `recipe` is the same
formula with the roundings that the kernels of the format make, and no others: what remains between recipe and
reference is what the format itself costs, and a kernel is held to about that.

    step                                      rounded to
    hidden states, FP8 formats                E4M3 by groups of 128, by row or by tensor
    weights, mxfp4 and nvfp4                  bf16: e2m1 × its group's scale, exact within bf16's range
    sum of the up projection, bias, function  (fp32 in kernels; not rounded here)
    activated values, bf16, fp16, FP4         the io dtype
    activated values, fp8_block, mxfp4_fp8,   E4M3
    fp8_tensor with a given scale
    activated values, fp8_channel and         the io dtype, then E4M3: their scale is known only when
    fp8_tensor without a given scale          the whole row or tensor is
    each expert's result times router weight  `partial`, the dtype in which slots wait for their sum; the CUDA
                                              kernels round the result before the weight
    the sum over slots times scaling factor   the io dtype
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from flexact import formats
from flexact._core import Activation

_HIDDEN_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclasses.dataclass(frozen=True)
class MoeCase:
    """The arguments of one call of `flexact.fused_moe`, weights in checkpoint layout.

    Attributes:
        hidden_states: [M, H].
        topk_weights: [M, k] float32.
        topk_ids: [M, k] int32.
        weights: w13, w2, their scales and biases, by `fused_moe`'s names.
        format: As `fused_moe`'s; so are the remaining fields.
    """

    hidden_states: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor
    weights: Mapping[str, torch.Tensor]
    format: str = "bf16"
    pairing: str = "concat"
    router_weight_on_input: bool = False
    routed_scaling_factor: float = 1.0
    combine: bool = True

    def arguments(self) -> dict[str, object]:
        """Keyword arguments of `flexact.fused_moe`, all but the activation."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {**fields.pop("weights"), **fields}

    def to(self, device: torch.device | str) -> MoeCase:
        """The same case with its tensors on a device."""
        moved = {
            each.name: value.to(device)
            for each in dataclasses.fields(self)
            if isinstance(value := getattr(self, each.name), torch.Tensor)
        }
        weights = {name: tensor.to(device) for name, tensor in self.weights.items()}
        return dataclasses.replace(self, weights=weights, **moved)


def random_case(
    format: str = "bf16",
    *,
    tokens: int,
    experts: int,
    top_k: int,
    hidden: int,
    intermediate: int,
    pairing: str = "concat",
    bias: bool = False,
    static_scales: bool = False,
    absent: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **fields: bool | float,
) -> MoeCase:
    """Random data at a scale at which every part of the block matters.

    Hidden states are N(0, 1); w13 is N(0, 1/H) and w2 N(0, 1/I), so that gate, up and the result are of
    order one; the router is a softmax over k distinct experts. The experts' sizes differ by up to eight
    times and gate's from up's by three, so that a scale taken from the wrong place shows.

    Args:
        format: A format's name.
        tokens: M.
        experts: E.
        top_k: k, at most E.
        hidden: H.
        intermediate: I.
        pairing: "concat", "up_first", "interleaved" or "none".
        bias: Whether both projections have one.
        static_scales: fp8_tensor: whether the checkpoint gives the activations' scales.
        absent: The share of slots whose expert is on another rank (id -1).
        seed: Of the generator.
        device: Where it is made.
        **fields: Further fields of `MoeCase`.
    """
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    dtype = _HIDDEN_DTYPES.get(format, torch.bfloat16)
    sizes = torch.logspace(-0.5, 0.5, experts, 2.0, device=device)[:, None, None] ** 3
    w13 = normal(experts, intermediate if pairing == "none" else 2 * intermediate, hidden) / hidden**0.5
    if pairing != "none":
        gate, _ = formats._halves(w13, pairing)
        gate *= 3
    w2 = normal(experts, hidden, intermediate) / intermediate**0.5 * sizes
    if format in formats.FP8_FORMATS + formats.FP4_FORMATS:
        weights = formats.quantise_experts(w13, w2, format=format, pairing=pairing)
    else:
        weights = {"w13": w13.to(dtype), "w2": w2.to(dtype)}
    if bias:
        weights["w13_bias"] = normal(*w13.shape[:2]) / 2
        weights["w2_bias"] = normal(experts, hidden) / 2
    if static_scales:
        weights["a13_scale"] = torch.full((1,), 4 / 448, device=device)
        weights["a2_scale"] = torch.full((1,), 64 / 448, device=device)
    scores = normal(tokens, experts)
    chosen = scores.topk(top_k, dim=-1)
    ids = chosen.indices.to(torch.int32)
    if absent:
        missing = torch.rand(ids.shape, generator=generator, device=device) < absent
        ids = torch.where(missing, -1, ids).to(torch.int32)
    return MoeCase(
        hidden_states=normal(tokens, hidden).to(dtype),
        topk_weights=chosen.values.softmax(-1),
        topk_ids=ids,
        weights=weights,
        format=format,
        pairing=pairing,
        **fields,
    )


def reference(case: MoeCase, activation: Activation) -> torch.Tensor:
    """The exact answer in float64: [M, H], or [M, k, H] without combine."""
    return _block(case, activation, lambda x: x, lambda y, rows: y, lambda y, weight: y * weight)


def recipe(
    case: MoeCase,
    activation: Activation,
    *,
    partial: torch.dtype = torch.float32,
    partial_weighted: bool = True,
) -> torch.Tensor:
    """The answer with the kernels' roundings (see the module), in the hidden states' dtype.

    Args:
        case: What to compute.
        activation: With which function.
        partial: The dtype in which slots wait for their sum.
        partial_weighted: Whether they wait with their router weight, or meet it in the sum.
    """
    io = case.hidden_states.dtype

    def round_input(x: torch.Tensor) -> torch.Tensor:
        return _requantise(x, case, case.weights.get("a13_scale"))

    def round_activated(y: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        given = case.weights.get("a2_scale")
        if case.format not in ("fp8_block", "mxfp4_fp8") and given is None:
            y = y.to(io)
        if case.format == "fp8_tensor" and given is None:
            # One scale for every row of the call, which `rows` holds.
            given = formats.fp8_scale(rows.to(io).abs().amax())
        return _requantise(y.float(), case, given)

    def round_partial(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if partial_weighted:
            return (y * weight).to(partial).double()
        return y.to(partial).double() * weight

    return _block(case, activation, round_input, round_activated, round_partial).to(io)


def errors(actual: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """RMS and largest error, both relative to the exact answer's RMS."""
    difference = actual.double() - exact
    scale = exact.square().mean().sqrt()
    return (difference.square().mean().sqrt() / scale).item(), (difference.abs().max() / scale).item()


def _requantise(x: torch.Tensor, case: MoeCase, scale: torch.Tensor | None) -> torch.Tensor:
    if case.format not in (*formats.FP8_FORMATS, "mxfp4_fp8"):
        return x.double()
    if case.format != "fp8_tensor":
        scale = None
    return formats.dequantise_activations(*formats.quantise_activations(x, case.format, scale=scale))


def _weights(case: MoeCase) -> tuple[torch.Tensor, torch.Tensor]:
    if case.format in formats.FP8_FORMATS + formats.FP4_FORMATS:
        return formats.dequantise_experts(dict(case.weights), format=case.format, pairing=case.pairing)
    return case.weights["w13"].double(), case.weights["w2"].double()


def _block(case, activation, round_input, round_activated, round_partial) -> torch.Tensor:
    w13, w2 = _weights(case)
    gated = case.pairing != "none"
    if gated:
        activation = activation.gated()
    tokens, top_k = case.topk_ids.shape
    here = (case.topk_ids >= 0) & (case.topk_ids < len(w13))
    present = here.any(-1)
    x = torch.zeros(tokens, w13.shape[2], dtype=torch.float64, device=w13.device)
    # Rows that no expert here takes are never read, so they have no part in a scale either.
    if present.any():
        x[present] = round_input(case.hidden_states[present]).double()

    activated = {}
    for expert in range(len(w13)):
        token, slot = torch.where(here & (case.topk_ids == expert))
        if len(token) == 0:
            continue
        y = x[token] @ w13[expert].T
        if case.router_weight_on_input:
            y = y * case.topk_weights[token, slot, None].double()
        if "w13_bias" in case.weights:
            y = y + case.weights["w13_bias"][expert].double()
        # One expert's rows at a time: its matrix has the rows as columns here.
        parts = [half.T for half in formats._halves(y.T, case.pairing)] if gated else [y]
        activated[expert] = (token, slot, activation(*parts, expert=_one(activation, expert)))

    outputs = torch.zeros(tokens, top_k, w2.shape[1], dtype=torch.float64, device=w13.device)
    everything = [values for _, _, values in activated.values()]
    rows = torch.cat(everything) if everything else x
    for expert, (token, slot, values) in activated.items():
        y = round_activated(values, rows).double() @ w2[expert].T
        if "w2_bias" in case.weights:
            y = y + case.weights["w2_bias"][expert].double()
        if case.combine:
            weight = torch.ones_like(case.topk_weights) if case.router_weight_on_input else case.topk_weights
            y = round_partial(y, weight[token, slot, None].double())
        outputs[token, slot] = y
    return case.routed_scaling_factor * outputs.sum(1) if case.combine else outputs


def _one(activation: Activation, expert: int) -> int | None:
    per_expert = any(isinstance(each, dict) and "per_expert" in each for each in activation.params.values())
    return expert if per_expert else None
