"""flexact.transformers: the configured activation in every layer, or an error; never transformers' own."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.12")

import flexact  # noqa: E402
import flexact.transformers as adapter  # noqa: E402
from tiny_models import build, edit_config  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers_reference import Handwritten, greedy, load, swish  # noqa: E402
from transformers_sweep import check, handwrite, model_class, output, tiny, tiny_config  # noqa: E402

BETA = 1.7
SWISH = {"hidden_act": "swish", "activation_params": {"beta": BETA}}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder of a family, built once and copied for each use."""
    built: dict[str, Path] = {}

    def get(family: str, target: Path, **changes: Any) -> Path:
        if family not in built:
            built[family] = build(family, tmp_path_factory.mktemp(family))
        folder = target / family
        folder.mkdir(exist_ok=True)
        for file in built[family].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return edit_config(folder, **changes)

    return get


@pytest.fixture
def folder(checkpoints: Any, tmp_path: Path) -> Any:
    return lambda family, **changes: checkpoints(family, tmp_path, **changes)


def ours(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, experts_implementation="flexact", attn_implementation="eager", **options
    ).eval()


def near(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def experts_of(model: Any, layer: int = 0) -> Any:
    return model.model.layers[layer].mlp.experts


def storage_bytes(module: nn.Module, name: str) -> int:
    """Bytes of a parameter's memory, without asking the module for the parameter."""
    return dict.__getitem__(module.__dict__["_parameters"], name).untyped_storage().nbytes()


# --- Experts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_type", ["mixtral", "gpt_oss", "nemotron_h", "openai_privacy_filter", "deepseek_v4", "gemma4_text"]
)
def test_each_kind_of_experts_class_computes_its_own_and_the_configured_function(
    model_type: str, tmp_path: Path
) -> None:
    row = check(model_type, tmp_path)
    assert row["default"] <= 1e-5 and row["custom"] <= 1e-5, row
    assert row["without"] > 1e-3, "the custom function must show"


def test_experts_and_generation_follow_the_configuration(folder: Any) -> None:
    path = folder("mixtral", **SWISH)
    model, reference, plain = ours(path), load(path, lambda name: swish(BETA)), load(path)
    assert near(output(model), output(reference))
    assert not near(output(plain), output(reference), 1e-2)
    prompt = [3, 7, 11, 30]
    assert greedy(model, prompt, 12) == greedy(reference, prompt, 12) != greedy(plain, prompt, 12)


def test_without_activation_params_nothing_changes(folder: Any) -> None:
    path = folder("qwen3_moe")
    assert near(output(ours(path)), output(load(path)))


def test_bfloat16_rounds_less_than_the_eager_loop(folder: Any) -> None:
    path = folder("mixtral", **SWISH)
    exact = output(load(path, lambda name: swish(BETA)))
    eager = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.bfloat16, experts_implementation="eager", attn_implementation="eager"
    ).eval()
    for layer in eager.model.layers:
        layer.mlp.experts.act_fn = Handwritten(swish(BETA))
    error = (output(ours(path, torch.bfloat16)).float() - exact).abs().mean()
    assert error <= 1.2 * (output(eager).float() - exact).abs().mean()


def test_a_part_of_the_model_alone_is_held_back_too(folder: Any) -> None:
    model = ours(folder("deepseek_v2", **SWISH))
    with pytest.raises(flexact.ConfigError, match="convert"):
        model.model(torch.arange(3, 9)[None])
    adapter.convert(model)
    model.model(torch.arange(3, 9)[None])


def test_the_implementation_can_be_chosen_and_left_later(folder: Any) -> None:
    path = folder("mixtral", **SWISH)
    model, plain = load(path), load(path)
    expected = output(plain)
    model.set_experts_implementation("flexact")
    assert not near(output(model), expected, 1e-2)
    model.set_experts_implementation("eager")
    assert torch.equal(output(model), expected)


