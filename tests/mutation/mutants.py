"""Mutants of the activation compiler: small wrong changes, all compiled into one build.

Each mutant is one changed place in one source file: a constant, an operator, swapped operands, a
dropped term, a comparison, a function, or a printed form. Every changed place becomes a choice made at
run time (`mutant(17) ? changed : original`), so that hundreds of mutants cost one compilation; the
environment variable FLEXACT_MUTANT says which one is alive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SWITCH = """#include <cstdlib>
namespace flexact {
inline bool mutant(int number) {
  static const int alive = [] {
    const char* text = std::getenv("FLEXACT_MUTANT");
    return text == nullptr ? 0 : std::atoi(text);
  }();
  return number == alive;
}
}  // namespace flexact
"""

# The most mutants of each file; where there are more places, evenly spread ones are taken. The catalogue
# and the printers, of which the project promises most, come first.
QUOTA = {
    "catalogue.cpp": 80,
    "printers.cpp": 10,
    "print_cuda.cpp": 48,
    "print_triton.cpp": 36,
    "print_torch.cpp": 20,
    "print_text.cpp": 14,
    "numerics.cpp": 36,
    "builder.cpp": 44,
    "gradient.cpp": 36,
}


@dataclass(frozen=True)
class Mutant:
    """One changed place.

    Attributes:
        number: From 1; what FLEXACT_MUTANT says.
        file: Its name in src/activation.
        line: Where it stands.
        before: The piece of source text that is changed.
        after: What it becomes.
    """

    number: int
    file: str
    line: int
    before: str
    after: str


def _other_number(text: str) -> str:
    digits = text.rstrip("f")
    suffix = text[len(digits) :]
    if re.fullmatch(r"\d+", digits):
        return f"{int(digits) + 1}{suffix}"
    mantissa, _, exponent = digits.partition("e")
    changed = f"{float(mantissa) * 1.03:.10g}"
    changed += "" if "." in changed else ".5"
    return changed + ("e" + exponent if exponent else "") + suffix


def _substitutions(text: str, pairs: list[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    for pattern, replacement in pairs:
        for match in re.finditer(pattern, text):
            changed = text[: match.start()] + match.expand(replacement) + text[match.end() :]
            if changed != text:
                yield match.start(), changed


def _numbers(text: str) -> Iterator[tuple[int, str]]:
    # -1 is "no operand" in C++ and stays.
    for match in re.finditer(r"(?<![\w.\"])(?<!, -)(?<!\{-)(\d+(?:\.\d*)?(?:e[-+]?\d+)?f?)(?![\w.])", text):
        yield match.start(), text[: match.start()] + _other_number(match[1]) + text[match.end() :]


# ---- formulas of the catalogue

_FORMULA = [
    (r"(?<=[\w)])\+(?=[\w(])", "-"),
    (r"(?<=[\w)])-(?=[\w(])", "+"),
    (r"(?<=[\w)])\*(?=[\w(])", "/"),
    (r"(?<=[\w)])/(?=[\w(])", "*"),
    (r"(?<=[(,])-(?=[\w(])", ""),
    (r">", ">="),
    (r"\bsigmoid\(", "tanh("),
    (r"\btanh\(", "sigmoid("),
    (r"\bsoftplus\(", "relu("),
    (r"\brelu\(", "abs("),
    (r"\bexpm1\(", "exp("),
    (r"\bsilu\(", "gelu("),
    (r"\bgelu\(", "gelu_tanh("),
    (r"\bgelu_tanh\(", "gelu("),
    (r"\bmin\(", "max("),
    (r"\bclamp\(([^,()]*),([^,()]*),([^,()]*)\)", r"min(\1,\3)"),
    (r"\bwhere\((x>0),([^,]*),", r"where(\1,-(\2),"),
    (r"\^2", "^3"),
    (r"\*u$", "*g"),
    (r"(?<=\()g(?=[,)])", "u"),
]


def _formula(text: str) -> list[str]:
    found = [*_substitutions(text, _FORMULA), *_numbers(text)]
    # One change of each place.
    return list(dict.fromkeys(changed for _, changed in sorted(found)))


# ---- C++ statements

_CODE = [
    (r"(?<=[\w)\]]) \+ (?=[\w(])", " - "),
    (r"(?<=[\w)\]]) - (?=[\w(])", " + "),
    (r"(?<=[\w)\]]) \* (?=[\w(])", " / "),
    (r"(?<=[\w)\]]) / (?=[\w(])", " * "),
    (r" == ", " != "),
    (r" != ", " == "),
    (r" < ", " <= "),
    (r" <= ", " < "),
    (r" > ", " >= "),
    (r" >= ", " > "),
    (r" && ", " || "),
    (r" \|\| ", " && "),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"(?<=[( ])-(?=[\w(])", ""),
    (r"\badd\(", "sub("),
    (r"\bsub\(", "add("),
    (r"\bmul\(", "div("),
    (r"\bdiv\(", "mul("),
    (r"\bstd::exp\(", "std::exp2("),
    (r"\bstd::log1p\(", "std::log("),
    (r"\bstd::erfc\(", "std::erf("),
    (r"\bstd::(floor|fabs|tanh|sqrt|expm1|exp2|log|erf)\((\w+)\)", r"\2"),
    (r"\bpropagating_min\(", "propagating_max("),
    (r"\bpropagating_max\(", "propagating_min("),
    (r"\bsigmoid\(", "std::tanh("),
    (r"\bcall\((Op::\w+), ", r"square("),
    (r"\bOp::Sigmoid\b", "Op::Tanh"),
    (r"\bOp::Le\b", "Op::Lt"),
    (r"\bOp::Lt\b", "Op::Le"),
    (r"\bOp::Ge\b", "Op::Gt"),
    (r"\bOp::Gt\b", "Op::Ge"),
    (r"\bOp::Sub\b", "Op::Add"),
    (r"\bOp::Mul\b", "Op::Div"),
    (r"\bOp::Silu\b", "Op::Sigmoid"),
    (r"\bOp::Gelu\b", "Op::GeluTanh"),
    (r"\bOp::Sqrt\b", "Op::Rsqrt"),
    (r"\bOp::Exp2\b", "Op::Exp"),
    (r"\bOp::Neg\b", "Op::Abs"),
    (r"\boperand\((\w+), 0\)", r"operand(\1, 1)"),
    (r"\boperand\((\w+), 1\)", r"operand(\1, 0)"),
    (r"\b(\w+)\((\w+), (\w+)\)$", r"\1(\3, \2)"),
    (r"\{(\w), (\w), -1\}", r"{\2, \1, -1}"),
]

# What is printed: numbers and names inside literals, and which operand goes where.
_PRINTED = [
    (r" \+ (?=[a-z\d(])", " - "),
    (r"(?<=[a-z\d)]) - (?=[a-z\d(])", " + "),
    (r" \* ", " / "),
    (r" / ", " * "),
    (r" < ", " > "),
    (r" > ", " < "),
    (r" == ", " != "),
    (r"\bmin\b(?!\w)", "max"),
    (r"\bmax\b(?!\w)", "min"),
    (r"minimum", "maximum"),
    (r"maximum", "minimum"),
    (r"exp2f", "expf"),
    (r"expf\(", "exp2f("),
    (r"expm1f", "expf"),
    (r"tanhf", "expf"),
    (r"\btl\.exp\(", "tl.exp2("),
    (r"\btl\.log\(", "tl.exp("),
    (r"\btl\.abs\(", "("),
    (r"\btl\.erf\(", "tl.exp("),
    (r"\btl\.where\(([^,]*), ([^,]*), ", r"tl.where(\1, -(\2), "),
    (r"log1pf", "logf"),
    (r"logf", "log1pf"),
    (r"fabsf\(", "("),
    (r"floorf\(", "rintf("),
    (r"erff\(", "tanhf("),
    (r"erfcf\(", "erff("),
    (r"copysignf\(([^,]*), ", r"fabsf(\1 + 0.0f * "),
    (r"(?<=[(=, ])-(?=[a-z\d(])", ""),
    (r"\? (\w+(?:\.\w+)?) : (\w+(?:\.\w+)?)", r"? \2 : \1"),
    (r"F\.silu", "torch.sigmoid"),
    (r"F\.gelu", "F.silu"),
    (r"F\.softplus", "F.relu"),
    (r"torch\.minimum", "torch.maximum"),
    (r"torch\.maximum", "torch.minimum"),
    (r"zeros_like", "ones_like"),
    (r"approximate=\\\"tanh\\\"", 'approximate=\\"none\\"'),
    (r"threshold=40\.0", "threshold=4.0"),
    (r" \*\* ", " * "),
    (r"\.NaN\.", "."),
]
_OPERANDS = [
    (r"\bin\(n, 0\)", "in(n, 1)"),
    (r"\bin\(n, 1\)", "in(n, 0)"),
    (r"\bin\(n, 2\)", "in(n, 1)"),
    (r"\btensor\(n, 0\)", "tensor(n, 1)"),
    (r"\btensor\(n, 1\)", "tensor(n, 0)"),
    (r"\btensor\(n, 2\)", "tensor(n, 1)"),
]


def _balanced(text: str) -> bool:
    return all(text.count(a) == text.count(b) for a, b in ("()", "{}", "[]"))


def _literals(expression: str) -> Iterator[str]:
    """The expression with one string literal changed."""
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"', expression):
        inside = match[0][1:-1]
        for _, changed in [*_substitutions(inside, _PRINTED), *_numbers(inside)]:
            yield expression[: match.start()] + '"' + changed + '"' + expression[match.end() :]


def _expressions(expression: str, printer: bool) -> list[str]:
    found: list[str] = []
    if printer:
        found += _literals(expression)
        found += [changed for _, changed in _substitutions(expression, _OPERANDS)]
    elif '"' not in expression:
        found += [c for _, c in sorted([*_substitutions(expression, _CODE), *_numbers(expression)])]
    return [c for c in dict.fromkeys(found) if _balanced(c) and not _MEANINGLESS.search(c)]


# Changes that no compiler takes: differences of texts, an index in place of a node.
_MEANINGLESS = re.compile(r"string\(.* - |\(k, n\)|\(\w*ast\w*, \w+\)$")

_STATEMENTS = [
    re.compile(r"^(?P<head>\s+return )(?P<body>[^{].*)(?P<tail>;)$"),
    re.compile(r"^(?P<head>\s+(?:if \(.*\) )?return )(?P<body>[^{].*)(?P<tail>;)$"),
    re.compile(
        r"^(?P<head>\s+(?:const )?(?:double|Ref|bool|float|std::string) \w+ = )(?P<body>[^{].*)(?P<tail>;)$"
    ),
    re.compile(
        r"^(?P<head>\s+if \()(?P<body>(?!const )[^;]*?)(?P<tail>\) (?:return|std::swap|continue|throw|\{).*)$"
    ),
    re.compile(r"^(?P<head>\s+(?:slope|total|product|square|text) \+?= )(?P<body>[^{].*)(?P<tail>;)$"),
]


@dataclass
class _Place:
    """A piece of a file, and what it may become."""

    begin: int
    end: int
    alternatives: list[str]
    wrap: str  # how the chosen text stands in the source


def _compiles_in_a_printer(before: str, after: str) -> bool:
    """Texts have no difference, and the arguments of its functions are of different types."""
    return after.count(" - ") <= before.count(" - ") and sorted(before) != sorted(after)


def _statement_places(text: str, printer: bool, about_text: bool = False) -> Iterator[_Place]:
    at = 0
    for line in text.split("\n"):
        for pattern in _STATEMENTS:
            match = pattern.match(line)
            if not match or not _balanced(match["body"]) or line.lstrip().startswith("//"):
                continue
            alternatives = _expressions(match["body"], printer)
            if about_text:
                alternatives = [a for a in alternatives if _compiles_in_a_printer(match["body"], a)]
            if alternatives:
                yield _Place(at + match.start("body"), at + match.end("body"), alternatives, "({})")
            break
        at += len(line) + 1


def _raw_places(text: str) -> Iterator[_Place]:
    """Helper functions, which the printers hold as raw literals."""
    for match in re.finditer(r'R"\((.*?)\)"', text, re.DOTALL):
        lines = match[1].split("\n")
        alternatives = []
        for i, line in enumerate(lines):
            code = line.strip()
            if not code or code.startswith(("//", "#", "@", "def ")):
                continue
            changes = [*_substitutions(line, _PRINTED), *_numbers(line)]
            for _, changed in sorted(changes):
                # The number of a result in assembly is no constant.
                if (changed.count("%") == line.count("%") and "%" not in line) or ".NaN" in line:
                    alternatives.append("\n".join([*lines[:i], changed, *lines[i + 1 :]]))
        alternatives = [a for a in dict.fromkeys(alternatives) if _balanced(a)]
        if alternatives:
            yield _Place(match.start(1), match.end(1), alternatives, 'R"({})"')


def _catalogue_places(text: str) -> Iterator[_Place]:
    for match in re.finditer(r'"([^"\\]*(?:"\s*"[^"\\]*)*)"', text):
        before = text[: match.start()].rstrip()
        # A formula is a row's second entry; literals side by side are one.
        inside = re.sub(r'"\s*"', "", match[1])
        if re.search(r'\{"\w+",$', before) and re.search(r"\b[gx]\b", inside):
            alternatives = _formula(inside)
            if alternatives:
                yield _Place(match.start(1), match.end(1), alternatives, '"{}"')
    # Defaults and initial values.
    values = (
        r'number\("\w+", ([\d.]+)\)|\blimit\(([\d.]+)\)|"alpha", (0\.01),|expm1\((0\.\d)\)|"eps", (-1e-6),'
        r'|number\("beta", (0\.5)\)'
    )
    for match in re.finditer(values, text):
        group = next(i for i, g in enumerate(match.groups(), 1) if g)
        value = match[group]
        other = "-1.1e-6" if value.startswith("-") else _other_number(value)
        yield _Place(match.start(group), match.end(group), [other], "{}")
    for pattern, other in (
        (r'"alpha", 0\.01, (kZeroToOne)', "kAny"),
        (r'"eps", -1e-6, (kAtMostZero)', "kAny"),
    ):
        for match in re.finditer(pattern, text):
            yield _Place(match.start(1), match.end(1), [other], "{}")


def _places(file: str, text: str) -> list[_Place]:
    if file == "catalogue.cpp":
        places = [*_catalogue_places(text)]
    else:
        about_text = file.startswith("print")
        places = [*_statement_places(text, False, about_text)]
        if about_text and file != "print_text.cpp":
            places += _statement_places(text, True)
        places += _raw_places(text)
    unique: dict[tuple[int, int], _Place] = {}
    for place in places:
        if (place.begin, place.end) in unique:
            unique[place.begin, place.end].alternatives += place.alternatives
        else:
            unique[place.begin, place.end] = place
    kept: list[_Place] = []
    for place in sorted(unique.values(), key=lambda p: p.begin):
        if not kept or place.begin >= kept[-1].end:
            kept.append(place)
    return kept


def mutate(folder: Path) -> list[Mutant]:
    """Rewrites the sources in `folder` (src/activation) so that they hold every mutant."""
    mutants: list[Mutant] = []
    for file, quota in QUOTA.items():
        path = folder / file
        text = path.read_text(encoding="utf-8")
        places = _places(file, text)
        everything = [(p, a) for p in range(len(places)) for a in range(len(places[p].alternatives))]
        count = min(quota, len(everything))
        chosen = {everything[i * len(everything) // count] for i in range(count)}
        pieces, at = [], 0
        for p, place in enumerate(places):
            original = text[place.begin : place.end]
            choice = place.wrap.format(original) if place.wrap != "{}" else original
            for a, alternative in enumerate(place.alternatives):
                if (p, a) not in chosen:
                    continue
                number = len(mutants) + 1
                line = text.count("\n", 0, place.begin) + 1
                mutants.append(Mutant(number, file, line, *_difference(original, alternative)))
                choice = f"(mutant({number}) ? {place.wrap.format(alternative)} : {choice})"
            # Replaces the quotes too, where the place stands between them.
            outer = len(place.wrap.split("{}")[0]) if '"' in place.wrap else 0
            closing = len(place.wrap.split("{}")[1]) if '"' in place.wrap else 0
            pieces += [text[at : place.begin - outer], choice]
            at = place.end + closing
        pieces.append(text[at:])
        path.write_text(SWITCH + "".join(pieces), encoding="utf-8")
    return mutants


def _difference(before: str, after: str) -> tuple[str, str]:
    """The changed line of each, of a text that may have many."""
    if "\n" not in before:
        return before, after
    for a, b in zip(before.split("\n"), after.split("\n"), strict=True):
        if a != b:
            return a.strip(), b.strip()
    return before, after
