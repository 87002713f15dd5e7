"""What the demonstration prints: headings, progress bars, tables."""

import shutil
import sys
import time


class Progress:
    """A bar for a long step; on something that is no terminal, a line at each quarter."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total = label, total
        self.started, self.printed = time.monotonic(), 0
        self.is_terminal = sys.stdout.isatty()
        self.set(0)

    def set(self, done: int) -> None:
        seconds = time.monotonic() - self.started
        share = done / self.total if self.total else 1.0
        if self.is_terminal:
            width = max(10, min(30, shutil.get_terminal_size().columns - len(self.label) - 30))
            bar = "█" * round(width * share) + "░" * (width - round(width * share))
            print(f"\r  {self.label} {bar} {done}/{self.total} {seconds:4.0f} s ", end="", flush=True)
        elif int(share * 4) > self.printed:
            self.printed = int(share * 4)
            print(f"  {self.label} {done}/{self.total} {seconds:.0f} s", flush=True)
        if done == self.total and self.is_terminal:
            print()


def heading(number: int, text: str) -> None:
    line = f"{number}  {text}"
    bold = sys.stdout.isatty()
    print(f"\n\033[1m{line}\033[0m" if bold else f"\n{line}")
    print("─" * len(line), flush=True)


def quote(prompt: str, text: str) -> None:
    """Prints a prompt and how the model goes on."""
    first = f"\033[1m{prompt}\033[0m" if sys.stdout.isatty() else f"[{prompt}]"
    print("\n  " + first + text.rstrip().replace("\n", "\n    "), flush=True)


def table(rows: list[list[str]], indent: str = "  ") -> None:
    """Prints rows of equal length, the first of which is the head; numbers stand right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        print(indent + "  ".join(cells).rstrip())
    sys.stdout.flush()
