"""Parameter values that a checkpoint holds: single tensors of safetensors files, read by name.

A configuration names tensors, never files, so a path cannot be smuggled in; and a file's header is
checked before anything is read by it.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from flexact.errors import ConfigError, IoError

_INDEX = "model.safetensors.index.json"
_HEADER_LIMIT = 100 << 20  # the format's own limit
_VALUES_LIMIT = 1 << 16  # one value per expert is the largest form
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
            file = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).get(name)
            if isinstance(file, str) and Path(file).name == file:
                return [self.folder / file]
        return sorted(self.folder.glob("*.safetensors"))

    def _header(self, path: Path) -> tuple[dict[str, Any], int]:
        if path not in self._headers:
            size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
                if length > min(_HEADER_LIMIT, size - 8):
                    raise IoError(f"not a safetensors file (its header claims {length} bytes)", str(path))
                try:
                    header = json.loads(file.read(length))
                except ValueError as error:
                    raise IoError(f"not a safetensors file ({error})", str(path)) from None
            if not isinstance(header, dict):
                raise IoError("not a safetensors file (its header is not an object)", str(path))
            self._headers[path] = (header, 8 + length)
        return self._headers[path]

    def _values(self, path: Path, name: str, entry: Any, start: int) -> list[float]:
        where = f"{path}: tensor {name!r}"
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            count = math.prod(shape)
            regular = (
                all(type(n) is int and n >= 0 for n in (*shape, begin, end))
                and start + end <= path.stat().st_size
            )
        except (TypeError, KeyError, ValueError):
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


def _decode(dtype: str, data: bytes, count: int) -> list[float]:
    if dtype == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[i : i + 2] for i in range(0, len(data), 2))
    return list(struct.unpack(f"<{count}{ {'F64': 'd', 'F16': 'e'}.get(dtype, 'f') }", data))
