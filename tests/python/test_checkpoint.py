"""Checkpoint tensors named by a configuration: read by name, and never from what a file only claims."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from flexact.checkpoint import Checkpoint  # noqa: E402
from flexact.errors import ConfigError, IoError  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_reads_values_of_every_floating_type(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.8, -1.25, 3e-3], dtype=dtype)
    safetensors.save_file(
        {"a": torch.zeros(7), "beta": values, "one": values[0].clone()}, tmp_path / "m.safetensors"
    )
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("beta") == values.double().tolist()
    assert checkpoint.read("one") == [values[0].double().item()]


def test_the_index_says_which_file(tmp_path: Path) -> None:
    safetensors.save_file({"beta": torch.tensor([1.0])}, tmp_path / "one.safetensors")
    safetensors.save_file({"beta": torch.tensor([2.0])}, tmp_path / "two.safetensors")
    index = {"weight_map": {"beta": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert Checkpoint(tmp_path).read("beta") == [2.0]


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    safetensors.save_file({"beta": torch.tensor([1.0])}, tmp_path / "outside.safetensors")
    index = {"weight_map": {"beta": "../outside.safetensors"}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="no safetensors file holds"):
        Checkpoint(inside).read("beta")


def test_a_name_is_never_a_path(tmp_path: Path) -> None:
    safetensors.save_file({"beta": torch.tensor([1.0])}, tmp_path / "m.safetensors")
    with pytest.raises(ConfigError, match="no safetensors file holds"):
        Checkpoint(tmp_path).read(str(tmp_path / "m.safetensors"))


def write(path: Path, header: object, data: bytes = b"\0" * 8, length: int | None = None) -> None:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({**F32, "data_offsets": [0, 400]}, "does not hold"),
        ({**F32, "data_offsets": [-4, 0]}, "does not hold"),
        ({**F32, "data_offsets": [4, 0]}, "does not hold"),
        ({**F32, "shape": [2]}, "does not hold"),
        ({**F32, "shape": [-1]}, "does not hold"),
        ({**F32, "shape": [0], "data_offsets": [0, 0]}, "does not hold"),
        ({**F32, "shape": [1 << 40], "data_offsets": [0, 4 << 40]}, "does not hold"),
        ({**F32, "shape": [True]}, "does not hold"),
        ({**F32, "dtype": "I32"}, "holds I32"),
        ({**F32, "dtype": ["F32"]}, "malformed"),
        ({"dtype": "F32"}, "malformed"),
        ({**F32, "data_offsets": 3}, "malformed"),
        (7, "malformed"),
    ],
)
def test_a_lying_entry_is_refused(tmp_path: Path, entry: object, reason: str) -> None:
    write(tmp_path / "m.safetensors", {"beta": entry})
    with pytest.raises(ConfigError, match=reason):
        Checkpoint(tmp_path).read("beta")


@pytest.mark.parametrize(
    ("header", "length"),
    [(b"{}", 1 << 60), (b"{}", 1 << 20), (b"[]", None), (b"{not json", None), (b"\xff\xfe", None)],
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, header: bytes, length: int | None) -> None:
    write(tmp_path / "m.safetensors", header, length=length)
    with pytest.raises(IoError, match="not a safetensors file"):
        Checkpoint(tmp_path).read("beta")
    (tmp_path / "m.safetensors").write_bytes(b"123")
    with pytest.raises(IoError, match="not a safetensors file"):
        Checkpoint(tmp_path).read("beta")


def test_sglang_ends_with_the_reason(tmp_path: Path) -> None:
    from flexact.sglang import Stop
    from flexact.sglang._checkpoint import Checkpoint

    with pytest.raises(Stop, match="no safetensors file holds"):
        Checkpoint(tmp_path).read("beta")
