"""The one entrance of pickles, a process of its own: `python -m objtune_cli.models.pickled FILE OUT` writes its tensors as safetensors.

The restricted unpickler (`weights_only`) runs no code of the file's; should it ever fail, it fails in a process
that may take only so much memory and time. Nothing else in the package opens a pickle on a user's behalf.
"""

import sys
from pathlib import Path
from typing import Any

MEMORY = 16 << 30
"""Address space, bytes: torch's own libraries take a good part."""


def tensors(value: Any, name: str = "") -> dict[str, Any]:
    """Every tensor of nested dicts by its dotted keys; what is no tensor is left behind."""
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value.detach().clone().contiguous()}
    if not isinstance(value, dict):
        return {}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= tensors(inner, f"{name}.{key}" if name else str(key))
    return found


def main(source: str, target: str) -> int:
    """0: written; 3: not readable so."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import torch
    from safetensors.torch import save

    try:
        found = tensors(torch.load(source, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever it is: malformed files raise a dozen kinds
        sys.stderr.write((" ".join(str(error).split())[:200] or type(error).__name__) + "\n")
        return 3
    Path(target).write_bytes(save(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
