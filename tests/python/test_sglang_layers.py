"""Loaded layers compute the configured activation: each against the formula written out here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang")

import sglang_in_process as host
import torch
from flexact.sglang import Stop
from tiny_models import build, edit_config
from torch.nn import functional as F
from transformers_reference import swish

BETA = 1.3
SWISH = {"hidden_act": "swish", "activation_params": {"beta": BETA}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    built: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in built:
            built[family] = build(family, tmp_path_factory.mktemp(family))
        return built[family]

    return get


def rows(runner: Any) -> list[tuple[int, str, str, str]]:
    """(layer, role, function, computed by) of every layer, in order."""
    loaded = runner._flexact
    described = [layer.describe() for layer in (*loaded.experts, *loaded.mlps)]
    return sorted((row["layer"], row["role"], row["function"], row["computed_by"]) for row in described)


def gated_mlp(module: Any, x: torch.Tensor, f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    gate, up = F.linear(x, module.gate_up_proj.weight).chunk(2, -1)
    return F.linear(f(gate) * up, module.down_proj.weight)


def experts(
    w13: torch.Tensor, w2: torch.Tensor, x: torch.Tensor, weights: Any, ids: Any, f: Any
) -> torch.Tensor:
    out = torch.zeros_like(x)
    for token in range(x.shape[0]):
        for slot in range(ids.shape[1]):
            expert = int(ids[token, slot])
            if 0 <= expert < w13.shape[0]:
                gate, up = (w13[expert] @ x[token]).chunk(2)
                out[token] += weights[token, slot] * (w2[expert] @ (f(gate, expert) * up))
    return out


def dispatch(layer: Any, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    from sglang.srt.layers.moe.token_dispatcher.standard import StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    return layer.run_moe_core(
        StandardDispatchOutput(x, None, StandardTopKOutput(weights, ids, None))
    ).hidden_states


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def mixtral_weights(path: Path, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = weights_of(path)
    prefix = f"model.layers.{layer}.block_sparse_moe.experts"

    def stack(name: str) -> torch.Tensor:
        return torch.stack([tensors[f"{prefix}.{e}.{name}.weight"] for e in range(4)])

    return torch.cat((stack("w1"), stack("w3")), 1), stack("w2")


def routed_input() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(7, 64, generator=generator) * 2
    weights, ids = torch.rand(7, 4, generator=generator).topk(2)
    return x, weights, ids


@pytest.mark.parametrize(
    ("family", "attribute"), [("llama", "model"), ("gemma2", "model"), ("deepseek_v2", "model")]
)
def test_a_dense_mlp_whose_class_insists_on_one_function_takes_any(
    folder: Callable[[str], Path], family: str, attribute: str
) -> None:
    if family == "gemma2":  # SGLang 0.5.21 reads a key that transformers 5 no longer writes
        edit_config(folder(family), hidden_act="gelu_pytorch_tanh")
    override = {**SWISH, "hidden_activation": "swish"} if family == "gemma2" else SWISH
    module = getattr(host.load(folder(family), override).model, attribute).layers[0].mlp
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    expected = gated_mlp(module, x, swish(BETA))
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gated_mlp(module, x, F.silu), expected, rtol=1e-2, atol=1e-3)


def test_a_unary_mlp_takes_any_function(folder: Callable[[str], Path]) -> None:
    module = host.load(folder("apertus"), SWISH).model.model.layers[1].mlp
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    h = swish(BETA)(F.linear(x, module.up_proj.weight))
    torch.testing.assert_close(module(x)[0], F.linear(h, module.down_proj.weight)[0], rtol=1e-4, atol=1e-5)


def test_a_unary_mlp_of_a_name_in_the_hosts_registry_is_left_alone(folder: Callable[[str], Path]) -> None:
    """StarCoder2's gelu_pytorch_tanh is a module that SGLang shares between layers: proven, not replaced."""
    runner = host.load(folder("starcoder2"))
    assert {row[1:] for row in rows(runner)} == {("dense", "gelu_tanh", "sglang")}
    module = host.load(folder("starcoder2"), SWISH).model.model.layers[1].mlp
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    h = swish(BETA)(F.linear(x, module.c_fc.weight, module.c_fc.bias))
    torch.testing.assert_close(
        module(x), F.linear(h, module.c_proj.weight, module.c_proj.bias), rtol=1e-4, atol=1e-5
    )
    assert {row[3] for row in rows(host.load(folder("starcoder2")))} == {
        "sglang"
    }  # the shared one is untouched


