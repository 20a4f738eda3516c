"""Converts a pickle to safetensors in a separate process: `python -m objtune_cli.interchange.pickle_sandbox FILE OUT`.

The restricted unpickler (`weights_only`) runs no code from the file. The process also has a memory and a time limit.
No other module opens pickles of unknown origin.
"""

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

MAX_MEMORY = 16 << 30
"""Limit of the address space, bytes; torch's libraries take a large part of it."""


class ParameterDictStub:
    """Inert stand-in for a `torch.nn.ParameterDict` in a pickle."""


def collect_tensors(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested dicts, lists and parameter dicts to tensors by dotted keys; other values are dropped."""
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value.detach().clone().contiguous()}
    if isinstance(value, ParameterDictStub):
        value = vars(value).get("_parameters")
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    tensors: dict[str, Any] = {}
    for key, inner in value.items():
        tensors |= collect_tensors(inner, f"{name}.{key}" if name else str(key))
    return tensors


def describe_error(error: Exception) -> str:
    """One-line reason why a pickle cannot be read, without torch's advice to disable the restriction."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    global_ = re.search(r"GLOBAL ([\w.]+)", text)
    if global_:
        return f"it needs {global_[1]}, which is code, not data"
    if re.search(
        r"PytorchStreamReader|central directory|EOF|truncated|Ran out of input|unexpected pos|storage", text, re.I
    ):
        return "it is cut off or damaged"
    return (
        "it contains more than tensors"
        if "Weights only" in text or "weights_only" in text
        else text[:100] or type(error).__name__
    )


def convert(source: str) -> bytes:
    """Convert the tensors of a pickle to the bytes of a safetensors file; `ParameterDictStub` is the only class allowed."""
    import torch
    from safetensors.torch import save

    with torch.serialization.safe_globals([(ParameterDictStub, "torch.nn.modules.container.ParameterDict")]):
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    inner = (
        loaded.get("state_dict") if isinstance(loaded, dict) else None
    )  # as PyTorch Lightning and old merges wrap weights
    return save(collect_tensors(inner if isinstance(inner, dict) else loaded))


def main(source: str, target: str) -> int:
    """Exit code: 0 if the file was written, 3 if the pickle is unreadable."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows and macOS know no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        data = convert(source)
    except Exception as error:  # malformed files raise many kinds of errors
        sys.stderr.write(describe_error(error) + "\n")
        return 3
    Path(target).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
