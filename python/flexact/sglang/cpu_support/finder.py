"""Makes torchvision and sgl_kernel importable where SGLang's CPU engine has neither in a CPU build.

Copied into site-packages as `_flexact_sglang_cpu.py` and imported at interpreter start by a .pth file,
so it imports nothing of its own until one of the two names is asked for.
"""

import importlib.abc
import importlib.machinery
import sys
import types


class TorchvisionOperators(importlib.abc.MetaPathFinder):
    """Declares the two operators that torchvision's Python code refers to at import.

    A torchvision built for CUDA cannot load its library beside a CPU torch, and its import then ends
    with "operator torchvision::nms does not exist". Where the library loads, nothing is declared.
    """

    def find_spec(self, name, path=None, target=None):
        """Acts before the first import of torchvision; never supplies it."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            self.declare(importlib.machinery.PathFinder.find_spec(name))
        return None

    def declare(self, spec):
        """Declares the operators if torchvision's own library does not bring them."""
        import pathlib

        import torch

        if spec is None or torch.version.cuda or getattr(torch.version, "hip", None):
            return
        for library in pathlib.Path(spec.origin).parent.glob("_C*.so"):
            try:
                torch.ops.load_library(str(library))
            except OSError:
                continue
        if hasattr(torch.ops.torchvision, "nms"):
            return
        self.library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys._flexact_torchvision = self  # the library's declarations live as long as it does


class KernelStandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Supplies `sgl_kernel` where no package of that name is installed: any use of it raises.

    It stands last in `sys.meta_path`, so that a real package always wins.
    """

    def find_spec(self, name, path=None, target=None):
        """The stand-in's spec for `sgl_kernel`."""
        if name == "sgl_kernel":
            return importlib.machinery.ModuleSpec(name, self, origin="flexact stand-in")
        return None

    def create_module(self, spec):
        """A module whose every name is a function that raises."""
        return _Module(spec.name)

    def exec_module(self, module):
        """Nothing to run."""


class _Module(types.ModuleType):
    __version__ = "0.0.0+flexact.stand.in"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args, **kwargs):
            raise NotImplementedError(
                f"sgl_kernel.{name}: there is no CPU build of sgl_kernel, only a stand-in for its import"
            )

        absent.__name__ = name
        return absent


sys.meta_path.insert(0, TorchvisionOperators())
sys.meta_path.append(KernelStandIn())
