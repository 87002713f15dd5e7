"""`flexact serve …`: SGLang's own launcher, with the plugin required in every process.

The arguments are SGLang's. Without a GPU, those of its CPU engine are filled in where they are not
given. A configuration that does not resolve ends with one message and exit code 2.
"""

from __future__ import annotations

import os
import sys

from flexact.sglang._stop import EXIT_CODE, Stop


def main(arguments: list[str]) -> int:
    """Runs the server until it ends; returns the exit code."""
    from flexact.sglang import _server_args

    if absence := _server_args.plugin_absence():
        print(f"flexact: SGLang would serve without the plugin: {absence}", file=sys.stderr)
        return EXIT_CODE
    try:
        import sglang  # noqa: F401
    except ImportError as error:
        print(f"flexact: SGLang cannot be imported here ({error}); see docs/sglang.md", file=sys.stderr)
        return EXIT_CODE
    arguments = with_defaults(arguments)
    from sglang.srt.utils import kill_process_tree

    try:
        return _serve(arguments)
    except Stop as reason:
        return reason.code
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


def with_defaults(arguments: list[str]) -> list[str]:
    """SGLang's arguments, completed for its CPU engine where there is no GPU."""
    from flexact.sglang import _server_args

    given = {argument.split("=", 1)[0] for argument in arguments if argument.startswith("--")}
    device = (
        arguments[arguments.index("--device") + 1 : arguments.index("--device") + 2]
        if "--device" in given
        else ["cpu"]
    )
    if device != ["cpu"] or _server_args.has_gpu():
        return arguments
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    for name, value in _server_args.CPU_DEFAULTS.items():
        flag = "--" + name.replace("_", "-")
        if flag not in given:
            arguments = [*arguments, flag, str(value)]
    return arguments


def _serve(arguments: list[str]) -> int:
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    from flexact.sglang import _hooks

    load_plugins()
    if not _hooks.is_installed():
        print("flexact: SGLang did not load the plugin (its log says why)", file=sys.stderr)
        return EXIT_CODE
    run_server(prepare_server_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
