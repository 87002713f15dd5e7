"""`python -m flexact …` is the `flexact` command of this interpreter's environment."""

from __future__ import annotations

import os
import sys
import sysconfig


def main() -> None:
    """Runs the command that was installed with this package, in place of this process."""
    command = os.path.join(sysconfig.get_path("scripts"), "flexact")
    if not os.access(command, os.X_OK):
        sys.exit(
            "flexact: this installation lacks the command: CLI11 and fmt were missing when it was built.\n"
            "Debian and Ubuntu: apt-get install libcli11-dev libfmt-dev; then install flexact again."
        )
    os.execv(command, [command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
