"""The plugin in SGLang's own processes: engines and servers that start, and those that must not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang")

from line_counting import counted
from sglang_jobs import Outcome, run
from tiny_models import build
from transformers_reference import largest_difference, load, swish

SWISH = {"hidden_act": "swish", "activation_params": {"beta": 1.3}}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("mixtral", tmp_path_factory.mktemp("mixtral"))


def stopped(outcome: Outcome) -> str:
    """The one message of an engine that did not start."""
    assert outcome.code == 2, (outcome.code, outcome.stderr[-3000:])
    assert not outcome.answers
    assert len(outcome.messages) == 1, outcome.messages
    return outcome.messages[0]


def test_two_ranks_share_the_experts(mixtral: Path) -> None:
    """Tensor and expert parallelism: half of the experts on each rank, ids of -1 for the others."""
    betas = [[1.1, 1.4, 1.7, 2.0], [0.5, 0.7, 0.9, 1.1]]
    override = {
        "hidden_act": "swish",
        "activation_params": {"beta": {"per_layer": [{"per_expert": row} for row in betas]}},
    }
    outcome = run(mixtral, override=override, tp_size=2, ep_size=2)
    assert outcome.code == 0, outcome.stderr[-3000:]
    assert largest_difference(outcome.answers["generate"], by_expert(mixtral, betas)) <= 1e-4


def test_shared_experts_and_roles(tmp_path: Path) -> None:
    """GLM-4 MoE: dense, routed and shared layers, each with a value of its own."""
    folder = build("glm4_moe", tmp_path / "model")
    betas = {"routed": 1.2, "shared": 1.7, "dense": 0.8}
    outcome = run(
        folder,
        override={"hidden_act": "swish", "activation_params": {"beta": betas}},
        steps=("generate", "report"),
        environment={"TORCHDYNAMO_DISABLE": "1"},  # SGLang compiles its router, for longer than it runs
    )
    assert outcome.code == 0, outcome.stderr[-3000:]

    def choose(name: str) -> Any:
        role = "shared" if "shared" in name else "dense" if "layers.0" in name else "routed"
        return swish(betas[role])

    assert largest_difference(outcome.answers["generate"], load(folder, choose)) <= 1e-4
    (state,) = outcome.answers["report"]
    assert {row["role"] for row in state["experts"] + state["mlps"]} == {"routed", "shared", "dense"}
    assert all(row["calls"] >= 10 for row in state["experts"] + state["mlps"])


def test_plain_silu_gives_the_hosts_own_results(tmp_path: Path) -> None:
    """Qwen3-MoE without an override: the plugin leaves every layer to SGLang.

    Two starts of SGLang batch the prompts differently and so differ in the last bit of a sum.
    """
    folder = build("qwen3_moe", tmp_path / "model")
    with_plugin = run(folder, steps=("generate", "report"))
    without = run(folder, stock=True)
    assert with_plugin.code == 0, with_plugin.stderr[-3000:]
    assert without.code == 0, without.stderr[-3000:]
    for ours, stock in zip(with_plugin.answers["generate"], without.answers["generate"], strict=True):
        assert (ours["text"], ours["ids"]) == (stock["text"], stock["ids"])
        assert ours["logprobs"] == pytest.approx(stock["logprobs"], abs=1e-5)
    (state,) = with_plugin.answers["report"]
    assert {row["computed_by"] for row in state["experts"] + state["mlps"]} == {"sglang"}


def test_a_configuration_that_does_not_resolve_ends_the_engine(mixtral: Path) -> None:
    """`server_args` refuses as an ordinary error; past it, the engine itself ends with one message."""
    prelude = (
        "import json, os, flexact.sglang\n"
        "os.environ['SGLANG_USE_CPU_ENGINE'] = '1'\n"
        "build = flexact.sglang.server_args\n"
        "def unchecked(model, config_override, **kwargs):\n"
        "    return build(model, **kwargs) | {'json_model_override_args': json.dumps(config_override)}\n"
        "flexact.sglang.server_args = unchecked\n"
    )
    override = {"hidden_act": "swish", "activation_params": {"beta": "1.5"}}
    assert "/activation_params/beta" in stopped(run(mixtral, override=override, prelude=prelude))


def test_a_refusal_in_a_scheduler_reaches_the_user_once(mixtral: Path) -> None:
    """Only a scheduler reads the checkpoint's tensors; two ranks find out."""
    override = {"hidden_act": "swish", "activation_params": {"beta": {"tensor": "no.such.{layer}"}}}
    message = stopped(run(mixtral, override=override, tp_size=2, count=True))
    assert "no.such.0" in message


