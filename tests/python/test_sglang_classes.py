"""Classes of SGLang that are written in ways of their own: still the configured function, or a reason."""

from __future__ import annotations

import json
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
SWISH = {"activation_params": {"name": "swish", "beta": BETA}}


def written(folder: Path, **keys: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "vocab_size": 384} | keys))
    return folder


@pytest.fixture
def lfm2(tmp_path: Path) -> Path:
    return written(
        tmp_path,
        architectures=["Lfm2ForCausalLM"],
        model_type="lfm2",
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["full_attention", "full_attention"],
        block_auto_adjust_ff_dim=False,
    )


def described(runner: Any) -> list[dict[str, Any]]:
    return [layer.describe() for layer in (*runner._flexact.experts, *runner._flexact.mlps)]


def test_an_activation_that_the_class_calls_in_its_code_is_computed_between_the_projections(
    lfm2: Path,
) -> None:
    """LFM2 calls silu itself, so there is no module to replace."""
    runner = host.load(lfm2, SWISH, dummy_weights=True)
    module = runner.model.model.layers[1].feed_forward
    for linear in (module.w1, module.w2, module.w3):
        torch.nn.init.normal_(linear.weight, std=0.2)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))

    def expected(f: Any) -> torch.Tensor:
        return F.linear(f(F.linear(x, module.w1.weight)) * F.linear(x, module.w3.weight), module.w2.weight)

    torch.testing.assert_close(module(x), expected(swish(BETA)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected(F.silu), expected(swish(BETA)), rtol=1e-2, atol=1e-3)
    assert {(row["computed_by"], row["reason"]) for row in described(runner)} == {
        ("flexact", "computed between its projections")
    }
    assert described(runner)[1]["calls"] == 1


def test_what_the_class_does_beside_its_activation_is_not_thrown_away(
    lfm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor after the activation would be lost: the class is not proven to be its family's own."""
    from sglang.srt.models.lfm2 import Lfm2MLP

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(x)[0]) * self.w3(x)[0] * 1.25)[0]

    monkeypatch.setattr(Lfm2MLP, "forward", forward)
    with pytest.raises(Stop, match=r"Lfm2MLP computes another function, written into the class itself"):
        host.load(lfm2, SWISH, dummy_weights=True)


def test_gate_and_up_that_alternate_and_a_limit_that_the_class_forgets(tmp_path: Path) -> None:
    """Phi-3-small reads gegelu_limit and computes without it."""
    folder = written(
        tmp_path,
        architectures=["Phi3SmallForCausalLM"],
        model_type="phi3",
        gegelu_limit=4.0,
        hidden_act="gegelu",
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    from sglang.srt.models.phi3_small import Phi3SmallMLP

    host.prepare(str(folder))
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"model_type": "phi3small"})
    )
    from types import SimpleNamespace

    from flexact.sglang import _config, _mlps, _model

    plan = _config.ModelPlan(folder / "config.json", "")
    config = SimpleNamespace(hidden_act="gegelu", hidden_size=64, gegelu_limit=4.0, intermediate_size=96)
    module = Phi3SmallMLP(config).float()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    _model._loading = _model.Loading(plan, is_draft=False)
    try:
        mlp = _mlps.Mlp("mlp", module, _mlps._projections(module), 0, "dense", plan.entry(0, "dense"))
        mlp.install(torch.float32, plan.family_entry(0, "dense"))
    finally:
        _model._loading = None
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    h = F.linear(x, module.up_proj.weight, module.up_proj.bias)
    gate, up = h[..., 0::2].clamp(max=4), h[..., 1::2].clamp(-4, 4)
    expected = F.linear(
        gate * torch.sigmoid(1.702 * gate) * (up + 1), module.down_proj.weight, module.down_proj.bias
    )
    assert h.max() > 4 and mlp.is_ours
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_an_mlp_that_lies_in_the_decoder_layer_itself(tmp_path: Path) -> None:
    """OPT has its projections beside its attention."""
    folder = written(
        tmp_path,
        architectures=["OPTForCausalLM"],
        model_type="opt",
        ffn_dim=96,
        word_embed_proj_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        activation_function="relu",
    )
    assert {row["computed_by"] for row in described(host.load(folder, dummy_weights=True))} == {"sglang"}
    runner = host.load(folder, SWISH, dummy_weights=True)
    assert [(row["layer"], row["computed_by"]) for row in described(runner)] == [
        (0, "flexact"),
        (1, "flexact"),
    ]
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    for layer in runner.model.model.decoder.layers:
        torch.testing.assert_close(layer.activation_fn(x), swish(BETA)(x), rtol=1e-5, atol=1e-6)


