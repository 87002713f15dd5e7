"""The `flexact` command as a process: what is on stdout, what is on stderr, and how it exits."""

import json
import math
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cli_tool import catalogue, command, flexact, output, sample_parameters

ROOT = Path(__file__).parents[2]


def refused(*arguments: str) -> str:
    """Runs what must fail: exit 2, nothing on stdout, one line on stderr, which is returned."""
    done = flexact(*arguments)
    assert done.returncode == 2, (arguments, done)
    assert done.stdout == ""
    assert done.stderr.startswith("flexact: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def model(tmp_path):
    """A model folder with this config."""

    def write(config: dict) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


def test_eval_prints_numbers_that_read_back_exactly():
    values = [0.1, -2.0, 1e-300, 3.0]
    text = output("eval", "swish", "-p", "beta=1.5", "--x", ",".join(map(repr, values)))
    for line, x in zip(text.split(), values, strict=True):
        assert math.isclose(float(line), x / (1 + math.exp(-1.5 * x)), rel_tol=1e-15)


def test_eval_agrees_with_every_golden_value():
    renamed = {"swish_beta": "swish", "swiglu_beta": "swish_glu"}
    for entry in json.loads((ROOT / "tests/data/activations.json").read_text()):
        parameters = dict(entry["params"])
        if entry["name"] == "xielu":
            parameters["alpha_p"] = math.log(math.expm1(parameters.pop("ap")))
            parameters["alpha_n"] = math.log(math.expm1(parameters.pop("an") - parameters["beta"]))
        arguments = [f for name, value in parameters.items() for f in ("-p", f"{name}={value!r}")]
        for i, name in enumerate(entry["inputs"]):
            arguments += [f"--{name}", ",".join(repr(point[i]) for point, _ in entry["golden"])]
        lines = output("eval", renamed.get(entry["name"], entry["name"]), *arguments).split()
        for line, (point, want) in zip(lines, entry["golden"], strict=True):
            assert math.isclose(float(line), want, rel_tol=2e-12), (entry["name"], point)


def test_eval_formulas_of_the_data_set_as_expressions():
    for entry in json.loads((ROOT / "tests/data/activations.json").read_text()):
        arguments = [f for name, value in entry["params"].items() for f in ("-p", f"{name}={value!r}")]
        for i, name in enumerate(entry["inputs"]):
            arguments += [f"--{name}", ",".join(repr(point[i]) for point, _ in entry["golden"])]
        lines = output("eval", "--expr", entry["formula"], *arguments).split()
        for line, (point, want) in zip(lines, entry["golden"], strict=True):
            assert math.isclose(float(line), want, rel_tol=2e-12), (entry["name"], point)


def test_special_inputs_and_lists_that_begin_with_a_minus():
    assert output("eval", "linear", "--x", "-inf,-0,nan,-1.5,inf") == "-inf\n-0\nnan\n-1.5\ninf\n"
    assert output("eval", "bilinear", "--g", "-1,-2", "--u", "-3") == "3\n6\n"
    assert output("eval", "--expr", "-x", "--x=-2") == "2\n"


def test_stdout_holds_only_values():
    done = flexact("eval", "xielu", "--x", "1,-1")
    assert done.returncode == 0
    assert len(done.stdout.split()) == 2
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
    assert "alpha_p" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["eval", "no_such_fn", "--x", "1"], "no_such_fn"),
        (["eval", "SiLU", "--x", "1"], "silu"),
        (["eval", "swiglu", "--x", "1"], "gated"),
        (["eval", "silu", "--x", "one"], "not a number"),
        (["eval", "swish", "-p", "beta=NaN", "--x", "1"], "beta"),
        (["eval", "swish", "-p", "beta=1e999", "--x", "1"], "beta"),
        (["eval", "--expr", "x^2.5", "--x", "1"], "column 2"),
        (["eval", "--expr", "clamp(x,1,-1)", "--x", "1"], "column 1"),
        (["explain", "/no/such/model"], "/no/such/model"),
        (["emit", "silu", "--target", "fortran"], "cuda, triton, torch, text"),
        (["nonsense"], "nonsense"),
        ([], "--help"),
    ],
)
def test_errors_are_one_line_on_stderr_and_exit_2(arguments, reason):
    assert reason in refused(*arguments)


def test_explain_prints_the_documented_json(model):
    path = model(
        {
            "model_type": "mixtral",
            "hidden_act": "swish",
            "activation_params": {"beta": 1.5},
            "num_hidden_layers": 2,
            "num_local_experts": 4,
        }
    )
    explained = json.loads(output("explain", path, "--json"))
    assert explained["model_type"] == "mixtral"
    assert [layer["index"] for layer in explained["layers"]] == [0, 1]
    routed = explained["layers"][0]["routed"]
    assert {"name", "formula", "params", "gated", "pairing", "transposed", "from"} <= routed.keys()
    assert routed["params"] == {"beta": 1.5}
    assert explained["layers"][0]["dense"] is None
    assert isinstance(explained["warnings"], list)
    overridden = output("explain", path, "--json", "--set", '{"activation_params": {"beta": 2.5}}')
    assert json.loads(overridden)["layers"][1]["routed"]["params"] == {"beta": 2.5}
    assert "beta=1.5" in output("explain", path)


