"""Hostile files: never executed, never a crash, and never more than a second of processor time.

The kernel enforces the limits: each file is given to a process of its own, which is killed at one
second of processor time or at 4 GiB of memory.
"""

import json
import os
import resource
import signal
import struct
import subprocess
from pathlib import Path

import flexact
import pytest
from cli_tool import command
from flexact.checkpoint import Checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

MB = 1 << 20


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 2))
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def explain(path: Path, *options: str) -> subprocess.CompletedProcess:
    """`flexact explain` under the limits; its exit is an answer or a readable refusal."""
    done = subprocess.run(
        [command(), "explain", str(path), *options], capture_output=True, preexec_fn=limited, timeout=120
    )
    assert done.returncode != -signal.SIGXCPU, "more than one second of processor time"
    assert done.returncode in (0, 2), (done.returncode, done.stderr[-2000:])
    message = done.stderr.decode("utf-8")  # strict
    assert len(message) < 100_000
    if done.returncode == 2:
        assert message.strip()
    return done


def refused(path: Path, *options: str) -> str:
    done = explain(path, *options)
    assert done.returncode == 2, done.stdout[:500]
    assert not done.stdout
    return done.stderr.decode()


def mixtral(rest: bytes) -> bytes:
    return b'{"model_type": "mixtral", "num_hidden_layers": 2, ' + rest + b"}"


def params(text: str) -> bytes:
    return mixtral(b'"hidden_act": "swish", "activation_params": ' + text.encode())


def repeated(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece))


def numbered(pattern: str, count: int) -> bytes:
    return b",".join((pattern % i).encode() for i in range(count))


# What is wrong with it → the file. Made when the test runs: some have 100 MB.
REFUSED = {
    "deep lists": lambda: b'{"a": ' + b"[" * MB,
    "deep objects": lambda: repeated(b'{"a":', 5 * MB),
    "deep and closed": lambda: b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "129 levels": lambda: b'{"a": ' + b"[" * 128 + b"]" * 128 + b"}",
    "100 MB of brackets": lambda: b'{"a": ' + b"[" * (100 * MB),
    "100 MB of values": lambda: mixtral(b'"a": [' + repeated(b"1,", 100 * MB) + b"1]"),
    "100 MB without an end": lambda: b'{"a": "' + b"x" * (100 * MB),
    "100 MB of digits": lambda: mixtral(b'"a": ' + b"9" * (100 * MB)),
    "257 MB": lambda: b"{" + b" " * (257 * MB),
    "a million keys": lambda: b"{" + numbered('"k%d": 1', 1_000_000) + b"}",
    "a million names of activations": lambda: mixtral(numbered('"act_%d": "nonsens"', 1_000_000)),
    "a million nested keys": lambda: (
        b'{"model_type": "x", "text_config": {' + numbered('"k%d": 1', 1_000_000) + b"}}"
    ),
    "equal keys until the last": lambda: mixtral(repeated(b'"a": 1,', 10 * MB) + b'"a": 2'),
    "different keys in a list": lambda: mixtral(b'"a": [{"b": {"c": 1, "c": 2}}]'),
    "1e999": lambda: mixtral(b'"a": 1e999'),
    "-1e999": lambda: mixtral(b'"a": -1e999'),
    "1e10000000000000000000000": lambda: mixtral(b'"a": 1e10000000000000000000000'),
    "leading zero": lambda: mixtral(b'"a": 007'),
    "leading plus": lambda: mixtral(b'"a": +7'),
    "no digits": lambda: mixtral(b'"a": -'),
    "hexadecimal": lambda: mixtral(b'"a": 0x10'),
    "NaN": lambda: mixtral(b'"a": NaN'),
    "Infinity": lambda: mixtral(b'"a": -Infinity'),
    "a million digits of layers": lambda: b'{"model_type": "llama", "num_hidden_layers": ' + b"1" * MB + b"}",
    "2^63 layers": lambda: b'{"model_type": "llama", "num_hidden_layers": 9223372036854775807}',
    "a billion layers": lambda: b'{"model_type": "llama", "num_hidden_layers": 1000000000}',
    "minus one layer": lambda: b'{"model_type": "llama", "num_hidden_layers": -1}',
    "layers in a string": lambda: b'{"model_type": "llama", "num_hidden_layers": "2"}',
    "2^63 experts": lambda: (
        params('{"beta": {"per_expert": [1]}}')[:-1] + b', "num_local_experts": 9223372036854775807}'
    ),
    "long list of layers": lambda: params('{"beta": {"per_layer": [' + "1," * 1_900_000 + '"x"]}}'),
    "long list of experts": lambda: params('{"beta": {"per_expert": [' + "1," * 1_900_000 + "1]}}"),
    "lists in lists": lambda: params('{"beta": ' + '{"per_layer": [' * 60 + "1" + "]}" * 60 + "}"),
    "invalid UTF-8": lambda: mixtral(b'"a": "\xff\xfe"'),
    "overlong UTF-8": lambda: mixtral(b'"a": "\xc0\xaf"'),
    "a surrogate's bytes": lambda: mixtral(b'"a": "\xed\xa0\x80"'),
    "a lone surrogate": lambda: mixtral(rb'"a": "\ud800"'),
    "two high surrogates": lambda: mixtral(rb'"a": "\ud800\ud800"'),
    "UTF-16": lambda: '{"model_type": "llama"}'.encode("utf-16"),
    "UTF-32": lambda: '{"model_type": "llama"}'.encode("utf-32"),
    "two byte-order marks": lambda: b"\xef\xbb\xbf\xef\xbb\xbf{}",
    "NUL": lambda: mixtral(b'"a": "\x00"'),
    "NUL after the end": lambda: mixtral(b'"a": 1') + b"\x00",
    "two objects": lambda: b'{"model_type": "llama"}{"model_type": "llama"}',
    "comment": lambda: b'{"model_type": "llama" /* "x" */}',
    "nothing": lambda: b"",
    "pickle": lambda: b"\x80\x04\x95",
    "long expression": lambda: params('{"expr": "' + "x+" * MB + 'x"}'),
    "deep expression": lambda: params('{"expr": "' + "(" * 2000 + "x" + ")" * 2000 + '"}'),
    "many powers": lambda: params('{"expr": "' + "x^2" + "^2" * 500 + '"}'),
    "model type of 50 MB": lambda: b'{"model_type": "' + b"m" * (50 * MB) + b'", "swiglu_limit": 7}',
    "name of 50 MB": lambda: mixtral(b'"hidden_act": "' + b"s" * (50 * MB) + b'"'),
}  # fmt: skip