def test_an_mlp_in_two_modules(tmp_path: Path) -> None:
    """BERT's way up and its way down lie in modules of their own."""
    folder = written(
        tmp_path,
        architectures=["BertModel"],
        model_type="bert",
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        position_embedding_type="absolute",
        hidden_act="gelu",
    )
    runner = host.load(folder, SWISH, dummy_weights=True)
    assert {row["computed_by"] for row in described(runner)} == {"flexact"}
    intermediate = runner.model.encoder.layer[1].intermediate
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    h = F.linear(x, intermediate.dense.weight, intermediate.dense.bias)
    torch.testing.assert_close(intermediate(x), swish(BETA)(h), rtol=1e-5, atol=1e-6)


def test_experts_that_are_modules_have_values_of_their_own(tmp_path: Path) -> None:
    """SGLang's Mixtral for quantised weights keeps each expert as an MLP."""
    folder = edit_config(build("mixtral", tmp_path), architectures=["QuantMixtralForCausalLM"])
    assert {(row["role"], row["computed_by"]) for row in described(host.load(folder))} == {
        ("routed", "sglang")
    }
    betas = [1.1, 1.4, 1.7, 2.0]
    override = {"activation_params": {"name": "swish", "beta": {"per_expert": betas}}}
    runner = host.load(folder, override)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    for expert, beta in zip(runner.model.model.layers[1].block_sparse_moe.experts, betas, strict=True):
        h = swish(beta)(F.linear(x, expert.w1.weight)) * F.linear(x, expert.w3.weight)
        torch.testing.assert_close(expert(x), F.linear(h, expert.w2.weight), rtol=1e-4, atol=1e-5)


def test_what_a_first_step_may_pass_by() -> None:
    """An encoder without input, an expert without tokens; never all of a layer."""
    from types import SimpleNamespace

    from flexact.sglang._model import _may_rest

    def mlp(name: str, layer: int, calls: int, **more: Any) -> Any:
        return SimpleNamespace(name=name, layer=layer, calls=calls, **({"role": "dense", "expert": 0} | more))

    ran, silent = mlp("experts.0", 0, 3, role="routed"), mlp("experts.1", 0, 0, role="routed")
    alone = mlp("experts.1", 1, 0, role="routed", expert=1)
    loaded = SimpleNamespace(mlps=[ran, silent, alone])
    assert _may_rest(silent, loaded) and not _may_rest(alone, loaded)
    encoder, decoder = mlp("model.encoder.layers.0", 0, 0), mlp("model.decoder.layers.0", 0, 1)
    assert _may_rest(encoder, SimpleNamespace(mlps=[encoder, decoder]))
    assert not _may_rest(encoder, SimpleNamespace(mlps=[encoder]))
    assert not _may_rest(mlp("model.layers.0.mlp", 0, 0), SimpleNamespace(mlps=[decoder]))


@pytest.fixture(scope="module")
def afmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("afmoe", tmp_path_factory.mktemp("afmoe"))