def test_a_model_built_without_a_loader_is_prepared_before_its_first_step(folder: Any) -> None:
    path = folder("mixtral", **SWISH)
    config = transformers.AutoConfig.from_pretrained(path)
    config._experts_implementation = "flexact"
    torch.manual_seed(1)
    model = transformers.MixtralForCausalLM(config).eval()
    output(model)
    assert [row["calls"] for row in adapter.explain(model)] == [1, 1]
    assert adapter.explain(model)[0]["function"] == "swish"


@pytest.mark.parametrize(
    ("params", "betas"),
    [
        ({"beta": {"per_layer": [0.5, 2.0]}}, {0: [0.5] * 4, 1: [2.0] * 4}),
        ({"beta": {"per_expert": [0.5, 1.0, 2.0, 4.0]}}, {0: [0.5, 1, 2, 4], 1: [0.5, 1, 2, 4]}),
        ({"beta": {"tensor": "betas.{layer}"}}, {0: [3.0] * 4, 1: [0.25, 0.5, 1.0, 2.0]}),
        (
            {"beta": {"routed": {"per_layer": [0.5, 2.0]}, "shared": 1, "dense": 1}},
            {0: [0.5] * 4, 1: [2.0] * 4},
        ),
    ],
    ids=["per_layer", "per_expert", "tensor", "role"],
)
def test_values_by_layer_expert_tensor_and_role(
    folder: Any, params: Any, betas: dict[int, list[float]]
) -> None:
    from safetensors.torch import save_file

    path = folder("mixtral", hidden_act="swish", activation_params=params)
    save_file(
        {"betas.0": torch.tensor([3.0]), "betas.1": torch.tensor([0.25, 0.5, 1.0, 2.0])},
        path / "values.safetensors",
    )
    model, reference = ours(path), load(path)
    for layer, row in betas.items():
        experts_of(reference, layer).forward = by_expert(experts_of(reference, layer), row)
    assert near(output(model), output(reference))