def test_a_scheduler_without_the_plugin_stops_the_start(mixtral: Path) -> None:
    prelude = (
        "import os\n"
        "from sglang.srt.plugins import load_plugins\n"
        "os.environ['SGLANG_USE_CPU_ENGINE'] = '1'\n"
        "load_plugins()\n"
        "from flexact.sglang import _server_args\n"
        "_server_args.plugin_absence = lambda: None\n"
        "os.environ['SGLANG_PLUGINS'] = 'none'\n"
    )
    message = stopped(run(mixtral, override=SWISH, prelude=prelude))
    assert "1 of 1 scheduler processes started without the plugin" in message


@pytest.mark.parametrize(
    ("prelude", "reason"),
    [
        ("from flexact.sglang import _hooks; _hooks.install = lambda: 1 / 0", "ZeroDivisionError"),
        (
            "from flexact.sglang import _hooks\n"
            "_hooks.HOOKS += (_hooks.Hook('sglang.srt.layers.moe.gone.FusedMoE.run', '_model', 'forward'),)",
            "has no sglang.srt.layers.moe.gone.FusedMoE.run",
        ),
        (
            # A hook that SGLang cannot apply is only logged by it.
            "from sglang.srt.plugins.hook_registry import HookRegistry\n"
            "apply = HookRegistry._apply_target\n"
            "def broken(self, target, hooks):\n"
            "    if target.endswith('run_moe_core'): raise RuntimeError('no')\n"
            "    return apply.__func__(self, target, hooks)\n"
            "HookRegistry._apply_target = classmethod(broken)",
            "could not hook sglang.srt.layers.moe.fused_moe_triton.layer.FusedMoE.run_moe_core",
        ),
        ("import os; os.environ['FLEXACT_MOE'] = 'maybe'", "FLEXACT_MOE='maybe'"),
    ],
    ids=["register_fails", "target_is_missing", "hook_is_not_applied", "switch_is_meaningless"],
)
def test_a_plugin_that_cannot_work_stops_the_start(mixtral: Path, prelude: str, reason: str) -> None:
    """SGLang itself would log these and serve without the plugin."""
    begin = "import os; os.environ['SGLANG_USE_CPU_ENGINE'] = '1'\n"
    assert reason in stopped(run(mixtral, override=SWISH, prelude=begin + prelude))


def test_a_core_that_cannot_be_loaded_is_found_out_by_register() -> None:
    """SGLang skips a plugin that fails to import; this one imports, and then says what is wrong."""
    code = "import sys; sys.modules['flexact._core'] = None; import flexact.sglang; flexact.sglang.register()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "flexact: the SGLang plugin cannot start" in done.stderr and "flexact._core" in done.stderr


