"""resolve_config from Python: paths, mappings, configuration objects, overrides."""

import json

import flexact
import pytest
import torch
from flexact import resolve_config
from flexact.config import function_from_stack, known_stacks

MIXTRAL = {
    "model_type": "mixtral",
    "num_hidden_layers": 3,
    "num_local_experts": 4,
    "hidden_act": "swish",
    "activation_params": {"beta": {"per_layer": [1.0, 1.5, 2.0]}},
}


def check(model):
    assert model.model_type == "mixtral"
    assert [layer.index for layer in model.layers] == [0, 1, 2]
    routed = model.layers[2].routed
    assert routed.gated
    assert routed.pairing == "concat"
    assert not routed.bias
    assert "/hidden_act" in routed.source
    g, u = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(routed.activation(g, u, layer=2), g * torch.sigmoid(2 * g) * u)
    assert model.layers[2].dense is None
    assert model.layers[1].role("routed").name == routed.name


@pytest.mark.parametrize("kind", ["mapping", "file", "text_path", "folder", "object"])
def test_every_kind_of_source(kind, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MIXTRAL))

    class Config:
        def to_dict(self):
            return MIXTRAL

    sources = {
        "mapping": MIXTRAL,
        "file": file,
        "text_path": str(file),
        "folder": tmp_path,
        "object": Config(),
    }
    check(resolve_config(sources[kind]))


def test_configuration_object_of_transformers():
    transformers = pytest.importorskip("transformers")
    check(
        resolve_config(transformers.MixtralConfig(**{k: v for k, v in MIXTRAL.items() if k != "model_type"}))
    )


@pytest.mark.parametrize("as_text", [False, True])
def test_overrides(as_text):
    overrides = {"hidden_act": "gelu", "activation_params": None}
    model = resolve_config(MIXTRAL, json.dumps(overrides) if as_text else overrides)
    g, u = torch.randn(5), torch.randn(5)
    torch.testing.assert_close(
        model.layers[0].routed.activation(g, u), torch.nn.functional.gelu(g) * u, rtol=1e-5, atol=1e-6
    )


def test_json_of_explain():
    answer = json.loads(resolve_config(MIXTRAL).to_json())
    assert answer["model_type"] == "mixtral"
    assert len(answer["layers"]) == 3
    assert set(answer["layers"][0]) >= {"index", "routed", "shared", "dense"}


def test_warnings_are_given():
    model = resolve_config({"model_type": "never_heard_of", "hidden_act": "gelu"})
    assert any("never_heard_of" in warning for warning in model.warnings)
    assert not model.layers_known


@pytest.mark.parametrize("beta", [float("nan"), float("inf"), True, "1.5", [1.0]])
def test_values_that_are_no_finite_numbers_are_refused(beta):
    with pytest.raises(flexact.ConfigError):
        resolve_config({**MIXTRAL, "activation_params": {"beta": beta}})


def test_refusal_says_where():
    with pytest.raises(flexact.ConfigError) as caught:
        resolve_config({**MIXTRAL, "hidden_act": "no_such_function"})
    assert "/hidden_act" in caught.value.where


@pytest.mark.parametrize("source", [3, None, 1.5, ["config.json"]])
def test_other_sources_are_refused(source):
    with pytest.raises(flexact.InvalidArgument, match="path"):
        resolve_config(source)


def test_unreadable_files(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(flexact.ConfigError):
        resolve_config(tmp_path)
    with pytest.raises(flexact.IoError):
        resolve_config(tmp_path / "none.json")


def test_names_of_other_stacks():
    assert known_stacks()
    for stack in known_stacks():
        with pytest.raises(flexact.Error):
            function_from_stack("no_such_function", stack)
    assert function_from_stack("silu", "").name == "silu"


def test_result_prints_itself():
    assert "swish" in repr(resolve_config(MIXTRAL).layers[0].routed)
