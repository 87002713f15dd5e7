"""Finds the MLPs and experts of a model built on the meta device and runs each on a known input.

A unit is one MLP or one bank of experts. An MLP is run through its own forward with its input
projections replaced by modules that return grid columns and its output projection replaced by one
that keeps what it is given. A bank of experts holds its weights as parameters, so those are replaced
by small identity matrices, which also shows how gate and up are paired.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Iterator

import torch
from torch import nn

from .formulas import COLUMNS, GRID_SIZE, TOLERANCE, Formula, Matcher

# Not feed-forward whatever their shape. Matched against class names.
_NOT_FEED_FORWARD = re.compile(
    r"Attention|Attn|Mamba|SSM|Mixer$|ShortConv|Conv\d?$|DeltaNet|Lightning|Recurrent|RgLru|Rope|Rotary|Norm(\dd|Gated)?$|"
    r"Router|HyperConnection|Gate$|TopKGate|Embedding|Adapter|LoRA|Lora|Compressor|Indexer|Laurel|AltUp|Engram|"
    r"LSTMLayer|mLSTMCell|MLA$|Cache|Projector|Hyper|KDA|MoA$|Vision|Audio|Image|Speech|Codec|CrossAttn"
)
# Children of a layer that are not part of a text decoder.
_NOT_TEXT = re.compile(
    r"(^|\.)(vision\w*|video_tower|visual\w*|audio\w*|image\w*|vit|talker|code2wav|token2wav|speech\w*|mtp\w*|vqmodel|"
    r"qformer|codec\w*|connector|multi_modal\w*|aligner|merger|perceiver\w*|resampler\w*|embed_tokens_extend|"
    r"protein_encoder|dit|depth_decoder|audio_tower|projector|t2u\w*|vocoder|patcher|adapter\w*|eh_proj|"
    r"word_timestamp\w*|semantic_tokenizer\w*|acoustic_tokenizer\w*|generation_\w+|vae|sam\w*)(\.|$)"
)
_OUT_NAMES = re.compile(
    r"(down|fc2|c_proj|wo$|w2$|w_out|4h_to_h|output|out_proj|fc_out|lin2|layer_2|value|linear_out|\.2$|proj_out)"
)


@dataclasses.dataclass
class Unit:
    """One MLP or bank of experts, where it stands and which modules project in and out of it."""

    stack: str  # path of the list of layers, "" if there is one only
    layer: int
    role: str  # routed, shared, dense
    path: str
    module: nn.Module
    inputs: list[str] = dataclasses.field(default_factory=list)
    output: str = ""
    kind: str = "mlp"  # mlp, experts, dbrx, intermediate
    experts: int = 0  # how many experts a bank has


@dataclasses.dataclass
class Result:
    """What a unit computes."""

    formula: Formula | None
    error: float
    pairing: str = ""  # concat, interleaved, up_first, separate, none
    transposed: bool = False
    bias: bool = False
    norm: bool = False  # a norm stands between the activation and the output projection
    problem: str = ""
    values: torch.Tensor | None = None


class _Feed(nn.Module):
    """Stands for an input projection: returns what it was given at construction."""

    def __init__(self, value: torch.Tensor, like: nn.Module) -> None:
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64), requires_grad=False)
        self.bias = None
        self.in_features = getattr(like, "in_features", 1)
        self.out_features = value.shape[-1]

    def forward(self, *_args, **_kwargs) -> torch.Tensor:
        return self.value.clone()


class _CapturedError(Exception):
    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = value


class _Capture(nn.Module):
    """Stands for the output projection: stops the run and hands out its operand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64), requires_grad=False)
        self.bias = None

    def forward(self, x: torch.Tensor, *_args, **_kwargs) -> torch.Tensor:
        raise _CapturedError(x)


class _PassThrough(nn.Module):
    """Stands for attention, norms and the like: returns its first tensor, `count` results in all."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.count = count
        self.weight = None
        self.bias = None
        self.cache_key = id(self)  # fsmt's attention tells its caches apart by this

    def forward(self, *args, **kwargs):
        x = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        return x if self.count == 0 else (x,) * self.count


class _OneExpertRouter(nn.Module):
    """Stands for jetmoe's router: every token goes to one expert, with weight 1."""

    def forward(self, x: torch.Tensor):
        tokens = x.shape[0]
        return None, torch.arange(tokens), torch.ones(tokens, dtype=torch.float64), [tokens], None