class TestExpertsByFunction:
    """AFMoE calls `fused_moe` on weights that it holds itself; SGLang has no CPU kernel for that."""

    @pytest.fixture
    def folder(self, afmoe: Path) -> Path:
        return afmoe

    def call(self, block: Any, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        from sglang.srt.layers.moe.topk import StandardTopKOutput
        from sglang.srt.models import afmoe

        return afmoe.fused_moe(
            x, w1=block.w1, w2=block.w2, topk_output=StandardTopKOutput(weights, ids, None)
        )

    def expected(self, folder: Path, x: torch.Tensor, weights: Any, ids: Any, f: Any) -> torch.Tensor:
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")

        def expert(number: int, name: str) -> torch.Tensor:
            return tensors[f"model.layers.1.mlp.experts.{number}.{name}.weight"]

        out = torch.zeros_like(x)
        for token in range(x.shape[0]):
            for slot, number in enumerate(ids[token].tolist()):
                gate, up = (expert(number, name) @ x[token] for name in ("gate_proj", "up_proj"))
                out[token] += weights[token, slot] * (expert(number, "down_proj") @ (f(gate) * up))
        return out

    @pytest.mark.parametrize("override", [None, SWISH], ids=["silu", "swish"])
    def test_are_computed_by_flexact(self, folder: Path, override: dict[str, Any] | None) -> None:
        runner = host.load(folder, override)
        (row,) = [row for row in described(runner) if row["role"] == "routed"]
        assert (row["layer"], row["computed_by"]) == (1, "flexact")
        assert {row["role"] for row in described(runner)} == {"routed", "shared", "dense"}
        block = runner.model.model.layers[1].mlp
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(7, 64, generator=generator) * 2
        weights, ids = torch.rand(7, 4, generator=generator).topk(2)
        f = swish(BETA) if override else F.silu
        expected = self.expected(folder, x, weights, ids, f)
        torch.testing.assert_close(self.call(block, x, weights, ids), expected, rtol=1e-4, atol=1e-5)
        assert runner._flexact.experts[0].calls == 1

    def test_one_copy_of_the_weights_stays(self, folder: Path) -> None:
        block = host.load(folder, SWISH).model.model.layers[1].mlp
        held = [block.w1, block.w2, *(p for expert in block.experts for p in expert.parameters())]
        assert {tensor.untyped_storage().nbytes() for tensor in held} == {4}

    def test_weights_that_are_not_the_models_go_to_sglang(self, folder: Path) -> None:
        block = host.load(folder, SWISH).model.model.layers[1].mlp
        other = type("Block", (), {"w1": torch.zeros(4, 96, 64), "w2": torch.zeros(4, 64, 48)})
        assert block is not other
        with pytest.raises(NotImplementedError):  # the host has no kernel for a CPU
            self.call(other, torch.zeros(1, 64), torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int64))

    def test_the_hosts_own_kernel_is_left_alone_where_it_has_one(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sglang.srt.utils

        monkeypatch.setattr(sglang.srt.utils, "cpu_has_amx_support", lambda: True)
        runner = host.load(folder)
        layer = runner._flexact.experts[0]
        assert layer.describe()["computed_by"] == "sglang" and layer.module.w13_weight.abs().max() > 0
        block = runner.model.model.layers[1].mlp
        with pytest.raises(NotImplementedError):  # this CPU has no such kernel after all
            self.call(block, torch.zeros(1, 64), torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int64))
        assert layer.calls == 1
        assert host.load(folder, SWISH)._flexact.experts[0].is_ours

    def test_a_call_for_another_function_of_the_hosts_is_refused(self, folder: Path) -> None:
        from types import SimpleNamespace

        from flexact.sglang import _functional

        layer = host.load(folder)._flexact.experts[0]
        plain = {"activation": "silu", "gemm1_alpha": None, "gemm1_clamp_limit": None, "swiglu_limit": None}
        _functional._require_plain(layer, SimpleNamespace(**plain))
        for change in ({"activation": "gelu"}, {"gemm1_clamp_limit": 7.0}):
            with pytest.raises(Stop, match="calls fused_moe with"):
                _functional._require_plain(layer, moe_runner_config=SimpleNamespace(**(plain | change)))

    def test_moe_off_is_refused_where_the_host_has_no_kernel(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FLEXACT_MOE", "off")
        with pytest.raises(Stop, match="FLEXACT_MOE=off"):
            host.load(folder)


class TestFamiliesThatNoFunctionDescribes:
    """The references of Grok disagree: as long as nobody asks for anything, it runs as SGLang has it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return written(
            tmp_path,
            architectures=["Grok1ForCausalLM"],
            model_type="llama",  # the published file brings a class of its own along
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            rms_norm_eps=1e-6,
            max_position_embeddings=128,
            attn_output_multiplier=0.1,
            embedding_multiplier_scale=8.0,
            output_multiplier_scale=0.5,
        )

    def test_run_as_the_host_has_them(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from flexact.sglang import _report

        runner = host.load(folder, dummy_weights=True)
        report = _report.summary(runner._flexact)
        assert report["experts"] == report["mlps"] == []
        assert "references of Grok disagree" in report["set_aside"]
        assert "the model runs as SGLang has it, unverified" in capsys.readouterr().err

    def test_are_refused_where_something_is_asked_for(self, folder: Path) -> None:
        with pytest.raises(Stop, match="references of Grok disagree"):
            host.load(folder, SWISH, dummy_weights=True)