def test_learned_values_come_from_the_checkpoint(folder: Callable[[str], Path]) -> None:
    """xIELU as its paper writes it; SGLang's own module keeps the parameters in bfloat16."""
    module = host.load(folder("apertus")).model.model.layers[1].mlp
    tensors = weights_of(folder("apertus"))
    alpha_p, alpha_n = (
        tensors[f"model.layers.1.mlp.act_fn.{name}"].float() for name in ("alpha_p", "alpha_n")
    )
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    h = F.linear(x, module.up_proj.weight)
    positive = F.softplus(alpha_p) * h * h + 0.5 * h
    negative = (torch.expm1(torch.clamp(h, max=-1e-6)) - h) * (0.5 + F.softplus(alpha_n)) + 0.5 * h
    expected = F.linear(torch.where(h > 0, positive, negative), module.down_proj.weight)
    torch.testing.assert_close(module(x)[0], expected[0], rtol=1e-4, atol=1e-5)


def test_experts_compute_the_configured_function(folder: Callable[[str], Path]) -> None:
    runner = host.load(folder("mixtral"), SWISH)
    x, weights, ids = routed_input()
    for layer in (0, 1):
        w13, w2 = mixtral_weights(folder("mixtral"), layer)
        module = runner._flexact.experts[layer].module
        expected = experts(w13, w2, x, weights, ids, lambda g, e: swish(BETA)(g))
        torch.testing.assert_close(dispatch(module, x, weights, ids), expected, rtol=1e-4, atol=1e-4)


def test_ids_of_other_ranks_contribute_nothing(folder: Callable[[str], Path]) -> None:
    module = host.load(folder("mixtral"), SWISH)._flexact.experts[0].module
    w13, w2 = mixtral_weights(folder("mixtral"), 0)
    x, weights, ids = routed_input()
    ids[0, 0] = ids[3, 1] = -1
    ids[5] = -1
    for kind in (torch.int64, torch.int32):
        out = dispatch(module, x, weights, ids.to(kind))
        torch.testing.assert_close(
            out, experts(w13, w2, x, weights, ids, lambda g, e: swish(BETA)(g)), rtol=1e-4, atol=1e-4
        )
        assert out[5].abs().max() == 0


def test_no_tokens_give_no_rows(folder: Callable[[str], Path]) -> None:
    module = host.load(folder("mixtral"), SWISH)._flexact.experts[0].module
    out = dispatch(module, torch.empty(0, 64), torch.empty(0, 2), torch.empty(0, 2, dtype=torch.int64))
    assert out.shape == (0, 64)


