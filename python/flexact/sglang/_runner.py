"""SGLang's choice of expert kernels, where it would get in the way of layers that flexact computes.

`--moe-runner-backend` decides how weights are laid out, which form the router's output has and which ids
reach the experts, and some values make a quantisation method raise on a GPU whose stock kernel cannot run
it. Where flexact computes a model's experts, the flag is read as "auto", under which all methods hold the
checkpoint's layout until SGLang repacks it; and that is left out (`_formats`). This happens before SGLang
checks its arguments against each other, and again before a model is built, whose configuration SGLang may
have fetched in between. The value "cutlass" is kept as the wish for that backend (`_experts`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flexact.sglang import _host, _switches

# Where the flag's value stays on SGLang's arguments, which keep it on the way to their processes.
_KEPT = "_flexact_moe_runner"


def check_arguments(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around what resolves and checks `ServerArgs`: a combination that means nothing here is not refused."""
    from flexact.sglang import _config

    value = self.moe_runner_backend
    if value != "auto" and not hasattr(self, _KEPT):
        plan = _config.for_server(self)
        if plan is not None and _all_ours(plan):
            self.moe_runner_backend = "auto"
            setattr(self, _KEPT, value)
    return original(self, *args, **kwargs)


def set_aside(plan: Any, args: Any) -> str | None:
    """Reads the flag as "auto" where flexact computes this model's experts.

    Args:
        plan: The model's `ModelPlan`.
        args: SGLang's arguments.

    Returns:
        The flag's value where that is another one, else None.
    """
    if not _all_ours(plan):
        return None
    given = getattr(args, _KEPT, None)
    from sglang.srt.layers.moe import utils

    before = utils.get_moe_runner_backend()
    if before == utils.MoeRunnerBackend.AUTO:
        return given
    utils.get_flags().moe.runner_backend = utils.MoeRunnerBackend.AUTO
    # What SGLang made of "auto" is no wish of anybody's.
    return given or str(getattr(before, "value", before))


def _all_ours(plan: Any) -> bool:
    """Whether it is certain before a layer is built that SGLang's kernels cannot compute the experts."""
    import flexact

    mode = _switches.value("FLEXACT_MOE")
    if mode == "off" or plan.set_aside:
        return False
    routed = [entry for _, role, entry in plan.entries() if role == "routed"]
    if mode == "always":
        return bool(routed)
    known = {flexact.Function.named(name).canonical for name in _host.FUNCTIONS}
    return any(not entry.gated or entry.activation.function.canonical not in known for entry in routed)
