"""Modules that libraries import and commands seldom use: Python executes them when something first reads them."""

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

LAZY = ("torchvision.datasets", "torchvision.models", "torchvision.ops", "scipy.stats")
"""`import torchvision` executes the first three; diffusers' samplers import the last, for one kind of noise schedule."""


class LazyLoader(importlib.abc.Loader):
    """A loader that executes a module when one of its attributes is first read.

    `importlib.util.LazyLoader` of Python 3.11 lets other threads see a module half executed; this one has a lock.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.lock = threading.RLock()
        self.is_begun = False

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """A new module, see `importlib.abc.Loader`."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Postpone the execution of a module to the first attribute that it lacks."""

        def read(name: str) -> Any:
            if name.startswith("__") and name != "__all__":  # who asks so asks every module
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            with self.lock:
                if not self.is_begun:
                    self._execute(module)
                own = module.__getattr__
                if name in module.__dict__ or own is read:
                    return _read(module, name)
            return own(name)

        module.__getattr__ = read  # type: ignore[method-assign]

    def _execute(self, module: ModuleType) -> None:
        self.is_begun = True
        try:
            self.loader.exec_module(module)
        except BaseException:
            self.is_begun = False  # the next reader gets the same error
            raise


def _read(module: ModuleType, name: str) -> Any:
    try:
        return module.__dict__[name]
    except KeyError:
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}") from None


class WrappedLoader(importlib.abc.Loader):
    """A loader that leaves the execution of a module to a function."""

    def __init__(self, loader: Any, wrapper: "Wrapper") -> None:
        self.loader, self.wrapper = loader, wrapper

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """A new module, see `importlib.abc.Loader`."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Call the function with the module and with what executes it."""
        self.wrapper(module, lambda: self.loader.exec_module(module))


Wrapper = Callable[[ModuleType, Callable[[], None]], None]
"""What executes a module: it gets the module and a function that does so."""


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the loaders of some modules, which are those of `LAZY` and of `wrappers`."""

    def __init__(self) -> None:
        self.wrappers: dict[str, Wrapper] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The usual spec with another loader; None for all other modules."""
        if name not in LAZY and name not in self.wrappers:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader) if name in LAZY else WrappedLoader(spec.loader, self.wrappers[name])
        return spec


_finder = _Finder()


def install(wrappers: Mapping[str, Wrapper] = MappingProxyType({})) -> None:
    """Make the modules in `LAZY` lazy if they are not imported yet; those in `wrappers` are executed by their functions."""
    _finder.wrappers |= wrappers
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
