"""`python -m flexact …` is the `flexact` command of this interpreter's environment.

`tune` is Python behind that command too, so here it needs no command: it also runs where the package was
unpacked rather than installed.
"""

from __future__ import annotations

import os
import sys
import sysconfig


def main() -> None:
    """Runs the command that was installed with this package, in place of this process."""
    if sys.argv[1:2] == ["tune"]:
        from flexact.triton import tune

        sys.exit(tune.main(sys.argv[2:]))
    command = os.path.join(sysconfig.get_path("scripts"), "flexact")
    if not os.access(command, os.X_OK):
        sys.exit(
            f"flexact: there is no {command}.\n"
            "Either the package was unpacked rather than installed, or CLI11 and fmt were missing when it\n"
            "was built (Debian and Ubuntu: apt-get install libcli11-dev libfmt-dev; then install again).\n"
            "`python -m flexact tune` runs without it."
        )
    os.execv(command, [command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
