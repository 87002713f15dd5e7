"""Reference formulas on a fixed grid, and the search for the one that a module computed.

Every formula is written out here in float64; none is taken from the package under test. A module's
output on the grid is compared with all of them, and the best match is the answer: several differ by
only 1e-6 (a clamp before or after silu at a limit of 16), so the first match within a tolerance
would lie.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F

# 42 values of each operand; offsets keep g and u from being equal and from hitting only integers.
_G = torch.arange(42, dtype=torch.float64) * 2.0 - 41.0
_U = torch.arange(42, dtype=torch.float64) * 1.9 - 40.3
GRID_G = torch.cat([_G.repeat_interleave(42), torch.linspace(-6.0, 6.0, 240, dtype=torch.float64)])
GRID_U = torch.cat([_U.repeat(42), torch.linspace(5.0, -7.0, 240, dtype=torch.float64)])
GRID_SIZE = GRID_G.numel()

TOLERANCE = 5e-5  # some modules compute in float32 whatever they are given


def gelu_tanh(x: torch.Tensor, c: float = math.sqrt(2.0 / math.pi)) -> torch.Tensor:
    """The tanh form of gelu with an explicit constant."""
    return 0.5 * x * (1.0 + torch.tanh(c * (x + 0.044715 * x**3)))


def _xielu(x: torch.Tensor) -> torch.Tensor:
    ap, beta, eps = 0.8, 0.5, -1e-6
    an = beta + math.log1p(math.exp(math.log(math.expm1(0.8 - beta))))
    return torch.where(x > 0, ap * x * x + beta * x, (torch.expm1(x.clamp(max=eps)) - x) * an + beta * x)


# Names are the catalogue's. `prelu` and `xielu` hold the class's initial values.
UNARY = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * torch.erfc(-x / math.sqrt(2.0)),
    "gelu_tanh": gelu_tanh,
    "gelu_fast": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "gelu_bloom": lambda x: x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1.0 + 0.044715 * x * x))),
    "gelu_10": lambda x: (0.5 * x * torch.erfc(-x / math.sqrt(2.0))).clamp(-10.0, 10.0),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": lambda x: x.clamp(min=0.0),
    "relu2": lambda x: x.clamp(min=0.0) ** 2,
    "relu6": lambda x: x.clamp(0.0, 6.0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "hardswish": lambda x: x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
    "softplus": lambda x: torch.where(x > 0, x, 0 * x) + torch.log1p(torch.exp(-x.abs())),
    "elu": F.elu,
    "selu": F.selu,
    "linear": lambda x: x,
    "laplace": lambda x: 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0)))),
    "sqrtsoftplus": lambda x: (x.clamp(min=0.0) + torch.log1p(torch.exp(-x.abs()))).sqrt(),
    "xielu": _xielu,
}


@dataclasses.dataclass(frozen=True)
class Formula:
    """One candidate: a form around a unary function, with the form's parameters."""

    form: str  # unary, glu, clamp_before, clamp_after, oai, oai_no_plus, situ, situ_nolinear
    function: str  # a key of UNARY; empty for oai and situ
    parameters: tuple[tuple[str, float], ...] = ()

    @property
    def gated(self) -> bool:
        """Whether the formula has two operands."""
        return self.form != "unary"

    def __call__(self, g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """Float64 values for float64 operands of equal shape; unary forms ignore u."""
        p = dict(self.parameters)
        if self.form == "unary":
            return UNARY[self.function](g)
        if self.form == "glu":
            return UNARY[self.function](g) * u
        if self.form == "clamp_before":
            limit = p["limit"]
            return UNARY[self.function](g.clamp(max=limit)) * u.clamp(-limit, limit)
        if self.form == "clamp_after":
            limit = p["limit"]
            return UNARY[self.function](g).clamp(max=limit) * u.clamp(-limit, limit)
        if self.form in ("oai", "oai_no_plus"):
            limit, alpha = p["limit"], p["alpha"]
            c = g.clamp(max=limit)
            plus = 1.0 if self.form == "oai" else 0.0
            return c * torch.sigmoid(alpha * c) * (u.clamp(-limit, limit) + plus)
        if self.form == "situ":
            b, bl = p["beta"], p["linear_beta"]
            return b * torch.tanh(g / b) * torch.sigmoid(g) * (bl * torch.tanh(u / bl))
        if self.form == "situ_nolinear":
            b = p["beta"]
            return b * torch.tanh(g / b) * torch.sigmoid(g) * u
        raise ValueError(self.form)

    def text(self) -> str:
        """A short stable name: `glu(silu)`, `clamp_before(silu; limit=10)`."""
        values = ", ".join(f"{k}={v:.17g}" for k, v in self.parameters)
        inner = "; ".join(t for t in (self.function, values) if t)
        return f"{self.form}({inner})"


def candidates(numbers: set[float]) -> list[Formula]:
    """All formulas whose parameters are among `numbers` (what the config holds) or the usual ones."""
    out = [Formula("unary", name) for name in UNARY] + [Formula("glu", name) for name in UNARY]
    limits = sorted({n for n in numbers if 0 < n <= 1e6} | {7.0, 10.0})
    for limit in limits:
        for name in UNARY:
            out.append(Formula("clamp_before", name, (("limit", limit),)))
            out.append(Formula("clamp_after", name, (("limit", limit),)))
        for alpha in sorted({n for n in numbers if 0 <= n < 20} | {1.702}):
            for form in ("oai", "oai_no_plus"):
                out.append(Formula(form, "", (("limit", limit), ("alpha", alpha))))
    positive = sorted({n for n in numbers if 0.5 < n < 1e3} | {4.0, 25.0})
    for beta in positive:
        out.append(Formula("situ_nolinear", "", (("beta", beta),)))
        for linear in positive:
            out.append(Formula("situ", "", (("beta", beta), ("linear_beta", linear))))
    return out


# What the inputs of a unit hold: a and b are the grid's operands, c and d are rearrangements that make
# a second output of the same unit tell which inputs it used.
COLUMNS = {"a": GRID_G, "b": GRID_U, "c": GRID_G.flip(0), "d": GRID_U.roll(7)}


class Matcher:
    """Finds the formula nearest to a module's output; remembers formulas' values and answers."""

    def __init__(self) -> None:
        self._values: dict[tuple[Formula, str, str], torch.Tensor] = {}
        self._answers: dict[tuple, tuple[Formula | None, float]] = {}

    def values(self, formula: Formula, g: str, u: str) -> torch.Tensor:
        """[GRID_SIZE] float64: the formula with g and u from the named columns."""
        key = (formula, g, u)
        if key not in self._values:
            self._values[key] = formula(COLUMNS[g], COLUMNS[u])
        return self._values[key]

    def nearest(self, y: torch.Tensor, g: str, u: str, numbers: set[float]) -> tuple[Formula | None, float]:
        """The best formula and its largest relative error; None where nothing is near.

        Args:
            y: [GRID_SIZE] float64, a module's output.
            g: the column that is taken for the gate (or the only input).
            u: the column that is taken for the up projection.
            numbers: parameter values to try, beside the usual ones.
        """
        key = (y.numpy().tobytes(), g, u, frozenset(numbers))
        if key not in self._answers:
            best, error = None, math.inf
            scale = 1.0 + y.abs()
            for pool in (candidates(set()), candidates(numbers)):
                for formula in pool:
                    e = ((self.values(formula, g, u) - y).abs() / scale).max().item()
                    if e < error:
                        best, error = formula, e
                if error < 1e-9:
                    break
            self._answers[key] = (best if error <= TOLERANCE else None, error)
        return self._answers[key]