def by_expert(module: nn.Module, betas: list[float]) -> Any:
    """The block by its definition, one beta for each expert."""

    def forward(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for token in range(len(x)):
            for slot, expert in enumerate(ids[token].tolist()):
                g, u = (module.gate_up_proj[expert] @ x[token]).chunk(2)
                h = g * torch.sigmoid(betas[expert] * g) * u
                out[token] += weights[token, slot] * (module.down_proj[expert] @ h)
        return out

    return forward


def test_a_configuration_changed_in_the_program_counts(folder: Any) -> None:
    path = folder("mixtral")
    config = transformers.AutoConfig.from_pretrained(path)
    config.hidden_act, config.activation_params = "swish", {"beta": BETA}
    model = ours(path, config=config)
    assert near(output(model), output(load(path, lambda name: swish(BETA))))
    model.config.activation_params = {"beta": 0.5}
    adapter.prepare(model)
    assert near(output(model), output(load(path, lambda name: swish(0.5))))


def test_a_configuration_taken_back_in_the_program_counts(folder: Any) -> None:
    path = folder("mixtral", **SWISH)
    config = transformers.AutoConfig.from_pretrained(path)
    config.activation_params = None
    plain = output(load(path))
    assert near(output(ours(path, config=config)), plain)
    del config.activation_params
    assert near(output(ours(path, config=config)), plain)


def test_a_text_model_inside_another_is_resolved_by_its_own_part(tmp_path: Path) -> None:
    from flexact.transformers._model import experts

    config = tiny(transformers.Qwen3VLMoeConfig, {})
    cls = transformers.Qwen3VLMoeForConditionalGeneration
    torch.manual_seed(0)
    cls(config).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"]["activation_params"] = {"name": "swish", "beta": 1.3}
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = cls.from_pretrained(tmp_path, experts_implementation="flexact").eval()
    reference = cls.from_pretrained(tmp_path, experts_implementation="eager").eval()
    before = text_output(reference)
    assert handwrite(reference) == len(experts(model)) == 3
    assert near(text_output(model), text_output(reference)) and not near(text_output(model), before, 1e-3)
    model.config.text_config.activation_params = {"name": "relu"}
    adapter.prepare(model)
    assert {row["function"] for row in adapter.explain(model)} == {"relu"}


def test_values_may_be_tensors_of_the_model_itself(folder: Any) -> None:
    path = folder("mixtral")
    model = load(path)
    model.register_buffer("sharpness", torch.tensor([BETA]))
    model.config.hidden_act, model.config.activation_params = "swish", {"beta": {"tensor": "sharpness"}}
    model.set_experts_implementation("flexact")
    assert near(output(model), output(load(path, lambda name: swish(BETA))))
    model.config.activation_params = {"beta": {"tensor": "missing"}}
    with pytest.raises(flexact.ConfigError, match="missing"):
        adapter.prepare(model)


def test_a_hub_name_is_resolved_from_the_local_cache(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    path = folder("mixtral")
    model = load(path)
    asked: list[str] = []

    def cached(name: str, file: str, **options: Any) -> str:
        asked.append(f"{name}/{file}")
        return str(path / file)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    edit_config(path, hidden_act="swish", activation_params={"beta": {"per_layer": [BETA, BETA]}})
    model.config = transformers.AutoConfig.from_pretrained(path)
    model.config._name_or_path = "someone/model"
    for layer in model.model.layers:
        layer.mlp.experts.config = model.config
    model.set_experts_implementation("flexact")
    assert "someone/model/config.json" in asked
    assert near(output(model), output(load(path, lambda name: swish(BETA))))


def test_a_name_that_transformers_lacks_constructs_and_runs(folder: Any) -> None:
    params = {"expr": "g*sigmoid(b*g)*min(u, 2)", "b": 1.5}
    path = folder("mixtral", hidden_act="expr", activation_params=params)
    model = ours(path)
    reference = load(folder("mixtral", hidden_act="silu", activation_params=None))
    for layer in reference.model.layers:
        layer.mlp.experts.act_fn = None
        layer.mlp.experts.forward = formula(
            layer.mlp.experts, lambda g, u: g * torch.sigmoid(1.5 * g) * u.clamp(max=2)
        )
    assert near(output(model), output(reference))


def formula(module: nn.Module, function: Any) -> Any:
    def forward(x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        h = torch.einsum("tkih,th->tki", module.gate_up_proj[ids], x)
        y = torch.einsum("tkhi,tki->tkh", module.down_proj[ids], function(*h.chunk(2, -1)))
        return (y * weights[..., None]).sum(1)

    return forward


def test_such_a_name_raises_where_flexact_was_not_chosen(folder: Any) -> None:
    path = folder("mixtral", hidden_act="expr", activation_params={"expr": "x*tanh(x)"})
    with pytest.raises(flexact.Unsupported, match="no activation 'expr'"):
        output(load(path))


def test_ids_outside_the_range_contribute_nothing(folder: Any) -> None:
    module = experts_of(ours(folder("mixtral", **SWISH)))
    x, weights = torch.randn(5, 64), torch.rand(5, 2)
    ids = torch.randint(0, 4, (5, 2))
    with torch.no_grad():
        full = module(x, ids, weights)
        alone = module(x, torch.stack((ids[:, 0], torch.full((5,), 4)), 1), weights)
        other = module(x, torch.stack((torch.full((5,), -1), ids[:, 1]), 1), weights)
    assert near(alone + other, full)
    with torch.enable_grad():
        assert near(module(x, torch.stack((ids[:, 0], torch.full((5,), 4)), 1), weights), alone)


# --- One copy of the weights ----------------------------------------------------------------------


def test_weights_are_held_once_and_given_back_bit_for_bit(folder: Any, tmp_path: Path) -> None:
    path = folder("mixtral", **SWISH)
    model, original = ours(path), load(path)
    expected = output(model)
    module = experts_of(model)
    assert storage_bytes(module, "gate_up_proj") == storage_bytes(module, "down_proj") == 4
    size = sum(p.numel() * 4 for p in experts_of(original).parameters())
    assert adapter.explain(model)[0]["resident_bytes"] <= 1.02 * size
    for (name, saved), kept in zip(model.state_dict().items(), original.state_dict().values(), strict=True):
        assert torch.equal(saved, kept), name
    assert storage_bytes(module, "down_proj") > 4
    assert torch.equal(output(model), expected)  # packed again
    model.save_pretrained(tmp_path / "saved")
    again = ours(tmp_path / "saved")
    assert again.config.activation_params == {"beta": BETA}
    assert torch.equal(output(again), expected)


def writes() -> dict[str, Any]:
    def load_state(model: Any) -> None:
        state = {name: 1.5 * tensor for name, tensor in model.state_dict().items()}
        model.load_state_dict(state)

    def assign(model: Any) -> None:
        experts_of(model).down_proj = nn.Parameter(2 * experts_of(model).down_proj.detach())

    def named(model: Any) -> None:
        dict(model.named_parameters())["model.layers.0.mlp.experts.down_proj"].mul_(2)

    return {
        "attribute": lambda model: experts_of(model).gate_up_proj.mul_(2),
        "data": lambda model: experts_of(model).down_proj.data.mul_(2),
        "one_value": lambda model: experts_of(model).down_proj[0, 0, 0].add_(100),
        "parameters": named,
        "load_state_dict": load_state,
        "assign": assign,
    }


@pytest.mark.parametrize("how", writes())
def test_weights_written_between_steps_are_noticed(folder: Any, how: str) -> None:
    path = folder("mixtral", **SWISH)
    model, reference = ours(path), load(path, lambda name: swish(BETA))
    before = output(model)
    with torch.no_grad():
        writes()[how](model)
        writes()[how](reference)
    assert near(output(model), output(reference))
    assert not torch.equal(output(model), before)


def test_weights_that_something_else_holds_stay_and_their_updates_are_noticed(folder: Any) -> None:
    path = folder("mixtral", **SWISH)
    model, reference = ours(path), load(path, lambda name: swish(BETA))
    view = experts_of(model, 0).down_proj.detach()
    held = experts_of(model, 1).gate_up_proj
    assert near(output(model), output(reference))
    assert ["held" in row["path"] or "holds" in row["path"] for row in adapter.explain(model)] == [True, True]
    with torch.no_grad():
        view.mul_(3)
        held.mul_(0.5)
        experts_of(reference, 0).down_proj.mul_(3)
        experts_of(reference, 1).gate_up_proj.mul_(0.5)
    assert near(output(model), output(reference))


def test_inference_mode_leaves_weights_that_can_be_trained(folder: Any) -> None:
    model = ours(folder("mixtral", **SWISH))
    expected = output(model)
    model.state_dict()
    with torch.inference_mode():
        assert torch.equal(model(torch.arange(3, 27)[None], use_cache=False).logits, expected)
        model.state_dict()
    ids = torch.arange(3, 15)[None]
    model(ids, labels=ids).loss.backward()
    assert experts_of(model).down_proj.grad.abs().max() > 0


def test_copies_pickles_and_moves_keep_the_weights(folder: Any) -> None:
    model = ours(folder("mixtral", **SWISH))
    expected = output(model)
    twin = copy.deepcopy(model)
    assert torch.equal(output(twin), expected) and torch.equal(output(model), expected)
    with torch.no_grad():
        experts_of(twin).down_proj.zero_()
    assert torch.equal(output(model), expected) and not torch.equal(output(twin), expected)
    back = pickle.load(io.BytesIO(pickle.dumps(model)))
    assert torch.equal(output(back), expected)
    assert torch.equal(experts_of(back).down_proj, experts_of(model).down_proj)
    output(model)
    assert near(output(model.to(torch.bfloat16)).float(), expected, 5e-2)
    assert experts_of(model).down_proj.dtype == torch.bfloat16


# --- Gradients, compilation -----------------------------------------------------------------------


def test_training_has_the_gradients_of_the_function(folder: Any) -> None:
    path = folder("mixtral", **SWISH)
    model, reference = ours(path).train(), load(path, lambda name: swish(BETA)).train()
    output(model)  # packed before
    ids = torch.arange(3, 15)[None]
    for each in (model, reference):
        each(ids, labels=ids).loss.backward()
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        assert near(parameter.grad, expected[name].grad, 1e-4), name
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.5) for each in (model, reference)]
    for optimizer in optimizers:
        optimizer.step()
    assert near(output(model), output(reference), 1e-4)


def test_compiles_with_a_break_at_each_block_of_experts(folder: Any) -> None:
    model = ours(folder("mixtral", **SWISH))
    expected = output(model)
    torch._dynamo.reset()
    assert near(output(torch.compile(model, backend="eager")), expected)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        output(torch.compile(model, backend="eager", fullgraph=True))


# --- Dense and shared MLPs ------------------------------------------------------------------------


def test_shared_experts_are_an_error_until_they_are_converted(folder: Any) -> None:
    path = folder("deepseek_v2", **SWISH)
    model = ours(path)
    with pytest.raises(flexact.ConfigError, match=r"dense MLP of layer 0.*convert"):
        output(model)
    rows = adapter.convert(model)
    assert {row["role"] for row in rows} == {"routed", "shared", "dense"}
    assert near(output(model), output(load(path, lambda name: swish(BETA))))
    assert all(row["calls"] == 1 and row["computed_by"] == "flexact" for row in adapter.explain(model))


@pytest.mark.parametrize("family", ["llama", "gemma2", "starcoder2"])
def test_dense_mlps_are_converted(folder: Any, family: str) -> None:
    key = "hidden_activation" if family == "gemma2" else "hidden_act"
    path = folder(family, **{key: "swish", "activation_params": {"beta": BETA}})
    model = load(path)
    before = output(model)
    rows = adapter.convert(model)
    reference = load(path)
    for module in reference.modules():
        for name in ("act_fn", "act"):
            if isinstance(getattr(module, name, None), nn.Module):
                setattr(module, name, Handwritten(swish(BETA)))
    assert near(output(model), output(reference)) and not near(output(model), before, 1e-2)
    assert len(rows) == 2
    adapter.revert(model)
    assert torch.equal(output(model), before)


@pytest.mark.parametrize(
    ("model_type", "role"),
    [
        ("gpt2", "dense"),
        ("bloom", "dense"),
        ("mt5", "dense"),
        ("modernbert", "dense"),
        ("granitemoeshared", "shared"),
        ("switch_transformers", "routed"),
    ],
)
def test_mlps_of_other_shapes_are_converted(model_type: str, role: str) -> None:
    """Conv1D, a residual as an argument, two stacks, fused rows, experts as a list."""
    torch.manual_seed(0)
    config = tiny_config(model_type)
    model = model_class(config)(config).float().eval()
    before = text_output(model)
    adapter.convert(model, experts=False)
    assert near(text_output(model), before)
    adapter.revert(model)
    config.activation_params = {role: {"name": "swish", "beta": BETA}}
    rows = [row for row in adapter.convert(model, experts=False) if row["role"] == role]
    assert rows and {row["function"] for row in rows} == {"swish"}
    converted = text_output(model)
    places = [(row["name"], row["path"].rpartition(".")[2]) for row in rows]
    adapter.revert(model)
    assert torch.equal(text_output(model), before)
    for name, place in places:
        setattr(model.get_submodule(name), place, Handwritten(swish(BETA)))
    assert near(converted, text_output(model)) and not near(converted, before, 1e-3)


def text_output(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 27)[None]
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more)[0]