def test_values_by_layer_and_by_expert(folder: Callable[[str], Path]) -> None:
    betas = [[1.0, 1.5, 2.0, 2.5], [0.5, 0.6, 0.7, 0.8]]
    override = {
        "hidden_act": "swish",
        "activation_params": {"beta": {"per_layer": [{"per_expert": row} for row in betas]}},
    }
    runner = host.load(folder("mixtral"), override)
    x, weights, ids = routed_input()
    for layer, row in enumerate(betas):
        w13, w2 = mixtral_weights(folder("mixtral"), layer)
        expected = experts(w13, w2, x, weights, ids, lambda g, e, row=row: swish(row[e])(g))
        actual = dispatch(runner._flexact.experts[layer].module, x, weights, ids)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_each_role_has_its_own_value(folder: Callable[[str], Path]) -> None:
    betas = {"routed": 1.2, "shared": 1.7, "dense": 0.8}
    runner = host.load(folder("deepseek_v2"), {"hidden_act": "swish", "activation_params": {"beta": betas}})
    assert [(layer, role) for layer, role, _, by in rows(runner) if by == "flexact"] == [
        (0, "dense"),
        (1, "routed"),
        (1, "shared"),
        (2, "routed"),
        (2, "shared"),
    ]
    layers = runner.model.model.layers
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    for module, role in ((layers[0].mlp, "dense"), (layers[1].mlp.shared_experts, "shared")):
        torch.testing.assert_close(module(x), gated_mlp(module, x, swish(betas[role])), rtol=1e-4, atol=1e-5)


def test_an_expression_of_the_users_own(folder: Callable[[str], Path]) -> None:
    override = {
        "hidden_act": "expr",
        "activation_params": {"expr": "tanh(g)*sigmoid(k*g)*u", "k": 0.7},
    }
    runner = host.load(folder("mixtral"), override)
    w13, w2 = mixtral_weights(folder("mixtral"), 0)
    x, weights, ids = routed_input()
    expected = experts(w13, w2, x, weights, ids, lambda g, e: torch.tanh(g) * torch.sigmoid(0.7 * g))
    torch.testing.assert_close(
        dispatch(runner._flexact.experts[0].module, x, weights, ids), expected, rtol=1e-4, atol=1e-4
    )