def _not_feed_forward(module: nn.Module) -> bool:
    name = type(module).__name__
    return bool(_NOT_FEED_FORWARD.search(name)) and not re.search(
        "(Decoder|Encoder|Hybrid|Transformer)Layer$|MLP$|Mlp$|Experts$", name
    )


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, torch.Tensor)
        and weight.dim() in (2, 3)
        and not isinstance(module, nn.Embedding)
        and not list(module.children())
        and not re.search("Norm$|Embedding|Conv[123]d$", type(module).__name__)
    )


def _shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a projection."""
    weight = module.weight
    if type(module).__name__ == "Conv1D":
        return weight.shape[0], weight.shape[1]
    return weight.shape[-1], weight.shape[-2]


def _stacked_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of a bank of experts: the module's own parameters with three dimensions."""
    return {n: p for n, p in module.named_parameters(recurse=False) if p.dim() == 3 and p.shape[:2] != (1, 1)}


def _role(path: str) -> str:
    if re.search(r"(^|[._])shared(?!_transf)[._\w]*(expert|mlp|moe|$)", path) or re.search(
        r"shared_(expert|mlp)|residual_shared", path
    ):
        return "shared"
    return "routed" if re.search(r"expert", path) else "dense"


def _pair(projections: dict[str, nn.Module]) -> tuple[list[str], str] | None:
    """Splits projections into those going in and the one coming out, or None if they do neither."""
    names = list(projections)
    by_name = [n for n in names if _OUT_NAMES.search("." + n)]
    for out in by_name[::-1] + [n for n in names[::-1] if n not in by_name]:
        inner, hidden = _shape(projections[out])
        ins = [
            n
            for n in names
            if n != out
            and _shape(projections[n])[0] == hidden
            and _shape(projections[n])[1] in (inner, 2 * inner)
        ]
        if ins and len(ins) <= 2 and inner > 1 and hidden > 1:
            return ins, out
    return None


def _units_below(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module, list[str], str, str]]:
    """(path, module, inputs, output, kind) of every unit inside `module`, innermost first."""
    if _not_feed_forward(module) or _NOT_TEXT.search(path) or "hyper_connection" in path:
        return
    if len(_stacked_parameters(module)) >= 2:
        yield path, module, [], "", "experts"
        return
    if type(module).__name__ == "DbrxExperts":
        yield path, module, [], "", "dbrx"
        return
    found = False
    children = list(module.named_children())
    if isinstance(module, nn.ModuleList | nn.ModuleDict) and re.search("expert", path) and children:
        children = children[:1]  # experts are alike
    for name, child in children:
        for unit in _units_below(child, f"{path}.{name}" if path else name):
            found = True
            yield unit
    if found:
        return
    projections = {}
    for name, child in module.named_modules():
        if not name or not _is_projection(child):
            continue
        parts, owner, skip = name.split("."), module, False
        for part in parts[:-1]:
            owner = getattr(owner, part) if not part.isdigit() else owner[int(part)]
            skip |= _not_feed_forward(owner)
        if skip or re.search(r"attn|attention|latent|lora|_adapter|router|adapter|(^|\.)gate$", name):
            continue
        projections[name] = child
    pair = _pair(projections)
    if pair is not None:
        yield path, module, pair[0], pair[1], "mlp"
    elif type(module).__name__.endswith("Intermediate") and len(projections) == 1:
        yield path, module, list(projections), "", "intermediate"


def is_empty(unit: Unit) -> bool:
    """Whether a unit is a bank without experts."""
    return any(p.shape[0] == 0 for p in unit.module.parameters())


def _expert_count(layer: nn.Module, unit: nn.Module, path: str) -> int:
    stacked = _stacked_parameters(unit)
    if stacked:
        return min(p.shape[0] for p in stacked.values())  # longcat's gate_up has rows for identity experts
    if hasattr(unit, "input_linear"):
        return unit.input_linear.weight.shape[0]
    for depth in range(path.count(".") + 1, 0, -1):
        parent = layer.get_submodule(".".join(path.split(".")[:depth]))
        if isinstance(parent, nn.ModuleList | nn.ModuleDict):
            kinds = [type(child) for child in parent.children()]  # an activation may stand among them
            return max(kinds.count(kind) for kind in set(kinds))
    return getattr(unit, "num_experts", 0)


def find_units(model: nn.Module) -> list[Unit]:
    """Every unit of the text stacks of `model`, in order."""
    units: list[Unit] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or _NOT_TEXT.search(name):
            continue
        if re.search(r"\.\d+(\.|$)", name) or re.search(r"expert", name):
            continue  # inside a layer already
        for index, layer in enumerate(module):
            for path, unit, ins, out, kind in _units_below(layer, ""):
                full = f"{name}.{index}.{path}".rstrip(".")
                role = _role(path) if type(unit).__name__ != "JetMoeMoE" else "routed"
                experts = _expert_count(layer, unit, path) if role == "routed" else 0
                units.append(Unit(name, index, role, full, unit, ins, out, kind, experts))
    return units


