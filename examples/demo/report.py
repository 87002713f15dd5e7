"""demo/report.html: one page without any outside reference, its plots drawn as SVG."""

import html
from collections.abc import Callable

STYLE = """
:root { --ink:#1b1f24; --soft:#5b6570; --line:#d8dee4; --page:#ffffff; --panel:#f6f8fa;
  --right:#0b6bcb; --wrong:#c4572a; --own:#3f8f5b; --grey:#aab4be; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6eaee; --soft:#9aa5b1; --line:#30363d;
  --page:#0f1318; --panel:#171c22; --right:#5aa9f0; --wrong:#e58a63; --own:#74c492; --grey:#56616c; } }
body { font:16px/1.55 system-ui, sans-serif; color:var(--ink); background:var(--page);
  max-width:60rem; margin:2.5rem auto; padding:0 1.25rem; }
h1 { font-size:1.7rem; line-height:1.25; margin:0 0 .4rem } h2 { font-size:1.15rem; margin:2.4rem 0 .6rem }
p { max-width:46rem } .soft { color:var(--soft) } small { color:var(--soft) }
table { border-collapse:collapse; width:100%; font-size:.9rem } .scroll { overflow-x:auto }
th { text-align:left; color:var(--soft); font-weight:500 }
th, td { padding:.35rem .8rem .35rem 0; border-bottom:1px solid var(--line); vertical-align:top }
td.n, th.n { text-align:right; font-variant-numeric:tabular-nums }
code, pre { font:.85em/1.5 ui-monospace, monospace } pre { background:var(--panel); padding:.8rem 1rem;
  overflow-x:auto; border-radius:6px }
.pair { display:grid; grid-template-columns:1fr 1fr; gap:1rem } @media (max-width:44rem) { .pair {
  grid-template-columns:1fr } }
.pair > div { background:var(--panel); border-radius:6px; padding:.8rem 1rem; white-space:pre-wrap }
.right { color:var(--right) } .wrong { color:var(--wrong) } .own { color:var(--own) }
svg { width:100%; height:auto; display:block } svg text { font:12px system-ui, sans-serif; fill:var(--soft) }
svg .axis { stroke:var(--line) } svg .label { fill:var(--ink) }
svg .r { stroke:var(--right); fill:none; stroke-width:2.2 } svg .w { stroke:var(--wrong); fill:none;
  stroke-width:2.2 } svg .o { stroke:var(--own); fill:none; stroke-width:1.6; stroke-dasharray:5 4 }
svg .bin { fill:var(--grey); opacity:.35 } svg .br { fill:var(--right) } svg .bw { fill:var(--wrong) }
svg .bo { fill:var(--own) }
"""


def escape(text: object) -> str:
    return html.escape(str(text))


def curve(values: list[tuple[float, float]], place: Callable[[float, float], tuple[float, float]]) -> str:
    points = (place(x, y) for x, y in values)
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def activation_plot(beta: float, histogram: list[float]) -> str:
    """The two activations and the user's own, over where the gate's values of this text lie."""
    from flexact import Activation, Function

    width, height, left, bottom = 720, 330, 44, 34
    low, high, top, floor = -6.0, 6.0, 3.0, -0.5

    def place(x: float, y: float) -> tuple[float, float]:
        return (left + (x - low) / (high - low) * (width - left - 10),
                height - bottom - (y - floor) / (top - floor) * (height - bottom - 12))  # fmt: skip

    own = Activation(Function.expression("x*clamp(0.5 + beta*x/4, 0, 1)"), {"beta": beta})
    functions = [
        ("r", f"swish, β = {beta}", Function.named("swish"), [beta]),
        ("w", "SiLU", Function.named("silu"), []),
        ("o", "own formula", own.function, own.values()[0]),
    ]
    xs = [low + (high - low) * i / 300 for i in range(301)]
    parts = []
    most = max(histogram) or 1.0
    step = (high - low) / len(histogram)
    base = place(0, floor)[1]
    for i, count in enumerate(histogram):
        x0, x1 = place(low + i * step, 0)[0], place(low + (i + 1) * step, 0)[0]
        tall = 120 * count / most
        parts.append(f'<rect class="bin" x="{x0:.1f}" y="{base - tall:.1f}" width="{x1 - x0:.2f}" '
                     f'height="{tall:.1f}"/>')  # fmt: skip
    for y in (0, 1, 2, 3):
        (x0, py), (x1, _) = place(low, y), place(high, y)
        parts.append(f'<line class="axis" x1="{x0}" x2="{x1}" y1="{py:.1f}" y2="{py:.1f}"/>'
                     f'<text x="{left - 8}" y="{py + 4:.1f}" text-anchor="end">{y}</text>')  # fmt: skip
    for x in range(-6, 7, 2):
        parts.append(f'<text x="{place(x, 0)[0]:.1f}" y="{height - 12}" text-anchor="middle">{x}</text>')
    for kind, _, function, values in functions:
        ys = [(x, function.reference(x, values=values)) for x in xs]
        parts.append(f'<path class="{kind}" d="{curve([p for p in ys if p[1] <= top], place)}"/>')
    for i, (kind, label, _, _) in enumerate(functions):
        y = 24 + 19 * i
        parts.append(f'<path class="{kind}" d="M{left + 14} {y - 4} h26"/>'
                     f'<text class="label" x="{left + 48}" y="{y}">{escape(label)}</text>')  # fmt: skip
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="The activations">{"".join(parts)}</svg>'
    )


