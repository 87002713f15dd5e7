"""What SGLang's CPU engine needs where two packages have no CPU build.

Run as `python -m flexact.sglang.cpu_support`.

The engine imports torchvision, whose Linux wheel on the public index is a CUDA build that cannot load
beside a CPU torch, and sgl_kernel, which has no CPU wheel at all; it calls neither on the path without
AMX. The installer writes two small files into site-packages, so that every process that SGLang spawns
has them from its first import on:

- `_flexact_sglang_cpu.pth`, one line that imports
- `_flexact_sglang_cpu.py`, a copy of `finder.py` beside this file.

A package that is there and works always wins: nothing of it is replaced or overwritten.
"""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
from pathlib import Path

_MODULE = "_flexact_sglang_cpu"


def site_packages() -> Path:
    """Where this interpreter's environment keeps its packages."""
    return Path(site.getsitepackages()[0])


def missing() -> list[str]:
    """Which of the two packages SGLang's CPU engine could not import here without help."""
    # A fresh interpreter without the finder: what an import really does, not what files suggest.
    probe = (
        "import sys\n"
        f"sys.modules.pop({_MODULE!r}, None)\n"
        f"sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != {_MODULE!r}]\n"
        "import torch\n"
        "for name in ('torchvision', 'sgl_kernel'):\n"
        "    try: __import__(name)\n"
        "    except Exception: print(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"torch cannot be imported here: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout.split()


def has_gpu_torch() -> bool:
    """Whether the installed torch is a CUDA or ROCm build, whose own packages belong beside it."""
    probe = "import torch; print(torch.version.cuda or torch.version.hip or '')"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    return bool(result.stdout.strip())


def install() -> str:
    """Writes what is missing into site-packages; returns one line that says what was done."""
    if has_gpu_torch():
        return "torch is a GPU build: SGLang's own packages belong here, nothing written"
    names = missing()
    if not names:
        return "torchvision and sgl_kernel can be imported, nothing written"
    folder = site_packages()
    shutil.copyfile(Path(__file__).with_name("finder.py"), folder / f"{_MODULE}.py")
    (folder / f"{_MODULE}.pth").write_text(f"import {_MODULE}\n", encoding="utf-8")
    return f"stand-ins for {' and '.join(names)} are in place ({folder / _MODULE}.py)"


def uninstall() -> str:
    """Removes what `install` wrote."""
    found = [path for suffix in (".py", ".pth") if (path := site_packages() / f"{_MODULE}{suffix}").exists()]
    for path in found:
        path.unlink()
    return f"removed {len(found)} files"
