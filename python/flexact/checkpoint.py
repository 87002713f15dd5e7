"""Parameter values that a checkpoint holds: single tensors of safetensors files, read by name.

A configuration names tensors, never files, so a path cannot be smuggled in; and a file's header is
checked before anything is read by it.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from pathlib import Path
from typing import Any

from flexact.errors import ConfigError, IoError

_INDEX = "model.safetensors.index.json"
_HEADER_LIMIT = 100 << 20  # the format's own limit
_VALUES_LIMIT = 1 << 16  # one value per expert is the largest form
_RANK_LIMIT = 64
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class Checkpoint:
    """The safetensors files of one folder.

    Args:
        folder: The checkpoint's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._headers: dict[Path, tuple[dict[str, Any], int]] = {}

    def read(self, name: str) -> list[float]:
        """The values of tensor `name`.

        Raises:
            ConfigError: No file holds the tensor, or what it holds cannot be a parameter.
            IoError: A file is not what it claims to be.
        """
        for path in self._files_of(name):
            header, start = self._header(path)
            if name in header:
                return self._values(path, name, header[name], start)
        raise ConfigError(
            f"no safetensors file holds the tensor {name!r} that activation_params names", str(self.folder)
        )

    def _files_of(self, name: str) -> list[Path]:
        index = self.folder / _INDEX
        if index.is_file():
            if index.stat().st_size > _HEADER_LIMIT:
                raise IoError(f"not an index (it has more than {_HEADER_LIMIT} bytes)", str(index))
            files = _parse(index.read_bytes(), index).get("weight_map")
            file = files.get(name) if isinstance(files, dict) else None
            if isinstance(file, str) and _is_name(file):
                return [self.folder / file]
        # No pipe or device: reading one could wait for ever.
        return sorted(path for path in self.folder.glob("*.safetensors") if path.is_file())

    def _header(self, path: Path) -> tuple[dict[str, Any], int]:
        if path not in self._headers:
            if not path.is_file():
                raise IoError("there is no such file", str(path))
            size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
                if length > min(_HEADER_LIMIT, size - 8):
                    raise IoError(f"not a safetensors file (its header claims {length} bytes)", str(path))
                header = _parse(file.read(length), path)
            _check_extents(header, size - 8 - length, path)
            self._headers[path] = (header, 8 + length)
        return self._headers[path]

    def _values(self, path: Path, name: str, entry: Any, start: int) -> list[float]:
        where = f"{path}: tensor {name!r}"
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not isinstance(shape, list) or len(shape) > _RANK_LIMIT:
                raise ValueError
            count = math.prod(shape)
            regular = (
                all(type(n) is int and n >= 0 for n in (*shape, begin, end))
                and start + end <= path.stat().st_size
            )
        except (TypeError, KeyError, ValueError, OverflowError):
            raise ConfigError("the entry is malformed", where) from None
        if not isinstance(dtype, str):
            raise ConfigError("the entry is malformed", where)
        if dtype not in _BYTES:
            raise ConfigError(f"it holds {dtype}", where, f"an activation's parameter is {', '.join(_BYTES)}")
        if not regular or end - begin != count * _BYTES[dtype] or not 0 < count <= _VALUES_LIMIT:
            raise ConfigError(f"it does not hold what its shape {shape} says", where)
        with path.open("rb") as file:
            file.seek(start + begin)
            data = file.read(end - begin)
        return _decode(dtype, data, count)


def _is_name(file: str) -> bool:
    """Whether `file` names a file of the folder itself."""
    return file not in ("", ".", "..") and Path(file).name == file and "\0" not in file


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, in which no key may stand twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            raise ValueError("a key occurs twice")
        return made

    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise IoError(f"not a safetensors file ({str(error)[:200]})", str(path)) from None
    if not isinstance(header, dict):
        raise IoError("not a safetensors file (its header is not an object)", str(path))
    return header


def _check_extents(header: dict[str, Any], size: int, path: Path) -> None:
    """Every tensor lies inside the file's `size` bytes of data, and no two share bytes."""
    extents = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int for n in offsets):
            raise ConfigError("the entry is malformed", f"{path}: tensor {name[:200]!r}")
        begin, end = offsets
        if not 0 <= begin <= end <= size:
            raise ConfigError(
                "it does not hold what it claims inside the file", f"{path}: tensor {name[:200]!r}"
            )
        extents.append((begin, end))
    extents.sort()
    for (_, end), (begin, _) in itertools.pairwise(extents):
        if begin < end:
            raise IoError("two tensors share bytes", str(path))


def _decode(dtype: str, data: bytes, count: int) -> list[float]:
    if dtype == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    return list(struct.unpack(f"<{count}{ {'F64': 'd', 'F16': 'e'}.get(dtype, 'f') }", data))