def test_eval_config_computes_what_explain_says(model):
    beta = {"per_layer": [{"per_expert": [1.0, 2.0]}, 3.0]}
    path = model(
        {
            "model_type": "mixtral",
            "hidden_act": "swish",
            "activation_params": {"beta": beta},
            "num_hidden_layers": 2,
            "num_local_experts": 2,
        }
    )
    config = ["eval", "--config", path, "--role", "routed", "--g", "-1,0.5", "--u", "2"]
    for layer, expert, value in [("0", "0", 1.0), ("0", "1", 2.0), ("1", "0", 3.0)]:
        got = output(*config, "--layer", layer, "--expert", expert)
        assert got == output("eval", "swish", "-p", f"beta={value}", "--g", "-1,0.5", "--u", "2")
    assert "--expert" in refused(*config, "--layer", "0")
    assert "no layer 2" in refused(*config, "--layer", "2", "--expert", "0")
    assert "has no dense" in refused(*config[:4], "dense", *config[5:], "--layer", "0", "--expert", "0")


def test_a_refused_config_says_where(model):
    path = model({"model_type": "mixtral", "hidden_act": "no_such_fn", "num_hidden_layers": 1})
    assert "/hidden_act" in refused("explain", path)
    assert "/hidden_act" in refused(
        "eval", "--config", path, "--layer", "0", "--role", "routed", "--g", "1", "--u", "1"
    )


def test_list_and_show_cover_the_catalogue():
    entries = catalogue()
    assert len(entries) > 40
    listing = output("list")
    for entry in entries:
        assert entry["name"] in listing
        shown = output("show", entry["name"])
        assert entry["formula"] in shown
        assert entry["fingerprint"] in shown
        for parameter in entry["parameters"]:
            assert parameter["domain"] in shown
    assert json.loads(output("show", "gelu_new", "--json"))["name"] == "gelu_tanh"


def test_other_stacks_names_go_by_from():
    for name, stack, meant in [("GELU", "ggml", "gelu_tanh"), ("silu_no_mul", "vllm", "silu")]:
        assert json.loads(output("show", name, "--from", stack, "--json"))["name"] == meant
    assert output("eval", "silu", "--from", "vllm", "--g", "1", "--u", "2") == output(
        "eval", "swiglu", "--g", "1", "--u", "2"
    )
    assert "unknown stack" in refused("show", "silu", "--from", "nowhere")


def test_emitted_text_does_not_depend_on_parameter_values():
    for entry in catalogue():
        assert sample_parameters(entry).keys() == {p["name"] for p in entry["parameters"]}
        assert entry["canonical"] in output("emit", entry["name"], "--target", "cuda")


def test_matrix_prints_what_a_run_wrote(tmp_path):
    path = tmp_path / "matrix.json"
    path.write_text(json.dumps({"columns": ["function", "claimed"], "rows": [["silu", True]], "commit": "c"}))
    assert output("matrix", "--file", str(path)) == "commit   c\nfunction  claimed\nsilu      true\n"
    assert json.loads(output("matrix", "--json", "--file", str(path)))["commit"] == "c"


def test_doctor_reports_the_machine():
    text = output("doctor")
    assert re.search(r"in use +(scalar|avx2|avx512|avx512bf16)", text)
    for word in ("gpu", "python", "sglang", "torch"):
        assert word in text
    assert re.search(r"auto on GPUs +measured on NVIDIA H200, \d+ cells", text)


def test_doctor_says_why_a_forced_isa_cannot_be_used():
    done = subprocess.run(
        [command(), "doctor"], env={**os.environ, "FLEXACT_CPU_ISA": "mmx"}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "mmx" in done.stdout


def test_serve_runs_the_python_beside_it(tmp_path):
    own = tmp_path / "flexact"
    shutil.copy(Path(command()).resolve(), own)
    if own.read_bytes()[:2] == b"#!":
        pytest.skip("the installed command is a script")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run([own, "serve", "--model-path", "a b", "--help"], capture_output=True, text=True)
    assert done.returncode == 7
    assert done.stdout.splitlines() == ["-m", "flexact.sglang.serve", "--model-path", "a b", "--help"]


def test_serve_without_a_python_is_refused(tmp_path):
    own = tmp_path / "flexact"
    shutil.copy(Path(command()).resolve(), own)
    done = subprocess.run([own, "serve"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no Python" in done.stderr


def test_a_full_disk_is_not_success():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run([command(), "list"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2


def test_documented_examples_hold():
    text = (ROOT / "docs/expressions.md").read_text()
    shown = re.search(r'\$ flexact eval --expr "(.*)" --x 1\n(flexact: .*)\n', text)
    assert refused("eval", "--expr", shown[1], "--x", "1").strip() == shown[2]
    functions = text.split("## Functions")[1].split("## Limits")[0]
    for name in re.findall(r"^\| `([a-z0-9_ ]+)` \|", functions, re.M):
        for function in name.split():
            output("eval", "--expr", f"{function}(x)", "--x", "0.5")


def test_version_and_help_are_on_stdout():
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", output("--version"))
    assert "explain" in output("--help")
    assert "--role" in output("eval", "--help")
