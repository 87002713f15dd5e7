"""SGLang's choice of expert kernels, where it would get in the way of layers that flexact computes.

`--moe-runner-backend` decides how weights are laid out, which form the router's output has and which ids
reach the experts, and some values make a quantisation method raise on a GPU whose stock kernel cannot run
it. Where flexact computes a model's experts, the flag is read as "auto", under which all methods hold the
checkpoint's layout until SGLang repacks it; and that is left out (`_formats`).
"""

from __future__ import annotations

from typing import Any

from flexact.sglang import _host, _switches


def set_aside(plan: Any) -> str | None:
    """Reads the flag as "auto" where flexact computes this model's experts.

    Args:
        plan: The model's `ModelPlan`.

    Returns:
        The flag's value where that is another one, else None.
    """
    if not _all_ours(plan):
        return None
    from sglang.srt.layers.moe import utils

    before = utils.get_moe_runner_backend()
    if before == utils.MoeRunnerBackend.AUTO:
        return None
    utils.get_flags().moe.runner_backend = utils.MoeRunnerBackend.AUTO
    return str(getattr(before, "value", before))


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