ACCEPTED = {
    "100 MB of text": lambda: mixtral(b'"a": "' + b"x" * (100 * MB) + b'"'),
    "100 MB of escapes": lambda: mixtral(b'"a": "' + repeated(rb"\u00e9", 100 * MB) + b'"'),
    "100 MB of space": lambda: b'{"model_type": "llama"' + b" \n\t\r" * (25 * MB) + b"}",
    "a key of 50 MB": lambda: mixtral(b'"' + b"k" * (50 * MB) + b'": 1'),
    "a key of 50 MB over many equal keys": lambda: mixtral(
        b'"' + b"k" * (50 * MB) + b'": {' + repeated(b'"a": 1,', 5 * MB) + b'"a": 1}'
    ),
    "many equal keys": lambda: mixtral(repeated(b'"a": 1,', 10 * MB) + b'"a": 1'),
    "a million digits": lambda: mixtral(b'"a": 0.' + b"3" * MB),
    "minus zero": lambda: mixtral(b'"a": [-0, -0.0, -0e-999]'),
    "a small number's million zeros": lambda: mixtral(b'"a": 0.' + b"0" * MB + b"1"),
    "128 levels": lambda: b'{"model_type": "llama", "a": ' + b"[" * 127 + b"]" * 127 + b"}",
    "the most layers": lambda: b'{"model_type": "llama", "num_hidden_layers": 2048}',
    "byte-order mark": lambda: b'\xef\xbb\xbf{"model_type": "llama"}',
}  # fmt: skip


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_config_is_refused(case, tmp_path):
    path = write(tmp_path / "config.json", REFUSED[case]())
    refused(path)
    path.unlink()  # folders of many runs are kept


@pytest.mark.parametrize("case", ACCEPTED)
def test_an_odd_config_is_read_in_time(case, tmp_path):
    path = write(tmp_path / "config.json", ACCEPTED[case]())
    assert explain(path).returncode == 0
    path.unlink()


