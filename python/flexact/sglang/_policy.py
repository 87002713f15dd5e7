"""Server options that the plugin cannot guarantee anything under, refused by name before a start.

Each row is a reason; nothing here is about a kernel's speed. What only a loaded layer can tell (its
class, its weights' format) is refused where the layer is built: `_experts`, `_mlps`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flexact.sglang._stop import stop


@dataclass(frozen=True)
class Option:
    """One option: `active` says whether it is on, `reason` why it cannot go with the plugin's layers."""

    name: str
    active: Callable[[Any], bool]
    reason: str
    experts_only: bool = True


def _is_set(field: str, *off: Any) -> Callable[[Any], bool]:
    return lambda args: getattr(args, field, None) not in (None, False, 0, *off)


_MOVES_EXPERTS = "it moves or replaces expert weights, and flexact holds them packed or by their addresses"
_ROUTES_AROUND = "its tokens reach the experts by a path that is not hooked"

OPTIONS = (
    Option("--moe-a2a-backend (expert all-to-all)", _is_set("moe_a2a_backend", "none"), _ROUTES_AROUND),
    Option("--enable-eplb (expert rebalancing)", _is_set("enable_eplb"), _MOVES_EXPERTS),
    Option("--ep-num-redundant-experts", _is_set("ep_num_redundant_experts"), _MOVES_EXPERTS),
    Option("--init-expert-location", _is_set("init_expert_location", "trivial"), _MOVES_EXPERTS),
    Option("--elastic-ep-backend", _is_set("elastic_ep_backend"), _MOVES_EXPERTS),
    Option("--enable-dwdp", _is_set("enable_dwdp"), _MOVES_EXPERTS),
    Option("--kt-weight-path (KTransformers)", _is_set("kt_weight_path"), _ROUTES_AROUND),
    Option("--cpu-offload-gb", _is_set("cpu_offload_gb"), _MOVES_EXPERTS),
    Option("--offload-group-size", _is_set("offload_group_size", -1), _MOVES_EXPERTS),
    Option("--weight-cache-mode", _is_set("weight_cache_mode", "off"), _MOVES_EXPERTS),
    Option(
        "--enable-torch-compile",
        _is_set("enable_torch_compile"),
        "a packed layer is not something that torch.compile can trace",
    ),
    Option(
        "--speculative-algorithm (a draft model)",
        _is_set("speculative_algorithm", "NGRAM"),
        "a draft model's layers are numbered and configured in ways that the plugin cannot verify",
        experts_only=False,
    ),
)


def check_options(args: Any, *, custom_experts: bool, custom: bool) -> None:
    """Ends the process where an option excludes layers that SGLang would not run by itself.

    Args:
        args: SGLang's server arguments.
        custom_experts: Whether routed experts need another function than SGLang's default.
        custom: Whether any layer does.
    """
    for option in OPTIONS:
        if (custom_experts if option.experts_only else custom) and option.active(args):
            what = (
                "experts with their own activation"
                if option.experts_only
                else "a model with its own activation"
            )
            stop(f"{option.name} is not supported with {what}: {option.reason}. Leave the option out.")


def check_start(args: Any) -> None:
    """What the main process can already see: the configuration and the options together."""
    from flexact.sglang import _config

    if args is None:
        return
    model = _config.for_server(args)
    if model is not None:
        check_options(args, custom_experts=model.custom_experts, custom=model.custom)