def test_server_args_refuses_where_sglang_would_not_load_the_plugin(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flexact.sglang

    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    with pytest.raises(RuntimeError, match="SGLANG_PLUGINS='another'"):
        flexact.sglang.server_args(str(mixtral))


def test_server_args_are_the_hosts_own(mixtral: Path) -> None:
    import flexact.sglang

    arguments = flexact.sglang.server_args(str(mixtral), config_override=SWISH, max_total_tokens=64)
    assert arguments["model_path"] == str(mixtral) and arguments["max_total_tokens"] == 64
    assert json.loads(arguments["json_model_override_args"]) == SWISH
    assert arguments["device"] == "cpu" and arguments["attention_backend"] == "torch_native"
    with pytest.raises(flexact.ConfigError, match="/hidden_act"):
        flexact.sglang.server_args(str(mixtral), config_override={"hidden_act": "swsh"})
    with pytest.raises(ValueError, match="give one of them"):
        flexact.sglang.server_args(str(mixtral), config_override=SWISH, json_model_override_args="{}")


def serve(*arguments: str) -> subprocess.Popen[str]:
    """The launcher, its lines counted."""
    return subprocess.Popen(
        [sys.executable, "-m", "flexact.sglang.serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", **counted()},
    )


def test_serve_prints_one_message_for_a_wrong_configuration(mixtral: Path) -> None:
    process = serve(
        "--model-path", str(mixtral), "--json-model-override-args", '{"hidden_act": "no_such_fn"}'
    )
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    lines = [line for line in stderr.splitlines() if line.startswith("flexact: ")]
    assert len(lines) == 1 and "/hidden_act" in lines[0] and "no_such_fn" in lines[0]
    assert "Traceback" not in stderr


class TestServer:
    """`flexact serve` over HTTP."""

    @pytest.fixture(scope="class")
    def address(self, mixtral: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        log = tmp_path_factory.mktemp("serve") / "log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "flexact.sglang.serve",
                    "--model-path",
                    str(mixtral),
                    "--port",
                    port,
                    "--dtype",
                    "float32",
                    "--context-length",
                    "256",
                    "--json-model-override-args",
                    json.dumps(SWISH),
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
            )
        try:
            deadline = time.monotonic() + 300
            while not self.answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def answers(self, url: str) -> bool:
        try:
            return urllib.request.urlopen(url, timeout=5).status == 200
        except OSError:
            return False

    def test_generates_and_reports_its_layers(self, address: str, mixtral: Path) -> None:
        body = {
            "text": "hello world",
            "sampling_params": {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        request = urllib.request.Request(
            f"{address}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
        meta = answer["meta_info"]
        output = {
            "prompt_ids": [entry[1] for entry in meta["input_token_logprobs"]],
            "prompt_logprobs": [entry[0] for entry in meta["input_token_logprobs"]][1:],
            "ids": [entry[1] for entry in meta["output_token_logprobs"]],
            "logprobs": [entry[0] for entry in meta["output_token_logprobs"]],
        }
        assert answer["text"] and len(output["ids"]) == 10
        assert largest_difference([output], load(mixtral, lambda name: swish(1.3))) <= 1e-4
        info = json.loads(urllib.request.urlopen(f"{address}/get_server_info", timeout=60).read())
        layers = info["internal_states"][0]["flexact"]["experts"]
        assert [layer["computed_by"] for layer in layers] == ["flexact", "flexact"]
        assert all(layer["calls"] > 0 for layer in layers)


def by_expert(folder: Path, betas: list[list[float]]) -> Any:
    """transformers' Mixtral with a loop over experts written out by hand, a value for each."""
    import torch

    model = load(folder)
    for layer, row in zip(model.model.layers, betas, strict=True):
        block = layer.mlp.experts if hasattr(layer, "mlp") else layer.block_sparse_moe.experts

        def forward(x: Any, ids: Any, weights: Any, block: Any = block, row: list[float] = row) -> Any:
            out = torch.zeros_like(x)
            for token in range(x.shape[0]):
                for slot in range(ids.shape[1]):
                    expert = int(ids[token, slot])
                    gate, up = (block.gate_up_proj[expert] @ x[token]).chunk(2)
                    h = swish(row[expert])(gate) * up
                    out[token] += weights[token, slot] * (block.down_proj[expert] @ h)
            return out

        block.forward = forward
    return model