@pytest.mark.parametrize("case", ["a million keys", "long list of layers", "deep lists", "many equal keys"])
def test_the_same_through_an_override(case, tmp_path):
    config = write(tmp_path / "config.json", b'{"model_type": "mixtral"}')
    data = {**REFUSED, **ACCEPTED}[case]()[: 100 * 1024]  # as long as a command line may be
    explain(config, "--set", data.replace(b"\0", b"").decode("utf-8", "ignore"))


CODE = [
    "__import__('os').system('touch executed')",
    "x); system(\"touch executed\"); (x",
    "x*1; touch executed",
    "$(touch executed)",
    "`touch executed`",
    "x\n#include \"executed\"",
    "x*\"\"\"\nimport os\nos.system('touch executed')\n\"\"\"",
    "lambda x: open('executed','w')",
    "{{7*7}}",
    "asm(\"trap;\")",
    "x*/**/2",
    "x*⁇",
]  # fmt: skip


@pytest.mark.parametrize("text", CODE)
def test_code_in_an_expression_is_refused_and_not_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"model_type": "mixtral", "hidden_act": "expr", "activation_params": {"expr": text}}
    refused(write(tmp_path / "config.json", json.dumps(config).encode()))
    with pytest.raises(flexact.ExpressionError):
        flexact.Function.expression(text)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json"]


def test_names_that_are_code_reach_no_printed_text():
    """Parameter names are words, and stand in comments alone."""
    function = flexact.Function.expression("import_os*x+system*exec")
    for target in ("cuda", "triton", "torch"):
        code = [line.split("#")[0] for line in function.emit(target).splitlines()]
        code = "\n".join(line for line in code if not line.lstrip().startswith(("//", '"""')))
        assert "import_os" not in code and "system" not in code and "exec" not in code, target


TENSORS = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../b",
    "a\\..\\b",
    "file:///etc/passwd",
    "%2e%2e%2fetc",
    "a..b",
    "..",
    "~/x",
    "a\0b",
    "a b",
    "a\nb",
    "ä",
    "{layer",
    "{expert}",
    "{layer:1000000000}",
    "{0.__class__}",
    "{layer}" * 200_000,
    "{la" * 100_000 + "{layer}" + "yer}" * 100_000,
    "x" * (10 * MB),
    "",
]


@pytest.mark.parametrize("name", TENSORS, ids=range(len(TENSORS)))
def test_a_tensor_is_never_a_path(name, tmp_path):
    refused(write(tmp_path / "config.json", params(json.dumps({"beta": {"tensor": name}}))))


def test_an_override_is_as_strict(tmp_path):
    config = write(tmp_path / "config.json", b'{"model_type": "mixtral"}')
    for text in ("[]", '{"a": 1, "a": 2}', '{"a": 1e999}', "{" * 1000, '{"activation_params": []}'):
        refused(config, "--set", text)


