"""What the plugin cannot guarantee ends the process, by name and with the reason, before a token."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

import sglang_in_process as host
import torch
from flexact.sglang import Stop
from tiny_models import build, edit_config

SWISH = {"hidden_act": "swish", "activation_params": {"beta": 1.3}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("llama", "mixtral", "deepseek_v2")
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in names}


def refusal(folder: Path, override: dict[str, Any] | None = SWISH, **kwargs: Any) -> str:
    with pytest.raises(Stop) as stopped:
        host.load(folder, override, **kwargs)
    assert stopped.value.code == 2
    return str(stopped.value)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("moe_a2a_backend", "deepep", "--moe-a2a-backend"),
        ("enable_eplb", True, "--enable-eplb"),
        ("ep_num_redundant_experts", 2, "--ep-num-redundant-experts"),
        ("init_expert_location", "placement.json", "--init-expert-location"),
        ("elastic_ep_backend", "mooncake", "--elastic-ep-backend"),
        ("kt_weight_path", "/weights", "--kt-weight-path"),
        ("cpu_offload_gb", 4, "--cpu-offload-gb"),
        ("weight_cache_mode", "daemon", "--weight-cache-mode"),
        ("enable_torch_compile", True, "--enable-torch-compile"),
        ("speculative_algorithm", "EAGLE", "--speculative-algorithm"),
    ],
)
def test_an_option_that_cannot_be_guaranteed_is_named(
    folders: dict[str, Path], option: str, value: Any, name: str
) -> None:
    message = refusal(folders["mixtral"], options={option: value})
    assert name in message and "activation" in message
    # Layers that SGLang itself runs correctly are none of the plugin's business.
    host.load(folders["mixtral"], options={option: value})


def test_a_draft_model_is_refused_for_dense_models_too(folders: dict[str, Path]) -> None:
    assert "draft model" in refusal(folders["llama"], options={"speculative_algorithm": "EAGLE3"})
    host.load(folders["llama"], SWISH, options={"speculative_algorithm": "NGRAM"})
    host.load(folders["llama"], SWISH, options={"enable_eplb": True})


def test_lora_on_experts_is_refused(folders: dict[str, Path]) -> None:
    from sglang.srt.lora.layers import FusedMoEWithLoRA

    experts = host.load(folders["mixtral"], SWISH)._flexact.experts[0].module
    with pytest.raises(
        Stop, match=r"LoRA adapter on experts .*layers.0.*swish|layers.0.*LoRA adapter on experts"
    ):
        FusedMoEWithLoRA(experts, None)


def test_replicated_weights_are_refused(folders: dict[str, Path]) -> None:
    experts = host.load(folders["mixtral"], SWISH)._flexact.experts[0].module
    with pytest.raises(Stop, match="packed"):
        experts.bind_full_expert_weights({})


def test_weights_can_be_neither_updated_nor_exported_after_packing(folders: dict[str, Path]) -> None:
    from sglang.srt.model_executor.model_runner_components.weight_exporter import WeightExporter
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater

    model = host.load(folders["mixtral"], SWISH).model
    packed = SimpleNamespace(get_model=lambda: model)
    for method in ("update_weights_from_disk", "update_weights_from_tensor", "update_weights_from_ipc"):
        success, message = getattr(WeightUpdater, method)(packed, None)
        assert not success and method in message and "packed" in message
    assert WeightExporter.get_weights_by_name(packed, "model.embed_tokens.weight") is None
    for method in ("save_remote_model", "save_sharded_model"):
        with pytest.raises(NotImplementedError, match=method):
            getattr(WeightExporter, method)(packed, "somewhere")


def test_a_functional_call_on_weights_that_no_module_holds_is_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.models import llama

    monkeypatch.setattr(llama, "fused_moe", lambda *args: None, raising=False)
    message = refusal(folders["llama"], None)
    assert "fused_moe" in message and "LlamaForCausalLM" in message and "not hooked" in message


def test_fused_shared_experts_of_another_activation_are_refused(folders: dict[str, Path]) -> None:
    from flexact.sglang import _config, _model
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    def build_layer(beta: Any) -> None:
        plan = _config.ModelPlan(
            folders["deepseek_v2"] / "config.json",
            json.dumps({"hidden_act": "swish", "activation_params": {"beta": beta}}),
        )
        _model._loading = _model.Loading(plan, is_draft=False)
        try:
            FusedMoE(
                num_experts=5,
                hidden_size=64,
                intermediate_size=48,
                layer_id=1,
                top_k=3,
                num_fused_shared_experts=1,
                params_dtype=torch.float32,
            )
        finally:
            _model._loading = None

    host.prepare(str(folders["deepseek_v2"]))
    build_layer(1.3)
    with pytest.raises(Stop, match=r"shared experts.*--disable-shared-experts-fusion"):
        build_layer({"routed": 1.3, "shared": 1.7, "dense": 1.0})


class TestConfigurations:
    def model_config(self, path: str, **kwargs: Any) -> Any:
        host.prepare_imports()
        from sglang.srt.configs.model_config import ModelConfig

        return ModelConfig(path, **kwargs)

    def refused(self, path: Any, **kwargs: Any) -> str:
        with pytest.raises(Stop) as stopped:
            self.model_config(str(path), **kwargs)
        return str(stopped.value)

    def test_gguf(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUF")
        assert "GGUF" in self.refused(tmp_path / "model.gguf")
        assert "GGUF" in self.refused(tmp_path)

    def test_mistral_format(self, tmp_path: Path) -> None:
        (tmp_path / "params.json").write_text("{}")
        assert "mistral-format" in self.refused(tmp_path)

    def test_mistral_format_by_the_hosts_own_rule(self, tmp_path: Path, folders: dict[str, Path]) -> None:
        folder = tmp_path / "Mistral-Large-3-test"
        folder.symlink_to(folders["llama"])
        assert "mistral-format" in self.refused(folder)

    def test_another_configuration_parser(self, folders: dict[str, Path]) -> None:
        assert "mistral" in self.refused(folders["llama"], model_config_parser="mistral")

    def test_a_folder_without_a_configuration(self, tmp_path: Path) -> None:
        assert "config.json" in self.refused(tmp_path)

    def test_a_name_whose_activation_nobody_knows(self, folders: dict[str, Path]) -> None:
        message = self.refused(folders["mixtral"], model_override_args='{"hidden_act": "no_such_fn"}')
        assert "/hidden_act" in message and "no_such_fn" in message

    def test_a_parameter_that_the_function_lacks(self, folders: dict[str, Path]) -> None:
        override = '{"hidden_act": "swish", "activation_params": {"bet": 1.5}}'
        assert "/activation_params/bet" in self.refused(folders["mixtral"], model_override_args=override)

    def test_the_files_bytes_count_and_not_the_hosts_object(self, tmp_path: Path) -> None:
        """A duplicate key, which every JSON reader of the host drops silently."""
        folder = build("llama", tmp_path / "twice")
        path = folder / "config.json"
        path.write_text(
            path.read_text().replace('"hidden_act": "silu"', '"hidden_act": "silu", "hidden_act": "gelu"')
        )
        assert "hidden_act" in self.refused(folder)

    def test_a_hub_name_that_is_not_local(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from flexact.sglang import _config

        assert _config.locate("nobody/nothing", fetched=False) is None
        with pytest.raises(Stop, match="download it first"):
            _config.locate("nobody/nothing")

    def test_a_hub_name_in_the_cache_is_read_from_there(
        self, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub
        from flexact.sglang import _config

        snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_bytes((folders["llama"] / "config.json").read_bytes())
        (tmp_path / "models--some--model" / "refs").mkdir()
        (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
        real = huggingface_hub.try_to_load_from_cache
        monkeypatch.setattr(
            huggingface_hub,
            "try_to_load_from_cache",
            lambda *args, **kwargs: real(*args, cache_dir=tmp_path, **kwargs),
        )
        assert _config.locate("some/model") == snapshot / "config.json"

    def test_a_remote_checkpoint(self) -> None:
        from flexact.sglang import _config

        with pytest.raises(Stop, match="remote"):
            _config.locate("s3://bucket/model")

    def test_modelscope(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from flexact.sglang import _config

        monkeypatch.setenv("SGLANG_USE_MODELSCOPE", "true")
        with pytest.raises(Stop, match="ModelScope"):
            _config.locate("some/model")

    def test_the_two_attributes_of_the_model_configuration(self, folders: dict[str, Path]) -> None:
        plain = self.model_config(str(folders["mixtral"]))
        assert (plain.hidden_act, plain.activation_params) == ("silu", {})
        swish = self.model_config(str(folders["mixtral"]), model_override_args=json.dumps(SWISH))
        assert (swish.hidden_act, swish.activation_params) == ("swish", {"beta": 1.3})

    def test_a_file_that_changed_is_read_again(self, tmp_path: Path) -> None:
        folder = build("llama", tmp_path / "changing")
        assert self.model_config(str(folder)).hidden_act == "silu"
        edit_config(folder, hidden_act="gelu")
        assert self.model_config(str(folder)).hidden_act == "gelu"


def test_a_switch_with_a_meaningless_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from flexact.sglang import _switches

    monkeypatch.setenv("FLEXACT_MOE", "sometimes")
    with pytest.raises(Stop, match="FLEXACT_MOE='sometimes' is not one of auto, always, off"):
        _switches.check()


def test_moe_off_refuses_what_the_host_does_not_compute(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEXACT_MOE", "off")
    host.load(folders["mixtral"])
    assert "FLEXACT_MOE=off" in refusal(folders["mixtral"])


def test_a_model_outside_the_hooked_way_of_loading_is_refused(folders: dict[str, Path]) -> None:
    host.prepare(str(folders["llama"]))
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader.loader import _initialize_model

    with pytest.raises(Stop, match=r"outside ModelRunner\.load_model"):
        _initialize_model(ModelConfig(str(folders["llama"])), LoadConfig())
