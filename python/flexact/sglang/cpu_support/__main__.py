"""`python -m flexact.sglang.cpu_support [install|uninstall]`: one line says what was done."""

from __future__ import annotations

import sys

from flexact.sglang import cpu_support


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    commands = {"install": cpu_support.install, "uninstall": cpu_support.uninstall}
    name = arguments[0] if arguments else "install"
    if len(arguments) > 1 or name not in commands:
        print(f"usage: python -m flexact.sglang.cpu_support [{'|'.join(commands)}]", file=sys.stderr)
        return 2
    try:
        print(f"SGLang on a CPU: {commands[name]()}")
    except (OSError, RuntimeError) as error:
        print(f"SGLang on a CPU: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
