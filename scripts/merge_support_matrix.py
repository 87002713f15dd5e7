"""Puts other conformance runs' rows into the support matrix and its page.

    python scripts/merge_support_matrix.py benchmark/results/triton_conformance_h100.json …

Each file has the form of docs/support_matrix.json, which the conformance program writes for this machine's
processor. The backends of a file take the place of what the matrix says of them; where a run was made stands
beside its rows. Files of one device, commit and command are parts of one run: processes that had some of the
functions each. Run it again after the conformance program has written the matrix anew.
"""

import json
import sys
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
PAIRINGS = ("concat", "up_first", "interleaved", "none")
FORMATS = (
    "bf16", "fp16", "fp32", "fp8_block", "fp8_tensor", "fp8_channel", "mxfp4", "nvfp4", "mxfp4_fp8",
)  # fmt: skip


def text_of(matrix):
    """JSON with a row a line, as the conformance program writes it."""
    parts = []
    for key, value in matrix.items():
        if isinstance(value, list) and key != "columns":
            body = "[\n  " + ",\n  ".join(json.dumps(each, ensure_ascii=False) for each in value) + "\n ]"
        else:
            body = json.dumps(value, ensure_ascii=False)
        parts.append(f" {json.dumps(key)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def joined(parts):
    """Parts of one run as the run."""
    whole = {**parts[0], "rows": [], "runs": Counter(), "options": {}}
    for part in parts:
        # A format that is refused whatever the function is in every part.
        whole["rows"] += [row for row in part["rows"] if row[1] != "*" or row not in whole["rows"]]
        whole["runs"].update(part["runs"])
        for each in part["options"]:
            tally = whole["options"].setdefault(
                (each["backend"], each["option"]), {**each, "passed": 0, "failed": 0}
            )
            tally["passed"] += each["passed"]
            tally["failed"] += each["failed"]
    return whole | {"runs": dict(whole["runs"]), "options": list(whole["options"].values())}


def merged(matrix, run):
    """The matrix with a run's backends in place of its own rows about them."""
    if matrix["columns"] != run["columns"]:
        raise ValueError(f"columns {run['columns']}, the matrix has {matrix['columns']}")
    backends = sorted({row[0] for row in run["rows"]})
    facts = {key: run[key] for key in ("device", "commit", "command", "runs")}
    kept = {key: value for key, value in matrix.items() if key not in ("rows", "options", "others")}
    others = [each for each in matrix.get("others", []) if not set(each["backends"]) & set(backends)]
    return kept | {
        "others": [*others, {"backends": backends, **facts}],
        "rows": [row for row in matrix["rows"] if row[0] not in backends] + run["rows"],
        "options": [each for each in matrix["options"] if each["backend"] not in backends] + run["options"],
    }  # fmt: skip


def section(matrix, other):
    """The page's part about the backends of another run."""
    runs = ", ".join(f"{count} {word}" for word, count in other["runs"].items())
    lines = []
    for backend in other["backends"]:
        rows = [row for row in matrix["rows"] if row[0] == backend]
        cells = {tuple(row[1:4]): row for row in rows if row[1] != "*"}
        formats = [each for each in FORMATS if any(cell[2] == each for cell in cells)]
        lines += [
            f"## {backend}", "",
            f"Run on {other['device']}, commit {other['commit']}: {runs}; `{other['command']}`.",
            "A cell names the device on which it is proven; *claimed* that nothing is proven, – that it is "
            "refused.",
            "", "| function | pairing | " + " | ".join(formats) + " |", "|---" * (2 + len(formats)) + "|",
        ]  # fmt: skip
        for function in dict.fromkeys(cell[0] for cell in cells):
            for pairing in PAIRINGS:
                found = [cells.get((function, pairing, each)) for each in formats]
                if any(found):
                    words = [
                        "" if row is None else "–" if row[4] != "yes" else row[5] or "*claimed*"
                        for row in found
                    ]
                    lines.append(f"| {function} | {pairing} | " + " | ".join(words) + " |")
        whole = [row for row in rows if row[1] == "*"]
        if whole:
            lines += ["", "Refused whatever the function:", ""]
            lines += [f"- `{row[3]}`: {row[4].removeprefix('no: ')}" for row in whole]
        lines += ["", "| option | runs passed | failed |", "|---|---|---|"]
        lines += [
            f"| {each['option']} | {each['passed']} | {each['failed']} |"
            for each in matrix["options"]
            if each["backend"] == backend
        ]
        lines.append("")
    return "\n".join(lines)


def page_of(page, matrix):
    """The page with the sections of other runs at its end."""
    names = {f"## {backend}" for other in matrix["others"] for backend in other["backends"]}
    kept, skipping = [], False
    for line in page.splitlines():
        if line.startswith("## "):
            skipping = line in names
        if not skipping:
            kept.append(line)
    return "\n".join(kept).rstrip() + "\n\n" + "\n".join(section(matrix, each) for each in matrix["others"])


def main(files, docs=DOCS):
    matrix = json.loads((docs / "support_matrix.json").read_text())
    runs = {}
    for file in files:
        run = json.loads(Path(file).read_text())
        runs.setdefault((run["device"], run["commit"], run["command"]), []).append(run)
    for parts in runs.values():
        matrix = merged(matrix, joined(parts))
    (docs / "support_matrix.json").write_text(text_of(matrix))
    page = docs / "support-matrix.md"
    page.write_text(page_of(page.read_text(), matrix))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