def _settle(module: nn.Module, keep: set[int], passes: int) -> None:
    """Makes everything but the modules in `keep` runnable without weights, in place."""
    for name, child in list(module.named_children()):
        if id(child) in keep:
            continue
        kind = type(child).__name__
        if kind == "JetMoeTopKGating":
            setattr_child(module, name, _OneExpertRouter())
        elif re.search(r"Norm(\dd|Gated)?$", kind):
            setattr_child(module, name, _PassThrough())
        elif _not_feed_forward(child) and "Gate" not in kind:
            setattr_child(module, name, _PassThrough(passes))
        elif any(p.is_meta for p in child.parameters(recurse=False)) or any(
            b.is_meta for b in child.buffers(recurse=False)
        ):
            fresh = _initial(child)
            setattr_child(module, name, fresh)
        else:
            _settle(child, keep, passes)
    for name, p in list(module.named_parameters(recurse=False)):
        if p.is_meta:
            module._parameters[name] = nn.Parameter(
                torch.ones([1] * p.dim(), dtype=torch.float64), requires_grad=False
            )


def _initial(module: nn.Module) -> nn.Module:
    """An activation with parameters of its own, at its initial values; anything else passes through."""
    for arguments in ({"dtype": torch.float64}, {}):
        try:
            return type(module)(**arguments).double()
        except TypeError:
            continue
    return _PassThrough()


def setattr_child(module: nn.Module, name: str, child: nn.Module) -> None:
    """Replaces a child of a module or of a container."""
    module._modules[name] = child


