"""A second evaluation of the expression language, written apart from the compiler, by mpmath.

It reads the text that a function prints of itself, through Python's own parser.
"""

import ast
import math

import mpmath

# Enough that 1 + tanh(v) and 1 - sigmoid(v) keep every value that a double can hold.
mpmath.mp.dps = 400
_INF = mpmath.inf


def _exp(v):
    return mpmath.mpf(0) if v == -_INF else mpmath.exp(v)


def _sigmoid(v):
    return 1 / (1 + _exp(-v))


def _relu(v):
    return v if v > 0 or mpmath.isnan(v) else mpmath.mpf(0)


FUNCTIONS = {
    "exp": _exp,
    "exp2": lambda v: _exp(v * mpmath.log(2)),
    "expm1": lambda v: mpmath.expm1(v),
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "sqrt": mpmath.sqrt,
    "rsqrt": lambda v: 1 / mpmath.sqrt(v),
    "abs": abs,
    "sign": mpmath.sign,
    "floor": mpmath.floor,
    "tanh": mpmath.tanh,
    "sigmoid": _sigmoid,
    "erf": mpmath.erf,
    "softplus": lambda v: mpmath.log1p(_exp(v)) if v < 0 else v + mpmath.log1p(_exp(-v)),
    "relu": _relu,
    "min": min,
    "max": max,
    "clamp": lambda v, low, high: min(max(v, low), high),
    "silu": lambda v: v * _sigmoid(v),
    "gelu": lambda v: v * mpmath.ncdf(v),
    "gelu_tanh": lambda v: v / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (v + 0.044715 * v**3))),
    "where": lambda condition, a, b: a if condition else b,
}


def evaluate(formula, **variables):
    """The value of `name = value; …; value` for these variables, as an mpf."""
    names = {"pi": mpmath.pi, "e": mpmath.e, "inf": _INF, **FUNCTIONS}
    names |= {name: mpmath.mpf(value) for name, value in variables.items()}
    *definitions, result = formula.replace("^", "**").split(";")
    for definition in definitions:
        name, _, value = definition.partition("=")
        names[name.strip()] = _evaluate(value, names)
    return _evaluate(result, names)


def _evaluate(text, names):
    tree = _Constants().visit(ast.parse(text.strip(), mode="eval"))
    return eval(compile(ast.fix_missing_locations(tree), "formula", "eval"), {"mpf": mpmath.mpf}, names)


class _Constants(ast.NodeTransformer):
    """Literals are doubles in the language; from there on they are exact."""

    def visit_Constant(self, node):
        return ast.Call(ast.Name("mpf", ast.Load()), [ast.Constant(float(node.value))], [])


def close(actual, expected, *, relative, absolute=0.0):
    """Whether a float is as near to an mpf as asked."""
    if mpmath.isnan(expected):
        return math.isnan(actual)
    if mpmath.isinf(expected):
        return actual == expected
    return abs(mpmath.mpf(actual) - expected) <= relative * abs(expected) + absolute