def test_a_norm_before_the_projection_down_is_left_alone_or_refused() -> None:
    config = tiny_config("bitnet")
    model = transformers.BitNetForCausalLM(config).eval()
    assert all("left alone" in row["path"] for row in adapter.convert(model))
    config.activation_params = {"name": "swish", "beta": BETA}
    with pytest.raises(flexact.Unsupported, match="several modules of BitNetMLP"):
        adapter.convert(model)


def test_a_function_of_gate_and_up_stands_in_a_dense_mlp(folder: Any) -> None:
    params = {"name": "swiglu_oai", "limit": 2.0}
    model = load(folder("llama", activation_params=params))
    adapter.convert(model)
    reference = load(folder("llama", activation_params=None))
    for layer in reference.model.layers:
        layer.mlp.forward = swiglu_oai(layer.mlp)
    assert near(output(model), output(reference))


def swiglu_oai(mlp: nn.Module) -> Any:
    def forward(x: torch.Tensor) -> torch.Tensor:
        g, u = mlp.gate_proj(x).clamp(max=2.0), mlp.up_proj(x).clamp(-2.0, 2.0)
        return mlp.down_proj(g * torch.sigmoid(1.702 * g) * (u + 1))

    return forward


def test_learned_parameters_stay_in_the_model(folder: Any, tmp_path: Path) -> None:
    path = folder("apertus")
    model, reference = load(path), load(path)
    adapter.convert(model)
    assert near(output(model), output(reference))
    assert list(model.state_dict()) == list(reference.state_dict())
    for each in (model, reference):
        with torch.no_grad():
            each.model.layers[0].mlp.act_fn.alpha_p.fill_(2.5)
    assert near(output(model), output(reference))
    ids = torch.arange(3, 15)[None]
    for each in (model, reference):
        each(ids, labels=ids).loss.backward()
    learned = [each.model.layers[1].mlp.act_fn.alpha_n.grad for each in (model, reference)]
    assert near(learned[0], learned[1], 1e-4) and learned[1].abs() > 0
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(output(load(tmp_path / "saved")), output(reference))


