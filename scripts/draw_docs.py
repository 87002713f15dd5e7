"""Draws the pictures of the documentation: docs/images/*.svg.

    python scripts/draw_docs.py [--check]

The pictures are made of the same few shapes and follow the reader's light or dark theme. `--check`
writes nothing and ends with exit code 1 if a committed picture differs.
"""

import argparse
import html
import json
import math
import sys
from pathlib import Path

from fill_tables import gpu_cells

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images"

STYLE = """
text{font:13px system-ui,sans-serif;fill:#1b1f24}.s{font-size:11.5px;fill:#5b6570}
.m{font:11.5px ui-monospace,monospace}.b{fill:#f6f8fa;stroke:#c8d0d8}.k{fill:#ddeafa;stroke:#0b6bcb}
.a{stroke:#6b7680;fill:none;stroke-width:1.4}.h{fill:#6b7680}.right{fill:#0b6bcb}.wrong{fill:#c4572a}
.none{fill:#aab4be}.p1{fill:#c4572a}.p2{fill:#8b7ab8}.p3{fill:#aab4be}.grid{stroke:#dde3e9}
@media(prefers-color-scheme:dark){text{fill:#e6eaee}.s{fill:#9aa5b1}.b{fill:#171c22;stroke:#3d4650}
.k{fill:#12283f;stroke:#5aa9f0}.a{stroke:#8b96a1}.h{fill:#8b96a1}.right{fill:#5aa9f0}.wrong{fill:#e58a63}
.none{fill:#56616c}.p1{fill:#e58a63}.p2{fill:#a899d6}.p3{fill:#56616c}.grid{stroke:#2a3138}}
"""