# ---- checkpoints


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: object, end: object, dtype: object = "F32", shape: object = (1,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BETA = "m.0.beta"
DAMAGED = {
    "header longer than the file": lambda: safetensors({}, length=1 << 20),
    "header of 2^64-1": lambda: safetensors({}, length=(1 << 64) - 1),
    "header of 2^63": lambda: safetensors({}, length=1 << 63),
    "header of 101 MB": lambda: safetensors(b"{" + b" " * (101 * MB) + b"}"),
    "seven bytes": lambda: b"1234567",
    "deep header": lambda: safetensors(b"[" * (20 * MB)),
    "deep object": lambda: safetensors(repeated(b'{"a":', 20 * MB)),
    "not UTF-8": lambda: safetensors(b'{"\xff": 1}'),
    "a list": lambda: safetensors([]),
    "two entries": lambda: safetensors(
        b'{"m.0.beta":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"m.0.beta":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b"\0" * 8,
    ),
    "an entry that is no object": lambda: safetensors({BETA: 1}),
    "data outside the file": lambda: safetensors({BETA: entry(0, 4)}),
    "data far outside": lambda: safetensors({BETA: entry((1 << 64) - 8, (1 << 64) - 4)}, b"1234"),
    "offsets backwards": lambda: safetensors({BETA: entry(4, 0)}, b"1234"),
    "negative offsets": lambda: safetensors({BETA: entry(-8, -4)}, b"12345678"),
    "offsets that are no numbers": lambda: safetensors({BETA: entry("0", "4")}, b"1234"),
    "huge offsets": lambda: safetensors({BETA: entry(0, 10**400)}, b"1234"),
    "overlapping": lambda: safetensors({BETA: entry(0, 4), "other": entry(2, 6)}, b"123456"),
    "shape that wraps": lambda: safetensors({BETA: entry(0, 4, shape=[1 << 62, 8])}, b"1234"),
    "negative shape": lambda: safetensors({BETA: entry(0, 4, shape=[-1, -1])}, b"1234"),
    "huge shape": lambda: safetensors({BETA: entry(0, 4, shape=[10**30])}, b"1234"),
    "long shape": lambda: safetensors({BETA: entry(0, 4, shape=[2] * 100_000)}, b"1234"),
    "no elements": lambda: safetensors({BETA: entry(0, 0, shape=[0])}),
    "unknown type": lambda: safetensors({BETA: entry(0, 4, dtype="F128")}, b"1234"),
    "a type that is no text": lambda: safetensors({BETA: entry(0, 4, dtype=["F32"])}, b"1234"),
    "NaN": lambda: safetensors({BETA: entry(0, 4)}, struct.pack("<f", float("nan"))),
    "infinity": lambda: safetensors({BETA: entry(0, 4)}, struct.pack("<f", float("inf"))),
}  # fmt: skip

LEARNED = {
    "model_type": "mixtral",
    "num_hidden_layers": 1,
    "hidden_act": "swish",
    "activation_params": {"beta": {"tensor": "m.{layer}.beta"}},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_checkpoint_is_refused_by_both_readers(case, tmp_path):
    write(tmp_path / "config.json", json.dumps(LEARNED).encode())
    path = write(tmp_path / "model.safetensors", DAMAGED[case]())
    with pytest.raises(flexact.Error):
        # NaN and infinity are values of the file, and no values of a parameter.
        flexact.Activation(flexact.Function.named("swish"), {"beta": Checkpoint(tmp_path).read(BETA)[0]})
    where = ["--layer", "0", "--role", "routed", "--expert", "0", "--g", "1", "--u", "1"]
    done = subprocess.run(
        [command(), "eval", "--config", str(tmp_path), *where],
        preexec_fn=limited,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    assert done.stderr.decode("utf-8").strip()
    path.unlink()


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "index",
    [
        b"not json",
        b"\xff",
        b"[" * MB,
        b"[]",
        b'{"weight_map": []}',
        b'{"weight_map": {"m.0.beta": 7}}',
        b'{"weight_map": {"m.0.beta": "../outside.safetensors"}}',
        b'{"weight_map": {"m.0.beta": "/outside.safetensors"}}',
        b'{"weight_map": {"m.0.beta": "missing.safetensors"}}',
        b'{"weight_map": {"m.0.beta": "..", "x": "\\u0000"}}',
        b'{"weight_map": {"m.0.beta": "a\\u0000b.safetensors"}}',
        b'{"weight_map": {"m.0.beta": ""}}',
    ],
)
def test_an_index_leads_nowhere_outside(index, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path / "outside.safetensors", safetensors({BETA: entry(0, 4)}, struct.pack("<f", 2.0)))
    write(folder / INDEX, index)
    with pytest.raises(flexact.Error):
        Checkpoint(folder).read(BETA)


def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(flexact.Error):
        Checkpoint(tmp_path).read(BETA)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.builds(
            safetensors,
            st.dictionaries(
                st.sampled_from([BETA, "other", "__metadata__"]),
                st.one_of(
                    st.none(),
                    st.builds(
                        entry,
                        st.integers(-4, 20),
                        st.integers(-4, 20),
                        st.sampled_from(["F32", "BF16", "F16", "F64", "I64", 3, None]),
                        st.lists(st.integers(-2, 5), max_size=3),
                    ),
                ),
            ),
            st.binary(max_size=24),
            st.one_of(st.none(), st.integers(0, 300)),
        ),
    )
)
def test_any_file_gives_values_or_an_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("checkpoint")
    write(folder / "model.safetensors", data)
    try:
        values = Checkpoint(folder).read(BETA)
    except flexact.Error:
        return
    assert 0 < len(values) <= len(data)
    assert all(isinstance(value, float) for value in values)