def bars(facts: dict) -> str:
    """Held-out perplexity of each activation, by host."""
    p, beta, host = facts["perplexity"], facts["beta"], facts["host"]
    rows = [
        ("br", f"swish, β = {beta} · {host} with flexact", p["host_right"]),
        ("br", f"swish, β = {beta} · transformers by hand", p["hand_right"]),
        ("bw", f"SiLU · {host} without flexact", p["host_silu"]),
        ("bw", "SiLU · transformers by hand", p["hand_silu"]),
    ]
    width, row, left = 720, 30, 300
    most = max(value for _, _, value in rows)
    parts = []
    for i, (kind, label, value) in enumerate(rows):
        y, long = i * row + 6, (width - left - 70) * value / most
        parts += [
            f'<text class="label" x="{left - 12}" y="{y + 15}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{kind}" x="{left}" y="{y + 1}" width="{long:.1f}" height="20" rx="2"/>',
            f'<text class="label" x="{left + long + 8:.1f}" y="{y + 15}">{value:.2f}</text>',
        ]
    height = row * len(rows) + 8
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Perplexities">{"".join(parts)}</svg>'


def rows_of(table: list[list[object]], numbers: set[int]) -> str:
    """An HTML table; the first row is its head, `numbers` are the columns set right."""
    out = []
    for index, row in enumerate(table):
        tag = "th" if index == 0 else "td"
        cells = (f"<{tag}{' class=n' if i in numbers else ''}>{escape(c)}</{tag}>" for i, c in enumerate(row))
        out.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table>{"".join(out)}</table></div>'


def layers(facts: dict) -> str:
    running = "by" in facts["rows"][0]
    head = ["layer", "function", "formula", "parameters", "from"]
    table: list[list[object]] = [head + (["computed by", "kernel", "executions"] if running else [])]
    for r in facts["rows"]:
        values = ", ".join(f"{k} = {v}" for k, v in r["params"].items())
        row = [r["layer"], r["name"], r["formula"], values, r["source"]]
        table.append(row + ([r["by"], r["kernel"], r["calls"]] if running else []))
    return rows_of(table, {7})


def texts(facts: dict) -> str:
    out = []
    for prompt, good, bad in zip(facts["prompts"], facts["texts"], facts["stock_texts"], strict=True):
        out.append(f'<div class="pair"><div><small class="right">with flexact</small>\n'
                   f"<b>{escape(prompt)}</b>{escape(good)}</div>"
                   f'<div><small class="wrong">without</small>\n<b>{escape(prompt)}</b>'
                   f"{escape(bad)}</div></div><p></p>")  # fmt: skip
    return "".join(out)


def perplexities(facts: dict) -> list[list[str]]:
    """The table of perplexities, its heading first: activation × (tokens, host, by hand, difference)."""
    p, d, beta = facts["perplexity"], facts["difference"], facts["beta"]
    return [
        ["activation", "tokens", facts["host"], "transformers by hand", "largest |Δ log p|"],
        [f"swish, β = {beta} (with flexact)", f"{facts['tokens']:,}", f"{p['host_right']:.3f}",
         f"{p['hand_right']:.3f}", f"{d['right']:.1e}"],
        ["SiLU (without flexact)", f"{facts['tokens']:,}", f"{p['host_silu']:.3f}",
         f"{p['hand_silu']:.3f}", f"{d['silu']:.1e}"],
        ["own formula (with flexact)", f"{facts['own_tokens']:,}", f"{p['host_own']:.3f}",
         f"{p['hand_own']:.3f}", f"{d['own']:.1e}"],
    ]  # fmt: skip


def page(facts: dict) -> str:
    """The whole report."""
    p, beta, host = facts["perplexity"], facts["beta"], facts["host"]
    ratio = p["host_silu"] / p["host_right"]
    numbers = rows_of(perplexities(facts), {1, 2, 3, 4})
    checks = "".join(f"<li>{escape(line)}</li>" for line in facts["checks"])
    own_text = escape(facts["own_texts"][0]) if facts["own_texts"] else ""
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>flexact: one model, two activations</title><style>{STYLE}</style>
<h1>The same weights, <span class="right">as configured</span> and <span class="wrong">as usually
served</span></h1>
<p class="soft">A language model whose config.json asks for swish with β = {beta} in its experts, served by
{escape(host)} {escape(facts["host_version"])} on the CPU in float32. Without flexact the server starts,
gives no warning and computes SiLU: held-out perplexity is {ratio:.2f} times as high.</p>
{bars(facts)}
<h2>The two functions, and where this model uses them</h2>
<p>Grey: how often the experts' gate takes each value on the held-out text. The functions differ most
where the values are.</p>
{activation_plot(beta, facts["histogram"])}
<h2>What each layer runs</h2>
{layers(facts)}
<pre>{escape(facts["explain"])}</pre>
<h2>Numbers</h2>
{numbers}
<p class="soft">Perplexity over windows of 512 tokens of a novel that is in no training text. “By hand” is
transformers with the activation written out in torch; |Δ log p| compares it with {escape(host)} token by
token. On the part of the text that the own formula was measured on, swish has {p["part_right"]:.3f}.</p>
<ul>{checks}</ul>
<h2>What it writes</h2>
{texts(facts)}
<h2>A formula of your own</h2>
<p>An override replaces the activation by an expression; nothing is compiled by the user and no code of the
host changes. Here a clamped line takes the sigmoid's place.</p>
<pre>{escape(facts["own"])}</pre>
<p><b>{escape(facts["prompts"][0])}</b>{own_text}</p>
<h2>What is not certain is refused</h2>
<pre>{escape(facts["refused"])}</pre>
<p class="soft">Engine start: {facts["start_seconds"]["with"]:.1f} s with flexact,
{facts["start_seconds"]["without"]:.1f} s without. The whole demonstration took {facts["seconds"]:.0f} s.</p>
</html>
"""