class Drawing:
    """An SVG picture that grows by shapes."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img"><title>{html.escape(title)}</title><style>{STYLE}</style>'
        )
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{html.escape(text)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind: str = "b") -> None:
        """A box with a name on its first line and remarks below; a remark in `…` is set as code."""
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'
        )
        first = y + height / 2 - 8 * (len(lines) - 1) + 4.5
        for i, line in enumerate(lines):
            code = line.startswith("`")
            self.text(x + width / 2, first + 16 * i, line.strip("`"), "m" if code else "s" if i else "")

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a head at its end."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        (x0, y0), (x1, y1) = points[-2:]
        length = max(abs(x1 - x0), abs(y1 - y0))
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        corners = [(x1, y1), (x1 - 8 * dx - 4 * dy, y1 - 8 * dy + 4 * dx)]
        corners.append((x1 - 8 * dx + 4 * dy, y1 - 8 * dy - 4 * dx))
        head = " ".join(f"{x:g},{y:g}" for x, y in corners)
        self.parts.append(f'<path class="a" d="M{path}"/><polygon class="h" points="{head}"/>')

    def bar(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.parts.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" rx="2"/>'
        )

    def dot(self, x: float, y: float, kind: str, label: str) -> None:
        """A point that says what it is where a pointer rests on it."""
        self.parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4" opacity="0.85">'
            f"<title>{html.escape(label)}</title></circle>"
        )

    def svg(self) -> str:
        return self.head + "\n".join(["", *self.parts, "</svg>", ""])


def data_flow() -> str:
    d = Drawing(880, 430, "From config.json to a computed layer")
    d.box(10, 30, 190, 70, "config.json", '`"hidden_act": "swish"`', '`"activation_params": …`')
    d.box(250, 30, 190, 70, "config", "one activation for each", "layer and role, or an error")
    d.box(490, 30, 190, 70, "activation", "function: one expression", "binding: its values", kind="k")
    d.arrow((200, 65), (248, 65))
    d.arrow((440, 65), (488, 65))

    d.box(525, 135, 120, 44, "graph", "SSA, normal form", kind="k")
    d.arrow((585, 100), (585, 133))
    targets = [
        ("fp64 reference", "as written"),
        ("CPU tape", "vector blocks"),
        ("torch", "autograd"),
        ("Triton", "source text"),
        ("CUDA", "source text"),
        ("text, gradient", "symbolic"),
    ]
    for i, (name, remark) in enumerate(targets):
        x = 10 + 142 * i
        d.box(x, 215, 130, 44, name, remark)
        if i > 0:
            d.arrow((585, 179), (585, 197), (x + 65, 197), (x + 65, 213))
    # The reference reads the parsed text, not the graph: it is what the graph is tested against.
    d.arrow((520, 100), (520, 118), (75, 118), (75, 213))

    d.box(10, 310, 190, 60, "moe", "problem, routing, refusals")
    d.box(250, 310, 190, 60, "backend: cpu", "refuse, plan, run")
    d.box(490, 310, 190, 60, "y = Σ w · down(act(…))", "one rounding")
    d.arrow((217, 259), (217, 285), (345, 285), (345, 308))
    d.arrow((200, 340), (248, 340))
    d.arrow((440, 340), (488, 340))
    d.arrow((680, 65), (868, 65), (868, 395), (345, 395), (345, 372))
    d.text(860, 388, "parameter values: an fp32 table [E or 1, P] beside the code", "s", "end")
    d.text(10, 418, "Used by: the SGLang plugin · torch operators · the C++ library · the flexact command",
           "s", "start")  # fmt: skip
    d.text(10, 18, "what the model asks for", "s", "start")
    return d.svg()


def perplexity() -> str:
    card = json.loads((ROOT / "models/austen-moe-8m/evaluation.json").read_text())
    rows = [
        ("right", f"swish, β = {card['beta']}, as config.json says", card["held_right"]),
        ("wrong", "plain SiLU, what ignoring β computes", card["held_silu"]),
        ("none", "Kneser-Ney trigram", card["held_trigram"]),
    ]
    d = Drawing(860, 120, "Held-out perplexity of the shipped model")
    most = max(value for _, _, value in rows)
    for i, (kind, label, value) in enumerate(rows):
        y, width = 12 + 34 * i, 490 * value / most
        d.text(290, y + 16, label, "", "end")
        d.bar(302, y, width, 22, kind)
        d.text(310 + width, y + 16, f"{value:.2f}", "", "start")
    return d.svg()


def cpu_moe() -> str:
    """How much of what the machine allows each implementation reaches, at every number of tokens."""
    result = json.loads((ROOT / "benchmark/results/cpu_moe_peers.json").read_text())
    shape = result["shapes"]["qwen3_30b"]
    kinds = {
        "flexact": ("right", "flexact"),
        "kt_kernel": ("p1", "kt-kernel"),
        "grouped_mm": ("p2", "torch grouped_mm"),
        "loop": ("p3", "torch, loop over experts"),
    }
    left, top, height, group = 60, 46, 200, 114
    right = left + group * len(shape["tokens"])
    d = Drawing(right + 10, top + height + 44, "Share of the machine's roof that each implementation reaches")
    for percent in (0, 25, 50, 75, 100):
        y = top + height * (1 - percent / 100)
        d.parts.append(f'<path class="grid" d="M{left} {y:g} H{right}"/>')
        d.text(left - 8, y + 4, f"{percent} %", "s", "end")
    for i, (tokens, row) in enumerate(shape["tokens"].items()):
        roof = 1e3 * max(
            row["bytes"] / (result["read_gbs"]["best"] * 1e9),
            row["operations"] / (result["peak_gflops"]["best"] * 1e9),
        )
        for j, key in enumerate(key for key in kinds if key in row["milliseconds"]):
            share = roof / row["milliseconds"][key]["median"]
            x, y = left + group * i + 10 + 24 * j, top + height * (1 - share)
            d.bar(x, round(y, 1), 21, round(height * share, 1), kinds[key][0])
            d.text(x + 10.5, round(y, 1) - 4, f"{100 * share:.0f}", "s")
        d.text(left + group * i + 57, top + height + 18, tokens)
    d.text((left + right) / 2, top + height + 37, "tokens", "s")
    x = float(left)
    for kind, label in kinds.values():
        d.bar(x, 10, 14, 14, kind)
        d.text(x + 20, 21.5, label, "", "start")
        x += 60 + 7.2 * len(label)
    return d.svg()


def gpu_moe() -> str:
    """How many times as long the fastest peer takes, for every format, model and number of tokens."""
    cells = gpu_cells(json.loads((ROOT / "benchmark/results/gpu_peers_h200.json").read_text()))
    formats = list(dict.fromkeys(key[0] for key in cells))
    counts = sorted({tokens for cell in cells.values() for tokens in cell})
    left, top, height, step, gap = 50, 46, 230, 26, 22
    panel = step * len(counts) + gap
    right = left + panel * len(formats)
    d = Drawing(right + 10, top + height + 58, "The fastest peer's time over flexact's")
    low, high = -1.0, 1.5  # powers of two

    def y_of(ratio: float) -> float:
        return top + height * (high - min(max(math.log2(ratio), low), high)) / (high - low)

    for ratio in (0.5, 0.75, 1, 1.5, 2, 2.5):
        y = y_of(ratio)
        d.parts.append(f'<path class="{"a" if ratio == 1 else "grid"}" d="M{left} {y:.1f} H{right}"/>')
        d.text(left - 8, y + 4, f"{ratio:g} ×", "s", "end")
    kinds = {"cutlass": ("right", -5), "triton": ("p2", 5)}
    for (format, function, model, backend), cell in cells.items():
        kind, aside = kinds[backend]
        for tokens, peers in cell.items():
            ratio, peer, us, _ = min(peers)
            x = left + panel * formats.index(format) + step * (counts.index(tokens) + 0.8) + aside
            what = f"{format}, {model}, {function}, {tokens} tokens, {backend}"
            d.dot(x, y_of(ratio), kind, f"{what}: {us:.0f} µs; {peer}: {ratio:.2f} × as long")
    for i, format in enumerate(formats):
        for j, tokens in enumerate(counts):
            text = f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)
            d.text(left + panel * i + step * (j + 0.8), top + height + 18, text, "s")
        d.text(left + panel * i + step * (len(counts) / 2 + 0.3), top + height + 40, format, "m")
    x = float(left)
    for name, (kind, _) in kinds.items():
        d.dot(x + 6, 17, kind, name)
        d.text(x + 18, 21.5, f"flexact, {name}", "", "start")
        x += 130
    return d.svg()


PICTURES = {"data-flow": data_flow, "perplexity": perplexity, "cpu-moe": cpu_moe, "gpu-moe": gpu_moe}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    OUT.mkdir(parents=True, exist_ok=True)
    stale = []
    for name, draw in PICTURES.items():
        path, content = OUT / f"{name}.svg", draw()
        if check and (not path.exists() or path.read_text(encoding="utf-8") != content):
            stale.append(path.name)
        elif not check:
            path.write_text(content, encoding="utf-8")
    if stale:
        print(f"not as drawn: {', '.join(stale)}; run python scripts/draw_docs.py", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