def test_a_value_from_the_checkpoint(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = build("llama", tmp_path / "learned")
    save_file(
        {f"beta.{layer}": torch.tensor(0.5 + layer) for layer in range(2)}, path / "learned.safetensors"
    )
    override = {"hidden_act": "swish", "activation_params": {"beta": {"tensor": "beta.{layer}"}}}
    # The loader of this folder would offer the extra tensors to the model, which does not know them.
    model = host.load(path, override, dummy_weights=True).model
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)) * 1e3
    for layer in range(2):
        module = model.model.layers[layer].mlp
        torch.testing.assert_close(module(x), gated_mlp(module, x, swish(0.5 + layer)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe", "deepseek_v2"])
def test_plain_silu_is_left_to_sglang(folder: Callable[[str], Path], family: str) -> None:
    runner = host.load(folder(family))
    assert {(function, by) for _, _, function, by in rows(runner)} <= {
        ("silu", "sglang"),
        ("swiglu", "sglang"),
    }
    from sglang.srt.layers.activation import SiluAndMul

    for mlp in runner._flexact.mlps:
        assert isinstance(mlp.module.act_fn, SiluAndMul)


def test_always_runs_silu_on_flexact_too(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights, ids = routed_input()
    stock = dispatch(host.load(folder("mixtral"))._flexact.experts[0].module, x, weights, ids)
    monkeypatch.setenv("FLEXACT_MOE", "always")
    ours = host.load(folder("mixtral"))._flexact.experts[0]
    assert ours.is_ours and ours.reason == "FLEXACT_MOE=always"
    torch.testing.assert_close(dispatch(ours.module, x, weights, ids), stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights(folder: Callable[[str], Path], dtype: str) -> None:
    runner = host.load(folder("mixtral"), SWISH, dtype=dtype)
    kind = getattr(torch, dtype)
    w13, w2 = (w.to(kind).float() for w in mixtral_weights(folder("mixtral"), 0))
    x, weights, ids = routed_input()
    out = dispatch(runner._flexact.experts[0].module, x.to(kind), weights, ids)
    assert out.dtype == kind
    expected = experts(w13, w2, x.to(kind).float(), weights, ids, lambda g, e: swish(BETA)(g))
    assert (out.float() - expected).abs().max() <= 2e-2 * expected.abs().max()


def test_the_hosts_copy_of_packed_weights_is_gone(folder: Callable[[str], Path]) -> None:
    layer = host.load(folder("mixtral"), SWISH)._flexact.experts[0]
    held = sum(getattr(layer.module, name).untyped_storage().nbytes() for name in ("w13_weight", "w2_weight"))
    stock = 4 * 4 * (2 * 96 * 64 + 64 * 96)
    assert layer.plan.resident_bytes + held <= 1.02 * stock
    assert layer.module.w13_weight.shape == (4, 192, 64)
    with pytest.raises(RuntimeError):  # a loader that tried to write would fail, not be lost
        layer.module.w13_weight.data[0].copy_(torch.zeros(192, 64))


class TestTheProof:
    """Loading ends where a layer computes something else; each way of being wrong is tried."""

    def test_a_kernel_that_writes_zeros(
        self, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flexact import moe

        monkeypatch.setattr(moe.Plan, "run", lambda self, x, *rest, **kwargs: torch.zeros_like(x))
        with pytest.raises(Stop, match=r"layers\.0.*does not compute swish.*relative error 1"):
            host.load(folder("mixtral"), SWISH)

    def test_a_kernel_with_another_value(
        self, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flexact import moe

        real = moe.Plan.run
        monkeypatch.setattr(
            moe.Plan,
            "run",
            lambda self, *args, **kwargs: real(self, *args, activation_values=torch.tensor([[1.0]])),
        )
        with pytest.raises(Stop, match="does not compute swish"):
            host.load(folder("mixtral"), SWISH)

    def test_the_hosts_kernel_with_another_function(
        self, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sglang.srt.layers.activation import SiluAndMul

        monkeypatch.setattr(
            SiluAndMul, "forward_native", lambda self, x: F.gelu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1]
        )
        with pytest.raises(Stop, match=r"does not compute .* by SGLang's kernel"):
            host.load(folder("mixtral"))

    def test_an_activation_that_is_not_the_configured_one(
        self, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import flexact.dense

        assert flexact.dense  # it registers the operator
        monkeypatch.setattr(
            torch.ops.flexact,
            "act_and_mul",
            lambda x, *args, **kwargs: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1],
        )
        with pytest.raises(Stop, match="still computes another function"):
            host.load(folder("llama"), SWISH)

    @pytest.mark.parametrize("beta", [1.02, 0.98])
    def test_a_beta_that_is_off_by_two_percent(self, folder: Callable[[str], Path], beta: float) -> None:
        """The probe values tell it from silu in every format, so silu would not be taken for it."""
        for dtype in ("float32", "bfloat16", "float16"):
            override = {"hidden_act": "swish", "activation_params": {"beta": beta}}
            runner = host.load(folder("llama"), override, dtype=dtype)
            assert all(mlp.is_ours for mlp in runner._flexact.mlps)

    def test_a_layer_that_did_not_run_in_the_first_step(self, folder: Callable[[str], Path]) -> None:
        from types import SimpleNamespace

        from flexact.sglang import _model

        runner = host.load(folder("mixtral"), SWISH)
        empty = SimpleNamespace(input_ids=torch.zeros(0))
        assert _model.forward(lambda self, batch: "no tokens yet", runner, empty) == "no tokens yet"
        with pytest.raises(Stop, match=r"2 of 2 layers .* did not run"):
            _model.forward(lambda self, batch: None, runner, SimpleNamespace(input_ids=torch.zeros(3)))


def test_the_report_is_plain_data(folder: Callable[[str], Path]) -> None:
    from flexact.sglang import _report

    summary = _report.summary(host.load(folder("deepseek_v2"), SWISH)._flexact)
    assert json.loads(json.dumps(summary)) == summary
    assert {row["role"] for row in summary["experts"] + summary["mlps"]} == {"routed", "shared", "dense"}
    assert all(row["formula"] == "g*sigmoid(beta*g)*u" for row in summary["experts"])
