"""The one entrance of pickles, a process of its own: `python -m objtune_cli.interchange.pickle_sandbox FILE OUT` writes its tensors as safetensors.

The restricted unpickler (`weights_only`) runs no code of the file's; should it ever fail, it fails in a process
that may take only so much memory and time. Nothing else in the package opens a pickle on a user's behalf.
"""

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

MAX_MEMORY = 16 << 30
"""Address space, bytes: torch's own libraries take a good part."""


class ParameterDictStub:
    """What a `torch.nn.ParameterDict` of a file becomes: its parts, and nothing that could run."""


def collect_tensors(value: Any, name: str = "") -> dict[str, Any]:
    """Every tensor of nested dicts, lists and parameter tables by its dotted keys; what is no tensor is left behind."""
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value.detach().clone().contiguous()}
    if isinstance(value, ParameterDictStub):
        value = vars(value).get("_parameters")
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= collect_tensors(inner, f"{name}.{key}" if name else str(key))
    return found


def describe_error(error: Exception) -> str:
    """Why a pickle cannot be read, in a line without torch's advice to read it all the same."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())
    global_ = re.search(r"GLOBAL ([\w.]+)", text)
    if global_:
        return f"it needs {global_[1]}, which is a program and not numbers"
    if re.search(
        r"PytorchStreamReader|central directory|EOF|truncated|Ran out of input|unexpected pos|storage", text, re.I
    ):
        return "it is cut off or damaged"
    return (
        "it holds more than tensors"
        if "Weights only" in text or "weights_only" in text
        else text[:100] or type(error).__name__
    )


def convert(source: str) -> bytes:
    """The tensors of a pickle as the bytes of a safetensors file; of classes none but a parameter table's stand-in is made."""
    import torch
    from safetensors.torch import save

    with torch.serialization.safe_globals([(ParameterDictStub, "torch.nn.modules.container.ParameterDict")]):
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    inner = (
        loaded.get("state_dict") if isinstance(loaded, dict) else None
    )  # as PyTorch Lightning and old merges wrap weights
    return save(collect_tensors(inner if isinstance(inner, dict) else loaded))


def main(source: str, target: str) -> int:
    """0: written; 3: not readable so."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows and macOS know no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    try:
        data = convert(source)
    except Exception as error:  # whatever it is: malformed files raise a dozen kinds
        sys.stderr.write(describe_error(error) + "\n")
        return 3
    Path(target).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