def _replace(root: nn.Module, path: str, child: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr_child(root.get_submodule(owner), name, child)


def _patch_sizes(module: nn.Module, sizes: dict[int, int], inner: int) -> None:
    """Integer attributes equal to a full size get the small size that stands for it."""
    for m in module.modules():
        for name, value in list(vars(m).items()):
            if isinstance(value, int) and not isinstance(value, bool) and value in sizes:
                if value <= 2 and "expert" not in name:
                    continue  # too small to be told from a flag or a count of something else
                is_inner = value == inner and re.search("intermediate|inner|expert_dim|ffn", name)
                setattr(m, name, 2 if is_inner else sizes[value])


def _call(module: nn.Module, x: torch.Tensor, mask: torch.Tensor | None = None):
    """Calls a module with x for the hidden states and nothing of use for the rest."""
    arguments = {}
    for name, parameter in list(inspect.signature(module.forward).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if name == "layer_idx" and hasattr(module, "layer_dic"):
            arguments[name] = next(iter(module.layer_dic))  # zamba2: which adapter
        elif parameter.default is inspect.Parameter.empty:
            arguments[name] = _argument(name, x, mask)
    return module(x, **arguments)


def _argument(name: str, x: torch.Tensor, mask: torch.Tensor | None):
    if re.search("layer_idx|layer_id|index|block", name):
        return 0
    if "mask" in name:
        return mask
    if re.search("position|past|cache|bias", name):
        return None
    return x


def _cheap_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval()


def _run_mlp(unit: Unit) -> tuple[torch.Tensor, str, bool, bool]:
    """[GRID_SIZE] values, pairing, bias, norm of an MLP."""
    last = None
    wide = [_shape(unit.module.get_submodule(n))[1] for n in unit.inputs]
    inner = _shape(unit.module.get_submodule(unit.output))[0] if unit.output else wide[0]
    a, b, c, d = (COLUMNS[k] for k in "abcd")
    joined = len(unit.inputs) == 1 and wide[0] == 2 * inner
    if joined:
        feeds = [torch.stack([a, c, b, d], -1)[None]]
        sizes = {wide[0]: 4, inner: 2}
    elif len(unit.inputs) == 2:
        feeds = [a[None, :, None], b[None, :, None]]
        sizes = {inner: 1}
    else:
        feeds = [a[None, :, None]]
        sizes = {inner: 1}
    projections = [unit.module.get_submodule(n) for n in unit.inputs]
    if unit.output:
        projections.append(unit.module.get_submodule(unit.output))
    bias = any(getattr(p, "bias", None) is not None for p in projections)
    # How many results attention returns, and whether a mask may be absent, differs between classes.
    for passes, masked in ((0, False), (2, False), (3, False), (1, False), (4, False), (3, True)):
        module = _cheap_copy(unit.module)
        keep = set()
        for name, value in zip(unit.inputs, feeds, strict=True):
            feed = _Feed(value, module.get_submodule(name))
            _replace(module, name, feed)
            keep.add(id(feed))
        if unit.output:
            capture = _Capture()
            _replace(module, unit.output, capture)
            keep.add(id(capture))
        norm = any("Norm" in type(m).__name__ for n, m in module.named_modules() if n and "." not in n)
        _settle(module, keep, passes)
        if joined:
            _patch_sizes(module, sizes, 0)
        x = torch.zeros(1, GRID_SIZE, 1, dtype=torch.float64)
        try:
            y = _call(module, x, torch.zeros(1, GRID_SIZE, dtype=torch.float64) if masked else None)
            if unit.output:
                raise RuntimeError("the output projection was not reached")
        except _CapturedError as captured:
            y = captured.value
        except Exception as error:  # another count of results is tried
            last = error
            continue
        y = y.detach().double().reshape(GRID_SIZE, -1)
        return y, "joined" if joined else ("separate" if len(feeds) == 2 else "none"), bias, norm
    raise RuntimeError(f"{type(last).__name__}: {last}")


def _expert_rows() -> torch.Tensor:
    """[GRID_SIZE, 4] float64 hidden states: through identity weights, the columns (a, c, b, d)."""
    return torch.stack([COLUMNS[k] for k in "acbd"], -1)


def _run_experts(unit: Unit) -> tuple[torch.Tensor, bool, bool, bool, str]:
    """[GRID_SIZE, 2] values on four inputs, gated, transposed, bias, pairing ("" to be found)."""
    stacked = _stacked_parameters(unit.module)
    outs = [n for n in stacked if re.search("down|w2|output", n)]
    if len(outs) != 1:
        raise RuntimeError(f"which of {list(stacked)} is the output weight?")
    ins = [n for n in stacked if n != outs[0] and "bias" not in n]
    down = tuple(stacked[outs[0]].shape)
    first = tuple(stacked[ins[0]].shape)
    last = None
    for transposed in (False, True):
        hidden, inner = (down[2], down[1]) if transposed else (down[1], down[2])
        rows, columns = (first[2], first[1]) if transposed else (first[1], first[2])
        if columns != hidden or rows not in (inner, 2 * inner):
            continue
        gated = rows == 2 * inner or len(ins) == 2
        module = _cheap_copy(unit.module)
        width = 4 if gated else 2
        eye = torch.eye(4, dtype=torch.float64)
        weights = {ins[0]: eye[:2], ins[1]: eye[2:]} if len(ins) == 2 else {ins[0]: eye[:width]}
        weights[outs[0]] = eye[:, :2]
        experts = 2
        for name, weight in weights.items():
            w = (weight.T if transposed else weight).contiguous()
            module._parameters[name] = nn.Parameter(w.expand(experts, *w.shape).clone(), requires_grad=False)
        bias = False
        for name, p in list(module.named_parameters(recurse=False)):
            if name in weights:
                continue
            bias |= "bias" in name
            size = [experts] + [{hidden: 4, inner: 2, 2 * inner: 4}.get(s, 1) for s in p.shape[1:]]
            if "bias" in name and len(size) == 2:
                size[1] = 4 if re.search("down|w2|output", name) else width
            fill = torch.zeros if "bias" in name else torch.ones
            module._parameters[name] = nn.Parameter(fill(size, dtype=torch.float64), requires_grad=False)
        _settle(module, set(), 0)
        _patch_sizes(module, {down[0]: experts, first[0]: experts, inner: 2, 2 * inner: 4, hidden: 4}, inner)
        x = _expert_rows()
        try:
            pairing = "separate" if len(ins) == 2 else ""
            return _call_experts(module, x)[:, :2], gated, transposed, bias, pairing
        except Exception as error:  # the other orientation is tried
            last = error
    raise RuntimeError(f"{type(last).__name__}: {last}")


def _call_experts(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Runs experts on every row of x through expert 0 with weight 1 (and expert 1 with weight 0)."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    names = [p.name for p in parameters]
    tokens = x.shape[0]
    if len(names) >= 3 or names[0] in ("args", "self"):
        ids = torch.tensor([[0, 1]]).repeat(tokens, 1)
        weights = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(tokens, 1)
        y = module(x, ids, weights)
    elif len(names) == 2:
        y = module(x, torch.ones(tokens, 2, dtype=torch.float64) * 0.5)
    else:
        y = module(torch.cat([x, x]))[:tokens]
    y = y[0] if isinstance(y, tuple) else y
    return y.detach().double().reshape(tokens, -1)


def _run_dbrx(unit: Unit) -> tuple[torch.Tensor, bool, bool, bool, str]:
    """As _run_experts for a bank whose experts lie one below the other in matrices."""
    module = _cheap_copy(unit.module)
    eye = torch.eye(4, dtype=torch.float64)
    for name, weight in (("w1", eye[:2]), ("v1", eye[2:]), ("w2", eye[:2])):
        module.mlp._parameters[name] = nn.Parameter(weight.repeat(2, 1), requires_grad=False)
    sizes = {
        unit.module.hidden_size: 4,
        unit.module.ffn_hidden_size: 2,
        unit.module.num_experts: 2,
    }
    _patch_sizes(module, sizes, 0)
    _settle(module, set(), 0)
    x = _expert_rows()
    return _call_experts(module, x)[:, :2], True, False, False, "separate"


# Which columns the gate and up of output 0 and of output 1 are, for four input rows (a, c, b, d).
_PAIRINGS = {
    "concat": ("ab", "cd"),
    "interleaved": ("ac", "bd"),
    "up_first": ("ba", "dc"),
    "interleaved_up_first": ("ca", "db"),
}


def _match_joined(
    y: torch.Tensor, matcher: Matcher, numbers: set[float]
) -> tuple[Formula | None, float, str]:
    """Formula, error and pairing of a unit that gave two outputs for the rows (a, c, b, d)."""
    best: tuple[Formula | None, float, str] = (None, float("inf"), "")
    for pairing, (first, second) in _PAIRINGS.items():
        formula, error = matcher.nearest(y[:, 0].contiguous(), first[0], first[1], numbers)
        if formula is None or not formula.gated or error >= best[1]:
            best = best if best[0] or error >= best[1] else (None, error, "")
            continue
        check = matcher.values(formula, second[0], second[1])
        if ((check - y[:, 1]).abs() / (1 + y[:, 1].abs())).max() <= TOLERANCE:
            best = (formula, error, pairing)
    return best


def signature(unit: Unit, config_text: str) -> tuple:
    """Equal for two units that are the same classes with the same attributes, so compute the same.

    Layer numbers are left out; what a module takes from its configuration while it runs is not: a
    module that keeps the configuration has all of it in its signature.
    """
    parts: list = [unit.kind, unit.output, tuple(unit.inputs)]
    for name, module in unit.module.named_modules():
        parts.append((name, type(module)))
        for key, value in vars(module).items():
            if key in ("layer_idx", "layer_id", "_modules", "_non_persistent_buffers_set"):
                continue
            if key == "config":
                parts.append(config_text)
            elif key in ("_parameters", "_buffers"):
                parts.extend((n, None if p is None else tuple(p.shape)) for n, p in value.items())
            elif isinstance(value, nn.Module):
                parts.append((key, type(value)))
            elif callable(value):
                parts.append((key, getattr(value, "__qualname__", type(value).__qualname__)))
            else:
                parts.append((key, repr(value)))
    return tuple(parts)


def run_unit(unit: Unit, matcher: Matcher, numbers: set[float]) -> Result:
    """Runs a unit and finds what it computes.

    Args:
        unit: from find_units; its module is not changed.
        matcher: shared between calls, it remembers.
        numbers: parameter values that the formula may hold (the config's numbers).
    """
    try:
        if unit.kind in ("experts", "dbrx"):
            run = _run_experts if unit.kind == "experts" else _run_dbrx
            y, gated, transposed, bias, pairing = run(unit)
            if not gated:
                formula, error = matcher.nearest(y[:, 0].contiguous(), "a", "b", numbers)
                return Result(formula, error, "none", transposed, bias, values=y[:, 0])
            formula, error, found = _match_joined(y, matcher, numbers)
            return Result(formula, error, pairing or found, transposed, bias, values=y[:, 0])
        y, pairing, bias, norm = _run_mlp(unit)
        if pairing == "joined":
            formula, error, pairing = _match_joined(y, matcher, numbers)
        else:
            formula, error = matcher.nearest(y[:, 0].contiguous(), "a", "b", numbers)
            if pairing == "separate":
                swapped, other = matcher.nearest(y[:, 0].contiguous(), "b", "a", numbers)
                formula, error = (swapped, other) if other < error else (formula, error)
        return Result(formula, error, pairing, False, bias, norm, values=y[:, 0])
    except Exception as error:  # reported with the unit, never hidden
        return Result(None, float("inf"), problem=f"{type(error).__name__}: {str(error)[:160]}")
