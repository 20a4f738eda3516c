"""A second device on a machine that has none: tensors whose values lie with the processor, and that mix with its tensors as little as a GPU's do.

They say that they are on `meta`, which every build of torch knows. What a GPU refuses is refused: an operation on tensors of both places, but for single
numbers, copies from one to the other, and places in a tensor. Values are the processor's, so that what runs on both devices can be compared bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objtune_cli.models import (
    base_model,  # repairs torchvision before the libraries below ask for it
    clip,
    loading,
)
from objtune_cli.runtime import devices

# isort: split
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
BETWEEN = ("copy_", "_to_copy", "index", "index_put_", "index_put", "_index_put_impl_")
"""Operations that a GPU takes with tensors of the processor: copies, and where in a tensor."""


class Elsewhere(Tensor):
    """A tensor of the second device; `here`: its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        made: Elsewhere = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=here.requires_grad,
        )
        made.here = here.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


class _Second(TorchDispatchMode):
    """Inside, what is made on the second device or moved to it is made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


class _Written(TorchFunctionMode):
    """Inside, numbers written down for the second device get there: no dispatcher hears of them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func in (torch.tensor, torch.as_tensor)
            and kwargs.get("device") is not None
            and torch.device(kwargs["device"]) == DEVICE
        ):
            return Elsewhere(func(*args, **kwargs | {"device": CPU}))
        if args and isinstance(args[0], Elsewhere):
            if func is Tensor.tolist:
                return args[0].here.tolist()
            if func is Tensor.new_tensor:
                return Elsewhere(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
            if func is Tensor.__getitem__ and isinstance(args[1], list):
                return func(args[0], torch.tensor(args[1]))
            if func in (Tensor.numpy, Tensor.__array__):
                raise TypeError("a tensor of the second device is no array: copy it to the processor first")
        return func(*args, **kwargs)


def _done(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the values, and where its results lie."""
    name = func.overloadpacket.__name__
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = any(isinstance(t, Elsewhere) for t in given)
    if there and name not in BETWEEN and any(not isinstance(t, Elsewhere) and t.dim() for t in given):
        raise RuntimeError(
            f"{func} on tensors of both devices: {', '.join(f'{type(t).__name__} {tuple(t.shape)}' for t in given)}"
        )
    if any(t.device == DEVICE and not isinstance(t, Elsewhere) for t in given):
        raise RuntimeError(f"{func} on a tensor without values")
    asked = kwargs.get("device")
    if asked is not None:
        there = torch.device(asked) == DEVICE
        kwargs = kwargs | {"device": CPU}
    out = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    first = args[0] if args and isinstance(args[0], Tensor) else None
    if func._schema.is_mutable and len(func._schema.returns) == 1 and first is not None:  # in place
        return first
    if name == "_local_scalar_dense" or not there:
        return out
    return tree_map(lambda t: Elsewhere(t) if isinstance(t, Tensor) else t, out)


def _values(given: Any) -> Any:
    return given.here if isinstance(given, Elsewhere) else given


def _known(kind: str) -> str:
    return "cpu" if kind == "meta" else kind


@contextmanager
def device() -> Iterator[torch.device]:
    """Inside, the second device is there; autocast there is the processor's."""
    autocast: Any = torch.autocast
    enabled: Any = torch.is_autocast_enabled
    torch.autocast = lambda kind, *args, **named: autocast(_known(kind), *args, **named)  # type: ignore[assignment,misc]
    torch.is_autocast_enabled = lambda kind="cpu": enabled(_known(kind))  # type: ignore[assignment]
    try:
        with _Written(), _Second():
            yield DEVICE
    finally:
        torch.autocast, torch.is_autocast_enabled = autocast, enabled  # type: ignore[misc]


def moved(module: Any) -> Any:
    """A module on the second device."""
    for inner in module.modules():
        for name, value in inner._parameters.items():
            if value is not None and not isinstance(value, Elsewhere):
                inner._parameters[name] = nn.Parameter(Elsewhere(value.data), requires_grad=value.requires_grad)
        for name, value in inner._buffers.items():
            if value is not None and not isinstance(value, Elsewhere):
                inner._buffers[name] = Elsewhere(value)
    return module


def used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every base and every CLIP be opened on the processor and be moved; libraries' loaders make use of `meta` themselves. Kernels that no such tensor has are others."""
    opened, towered, adamw = loading._load_components, clip.load, torch.optim.AdamW

    def loaded(folder: Path, at: torch.device, *more: Any) -> base_model.BaseModel:
        with _disable_current_modes():
            model = opened(folder, CPU, *more)
        again = model.reload_vae
        model.device = at
        if at == DEVICE:
            for module in (model.denoiser, model.vae, *model.text_encoders, model.text_encoder_3):
                if module is not None:
                    moved(module)
            model.reload_vae = lambda: _apart(again)
        return model

    def tower(source: Path, model: base_model.BaseModel, index: int = 0) -> clip.Clip:
        with _disable_current_modes():
            alike = SimpleNamespace(text_encoders=model.text_encoders, device=CPU, family=model.family)
            found = towered(source, alike, index)  # type: ignore[arg-type]
        if model.device == DEVICE:
            moved(found.clip)
            found.device = DEVICE
        return found

    def follow(layer: Any, adapter: str, device: Any = None) -> None:
        """peft's own lets adapters on `meta` wait there for their weights."""
        if isinstance(layer.get_base_layer().weight, Elsewhere):
            for part in (getattr(layer, name, None) for name in layer.adapter_layer_names):
                if isinstance(part, nn.ModuleDict) and adapter in part:
                    moved(part[adapter])

    monkeypatch.setattr(BaseTunerLayer, "_move_adapter_to_device_of_base_layer", follow)
    picked = devices.pick_device  # refuses it, as everybody's device that computes nothing

    monkeypatch.setattr(devices, "pick_device", lambda name: DEVICE if name == str(DEVICE) else picked(name))
    monkeypatch.setattr(loading, "_load_components", loaded)
    monkeypatch.setattr(clip, "load", tower)
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda *args, **named: adamw(*args, **{**named, "fused": False, "foreach": False})
    )


def _apart(again: Any) -> Any:
    with _disable_current_modes():
        module = again()
    return moved(module)
