"""What is taken for certain about SGLang's own expert kernels, and what is said about the layers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import flexact
from flexact.sglang._host import host_activation
from flexact.sglang._report import announce

NOTHING = {"activation": "silu", "gemm1_alpha": None, "gemm1_clamp_limit": None, "swiglu_limit": None}


def layer(device: str, method: str = "UnquantizedFusedMoEMethod", triton: bool = True, **config):
    runner_config = {"apply_router_weight_on_input": False, "no_combine": False} | config
    return SimpleNamespace(
        w13_weight=SimpleNamespace(device=SimpleNamespace(type=device)),
        quant_method=type(method, (), {})(),
        moe_ep_size=runner_config.pop("moe_ep_size", 1),
        moe_runner_config=SimpleNamespace(**runner_config),
        runner=SimpleNamespace(runner_backend=SimpleNamespace(is_triton=lambda: triton)),
    )


@pytest.mark.parametrize(
    ("device", "pairing", "chosen", "expected"),
    [
        ("cpu", "concat", {}, {"name": "swiglu"}),
        ("cpu", "concat", {"gemm1_clamp_limit": 7.0}, {"name": "swiglu"}),  # the loop ignores limits
        ("cpu", "concat", {"activation": "gelu"}, {"name": "geglu_tanh"}),
        (
            "cpu",
            "interleaved",
            {"gemm1_alpha": 1.5, "gemm1_clamp_limit": 7.0},
            {"name": "swiglu_oai", "alpha": 1.5, "limit": 7.0},
        ),
        ("cuda", "concat", {}, {"name": "swiglu"}),
        ("cuda", "concat", {"activation": "gelu"}, {"name": "geglu"}),
        ("cuda", "concat", {"swiglu_limit": 10}, {"name": "swiglu_clamp", "limit": 10}),
        ("cuda", "concat", {"gemm1_clamp_limit": 7.0}, {"name": "swiglu_step", "limit": 7.0}),
        (
            "cuda",
            "concat",
            {"gemm1_alpha": 1.7, "gemm1_clamp_limit": 7.0},
            {"name": "swiglu_oai", "alpha": 1.7, "limit": 7.0},
        ),
    ],
)
def test_a_kernel_that_is_known_gets_its_function(device, pairing, chosen, expected):
    known, reason = host_activation(layer(device), NOTHING | chosen, pairing)
    assert reason == ""
    assert known == flexact.Activation.from_json(json.dumps(expected)).gated()


@pytest.mark.parametrize(
    ("module", "pairing", "chosen", "reason"),
    [
        (layer("cpu", "Fp8MoEMethod"), "concat", {}, "Fp8MoEMethod"),
        (layer("cpu"), "none", {}, "gated"),
        (layer("cpu", moe_ep_size=2), "concat", {}, "other ranks"),
        (layer("cpu", apply_router_weight_on_input=True), "concat", {}, "router weight"),
        (layer("cpu", no_combine=True), "concat", {}, "combines"),
        (layer("cpu"), "concat", {"gemm1_alpha": 1.7}, "alternately"),
        (layer("cpu"), "concat", {"activation": "situ"}, "'situ'"),
        (layer("cuda"), "none", {}, "ungated"),
        (layer("cuda", "Mxfp4MoEMethod"), "concat", {}, "gpt_oss's function"),
        (layer("cuda", triton=False), "concat", {"gemm1_clamp_limit": 7.0}, "forward"),
        (layer("cuda", "W4AFp8MoEMethod"), "concat", {"swiglu_limit": 10}, "forward"),
        (layer("cuda"), "concat", {"swiglu_limit": 9}, "not known"),
        (layer("cuda"), "concat", {"gemm1_alpha": 1.7}, "not known"),
    ],
)
def test_a_kernel_that_is_not_known_is_unknown_with_the_reason(module, pairing, chosen, reason):
    known, said = host_activation(module, NOTHING | chosen, pairing)
    assert known is None
    assert reason in said


def test_mxfp4_kernels_are_known_where_nothing_is_left_to_their_defaults():
    chosen = NOTHING | {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0}
    known, _ = host_activation(layer("cuda", "Mxfp4MoEMethod"), chosen, "interleaved")
    assert known == flexact.Activation.from_json('{"name": "swiglu_oai", "alpha": 1.702, "limit": 7.0}')


@pytest.mark.parametrize(("verbosity", "lines"), [("0", 0), ("1", 1), ("2", 3)])
def test_verbosity_says_what_was_decided(monkeypatch, capsys, caplog, verbosity, lines):
    def described(name, by):
        row = {"name": name, "function": "silu", "computed_by": by, "reason": "its own kernel"}
        return SimpleNamespace(describe=lambda: row)

    experts, mlp = described("layers.0.experts", "flexact"), described("layers.0.mlp", "SGLang")
    activations = SimpleNamespace(warnings=["a limit without a value"], model_type="mixtral")
    plan = SimpleNamespace(activations=activations, path="some/model", set_aside="")
    monkeypatch.setenv("FLEXACT_VERBOSE", verbosity)
    announce(SimpleNamespace(plan=plan, experts=[experts], mlps=[mlp], computed_here=[experts]))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == lines
    assert "a limit without a value" in caplog.text
    if lines:
        assert out[0] == "flexact: 1 of 2 layers computed by flexact, the rest by SGLang"
    if lines == 3:
        assert out[1] == "flexact: layers.0.experts: silu by flexact (its own kernel)"
