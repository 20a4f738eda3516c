"""`import`: a LoRA or an embedding file of other tools becomes an adapter, so that it can be drawn and composed here."""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from objtune_cli.errors import InputError, ResourceError
from objtune_cli.stages import classes
from objtune_cli.stages.context import Context, Done, tools
from objtune_cli.store import artifact, header
from objtune_cli.store.artifact import Record
from objtune_cli.store.refs import check_name

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
MAX_FILE = 4 << 30
MAX_HEADER = 8 << 20
SECONDS = 120
"""A pickle's process is given so long."""


def run(ctx: Context, files: list[Path], name: str, class_word: str, word: str, *, allow_pickle: bool) -> Done:
    """One adapter of a LoRA file, an embedding file, or both of one object.

    Args:
        word: What the LoRA was trained under ("sks dog"); its vectors become the token, where no file has vectors.

    Raises:
        InputError: A file that cannot be read, two of one kind, or a pickle without leave. IncompatibleError: for another base.
    """
    name = check_name(name)
    read = [(path, _data(path)) for path in files]
    inputs = {f"file.{i}": {"ref": "", "sha256": hashlib.sha256(data).hexdigest()} for i, (_, data) in enumerate(read)}
    record = Record("adapter", name, {name: class_word}, inputs, {"word": word}, ctx.base.record())
    done = ctx.reuse(record)
    if done:
        return done
    classes.warn(ctx, class_word)
    from objtune_cli.models import foreign, tokens

    opened = [(path.name, _tensors(path, data, allow_pickle)) for path, data in read]
    stack = ctx.stack()
    tensors: dict[str, Any] = {}
    rows: list[Any] = []
    layered = 0
    for what, weights in opened:
        if foreign.is_lora(weights):
            tensors |= foreign.lora(stack, weights, what)
            layered += 1
        vectors = foreign.rows(stack, weights, what)
        rows += [] if vectors is None else [vectors]
    if layered > 1 or len(rows) > 1:
        raise InputError("two files of one kind are two objects", "import each under a name of its own")
    vectors = rows[0] if rows else tokens.class_rows(stack, word or class_word)
    tensors |= tokens.stored(vectors, stack.widths, tokens.learned_names(name))
    rank = max((v.shape[0] for k, v in tensors.items() if k.endswith("lora_A.weight")), default=0)
    metrics = {"rank": rank, "vectors": len(vectors), "layers": sum(k.endswith("lora_A.weight") for k in tensors)}
    return Done(artifact.publish(ctx.root, replace(record, metrics=metrics, tools=tools()), tensors), metrics=metrics)


def _data(path: Path) -> bytes:
    """The file's bytes, read once: what is checked is what is used."""
    try:
        with header.open_regular(path) as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", "give a .safetensors file") from None
    if len(data) > MAX_FILE:
        raise InputError(
            f"{path} is larger than {MAX_FILE >> 30} GB", "a LoRA or an embedding is far smaller; a whole model is given as `--base`"
        )
    return data


def _tensors(path: Path, data: bytes, allow_pickle: bool) -> dict[str, Any]:
    """The tensors of a safetensors file, or of a pickle where that is allowed."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if path.suffix.lower() in PICKLES:
        if not allow_pickle:
            raise InputError(
                f"{path.name} is a pickle, a kind of file that can hold programs",
                "`--allow-pickle` reads its tensors alone, or get it as .safetensors",
            )
        data = _unpickled(path.name, data)
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(MAX_HEADER, max(0, len(data) - 8)):
        raise InputError(f"{path.name} is no safetensors file, or is cut off", "get it again")
    try:
        found = load(data)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read: {str(error).splitlines()[0]}", "get it again") from None
    if not found:
        raise InputError(f"{path.name} holds no tensors", "give a LoRA or an embedding")
    if len(found) > header.MAX_TENSORS:
        raise InputError(
            f"{path.name} holds {len(found)} tensors", "a LoRA or an embedding holds fewer; a whole model is given as `--base`"
        )
    return found


def _unpickled(name: str, data: bytes) -> bytes:
    """A pickle's tensors as the bytes of a safetensors file, made by a process of its own.

    Raises:
        InputError: It holds more than tensors, or is broken. ResourceError: it took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.write_bytes(data)
        command = [sys.executable, "-P", "-m", "objtune_cli.models.pickled", str(source), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ResourceError(f"{name} took longer than {SECONDS} s to read", "get it as .safetensors") from None
        if done.returncode or not target.exists():
            said = (done.stderr.strip().splitlines() or ["it was ended"])[-1][:120]
            raise InputError(f"{name} is no pickle of plain tensors: {said}", "get it as .safetensors, or save it as one where it was made")
        return target.read_bytes()