def test_converting_in_bfloat16_and_again(folder: Any) -> None:
    path = folder("llama", **SWISH)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    adapter.convert(model)
    first = output(model)
    adapter.convert(model)
    assert torch.equal(output(model), first)
    assert near(first.float(), output(load(path, lambda name: swish(BETA))), 5e-2)


# --- Refusals: each is seen to be needed ----------------------------------------------------------


def test_a_dense_model_does_not_take_the_implementation(folder: Any) -> None:
    with pytest.raises(flexact.Unsupported, match=r"no experts.*convert"):
        ours(folder("llama", **SWISH))


@pytest.mark.parametrize("model_type", ["llama4_text", "jetmoe"])
def test_experts_outside_the_interface_are_an_error(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(flexact.Unsupported, match="would be accepted and never run"):
        check(model_type, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(flexact.Unsupported):
        model.set_experts_implementation("flexact")
    assert model.config._experts_implementation != "flexact"


def test_a_configuration_that_does_not_resolve_is_an_error_at_loading(folder: Any) -> None:
    with pytest.raises(flexact.ConfigError, match="/activation_params/beta"):
        ours(folder("mixtral", hidden_act="swish", activation_params={"beta": "1.5"}))


def test_a_class_that_computes_something_else_is_found_and_the_nearest_function_named(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    path = folder("mixtral", **SWISH)
    original = MixtralExperts.__init__

    def swapped(self: Any, config: Any) -> None:
        original(self, config)
        self.act_fn = nn.GELU()

    monkeypatch.setattr(MixtralExperts, "__init__", swapped)
    with pytest.raises(flexact.ConfigError, match=r"does not compute swish.*nearest is geglu"):
        ours(path)


def test_clamping_before_and_after_are_told_apart() -> None:
    """They differ by 1.8e-6 at a limit of 16: the better match decides, not the first that is near."""
    from flexact.transformers._probe import apply, judge

    def step(g: torch.Tensor, u: torch.Tensor, limit: float = 16.0) -> torch.Tensor:
        return nn.functional.silu(g).clamp(max=limit) * u.clamp(-limit, limit)

    g = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    u = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    before = flexact.ActivationRegistry.get_activation("swiglu_clamp", {"limit": 16.0})
    after = flexact.ActivationRegistry.get_activation("swiglu_step", {"limit": 16.0})
    values = torch.tensor([[16.0]])
    h = torch.cat((g, u))

    def reference(activation: Any, row: torch.Tensor) -> torch.Tensor:
        return apply(activation, h, "concat", row[0])

    assert judge(step(g, u), reference, after, values, True, "step", "here") <= 1e-12
    with pytest.raises(flexact.ConfigError, match="nearest is swiglu_step"):
        judge(step(g, u), reference, before, values, True, "step", "here")


@pytest.mark.parametrize("layout", ["is_concatenated", "is_transposed"])
def test_a_layout_that_the_flags_do_not_say_is_found(
    folder: Any, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    path = folder("mixtral")
    original = MixtralExperts.__init__

    def lying(self: Any, config: Any) -> None:
        original(self, config)
        setattr(self, layout, not getattr(self, layout))

    monkeypatch.setattr(MixtralExperts, "__init__", lying)
    with pytest.raises((flexact.ConfigError, RuntimeError)):
        ours(path)


def test_an_output_of_zeros_does_not_pass_the_proof(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder("mixtral")
    monkeypatch.setattr(flexact.moe.Plan, "run", lambda self, x, *rest, **options: torch.zeros_like(x))
    with pytest.raises(flexact.InternalError, match="is off by"):
        ours(path)


def test_experts_whose_forward_was_replaced_are_noticed_at_the_first_step(folder: Any) -> None:
    model = ours(folder("mixtral", **SWISH))
    experts_of(model, 1).forward = lambda x, ids, weights: x
    with pytest.raises(flexact.InternalError, match="layers 1 did not run"):
        output(model)


def test_experts_taken_out_of_their_model_say_what_is_missing(folder: Any) -> None:
    config = transformers.AutoConfig.from_pretrained(folder("mixtral"))
    config._experts_implementation = "flexact"
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    with pytest.raises(flexact.ConfigError, match="outside a prepared model"):
        MixtralExperts(config)(torch.randn(2, 64), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))


def test_fp8_experts_are_compared_and_then_refused(folder: Any) -> None:
    model = quantised(folder("mixtral"))
    with pytest.raises(flexact.Unsupported, match="float8_e4m3fn"):
        model.set_experts_implementation("flexact")


def test_fp8_loading_that_changes_the_function_is_found(folder: Any) -> None:
    """A stray swiglu_limit: Mixtral's class ignores it, the one that FP8 loading puts there obeys it."""
    model = quantised(folder("mixtral"), swiglu_limit=0.5)
    del model.config.swiglu_limit
    with pytest.raises(
        flexact.ConfigError, match=r"FP8Experts does not compute silu.*nearest is swiglu_clamp"
    ):
        model.set_experts_implementation("flexact")


def quantised(path: Path, **changes: Any) -> Any:
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    config = transformers.AutoConfig.from_pretrained(path)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    quantization = FineGrainedFP8Config(weight_block_size=(128, 128))
    return replace_with_fp8_linear(model, [], quantization)


def test_a_class_that_writes_its_activation_into_its_forward_is_refused_only_for_another(folder: Any) -> None:
    config = tiny(transformers.Lfm2Config, {"layer_types": ["full_attention", "conv", "full_attention"]})
    model = transformers.Lfm2ForCausalLM(config).eval()
    rows = adapter.convert(model)
    assert {row["computed_by"] for row in rows} == {"transformers"}
    config.activation_params = {"name": "swish", "beta": 2.0}
    with pytest.raises(flexact.Unsupported, match="no activation module to replace"):
        adapter.convert(model)


def test_experts_kept_on_another_implementation_are_an_error_where_they_are_configured(folder: Any) -> None:
    model = load(folder("mixtral", **SWISH))
    with pytest.raises(flexact.Unsupported, match=r"routed.*could not be found"):
        adapter.convert(model, experts=False)
