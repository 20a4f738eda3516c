"""Which trained objects a prompt names, loaded and ready to be drawn."""

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import InputError, MissingError
from objtune_cli.stages.context import Context
from objtune_cli.store import artifact, header, refs
from objtune_cli.store.artifact import Record
from objtune_cli.store.refs import Ref

if TYPE_CHECKING:
    from objtune_cli.models.stack import Stack
    from objtune_cli.models.tokens import Placeholders


@dataclass(frozen=True, slots=True)
class Named:
    """A `<name>` of a prompt and the adapter that holds it."""

    name: str
    record: Record
    sha256: str


def named(ctx: Context, prompts: list[str], source: Ref | None = None) -> list[Named]:
    """The objects that the prompts name, in order of first mention; `source`: the adapter that they are all taken from.

    Raises:
        InputError: A prompt is empty or mentions two versions of one object, or the source does not hold one.
        MissingError: No adapter holds the name; the hint lists what there is.
    """
    import re

    found: dict[str, Named] = {}
    for prompt in prompts:
        if not prompt.strip():
            raise InputError("the prompt is empty", 'for example `objtune generate "a photo of <rex> on the beach"`')
        if not prompt.isprintable():
            raise InputError("the prompt holds characters that are no text", "type it again")
        for text in re.findall(r"<[^<>]*>", prompt):
            match = re.fullmatch(r"<([a-z0-9][a-z0-9._-]*)(?:@([0-9]+))?>", text)
            if match is None:
                raise InputError(f"{text} cannot be the name of an object", "names are lower case: `<rex>`, or `<rex@2>` for a version")
            name, version = match.groups()
            ref = _held(ctx, name, source) if source else _holder(ctx, name, int(version or 0))
            if name in found and found[name].record.ref != ref:
                raise InputError(f"the prompts ask for {found[name].record.ref} and {ref}", "use one version of an object at a time")
            if name not in found:
                record, digest = artifact.verified(ctx.root, ref)
                ctx.check_base(record)
                found[name] = Named(name, record, digest)
    return list(found.values())


def _held(ctx: Context, name: str, source: Ref) -> Ref:
    """The adapter that was asked for, which must hold the object."""
    own = artifact.read_record(ctx.root, source).objects
    if name not in own:
        raise InputError(f"{source} holds no <{name}>", f"it holds {', '.join(f'<{o}>' for o in own)}")
    return source


def is_merged(record: Record) -> bool:
    """Whether an adapter was made of others: those are the objects' own."""
    return any(role.startswith("adapter.") for role in record.inputs)


def _holder(ctx: Context, name: str, version: int) -> Ref:
    """The adapter of that name, or the joint one that holds the object.

    Raises:
        MissingError: None holds it, or several joint ones do.
    """
    newest = {n: artifact.read_record(ctx.root, refs.resolve(ctx.root, Ref("adapter", n))) for n in refs.names(ctx.root, "adapter")}
    if name in newest and name in newest[name].objects:
        return refs.resolve(ctx.root, Ref("adapter", name, version))
    joint = [record.ref for record in newest.values() if name in record.objects and not is_merged(record)]
    if len(joint) > 1:
        raise MissingError(f"<{name}> is ambiguous: {', '.join(map(str, joint))}", "train it under a name of its own with `--name`")
    if joint and version in (0, joint[0].version):
        return joint[0]
    if name in newest:
        raise MissingError(f"{newest[name].ref} holds several objects", f"name them: {', '.join(f'<{o}>' for o in newest[name].objects)}")
    known = ", ".join(sorted({f"<{o}>" for record in newest.values() for o in record.objects}))
    wanted = f"<{name}@{version}>" if version else f"<{name}>"
    hint = f"trained objects: {known}" if known else "train one first: `objtune train photo.jpg --class dog`"
    raise MissingError(f"no trained object {wanted}", hint)


def inputs(objects: list[Named]) -> dict[str, dict[str, str]]:
    """The adapters as `inputs` of a scene."""
    return {f"adapter.{o.name}": {"ref": str(o.record.ref), "sha256": o.sha256} for o in objects}


def tensors(ctx: Context, item: Named) -> dict[str, Any]:
    """An object's adapter as torch tensors."""
    import torch

    _, arrays = artifact.load(ctx.root, item.record.ref, item.sha256)
    return {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}


def has_words(ctx: Context, item: Named) -> bool:
    """Whether an object's adapter has layers of a text encoder, by its header alone."""
    return any(name.startswith("text_encoder") for name in header.read(item.record.ref.path(ctx.root))[1])


def photo(ctx: Context, item: Named) -> dict[str, Any] | None:
    """The mask artifact, photo included, that an object was learned from: its arrays; None where it is not there any more."""
    for role, source in item.record.inputs.items():
        if not role.startswith(("embedding.", "adapter.")):
            continue
        with contextlib.suppress(MissingError):
            origin = artifact.read_record(ctx.root, refs.resolve(ctx.root, refs.parse(source["ref"])))
            if item.name not in origin.objects:
                continue
            if origin.kind == "adapter":
                return photo(ctx, replace(item, record=origin))
            if "mask" in origin.inputs:
                mask = origin.inputs["mask"]
                return artifact.load(ctx.root, refs.resolve(ctx.root, refs.parse(mask["ref"])), mask["sha256"])[1]
    return None


def shape(ctx: Context, item: Named) -> float:
    """Width over height of an object in its photo; 1 where the photo is not there any more."""
    found = photo(ctx, item)
    if found is None:
        return 1.0
    ys, xs = (found["mask"] > 127).nonzero()
    return float((xs.max() - xs.min() + 1) / (ys.max() - ys.min() + 1)) if len(ys) else 1.0


def add_words(stack: "Stack", objects: list[Named], weights: dict[str, dict[str, Any]]) -> "Placeholders":
    """Teach the stack's tokenizer and text encoder the objects' names."""
    from objtune_cli.models.tokens import Placeholders, learned_names, read

    words = Placeholders(stack)
    for item in objects:
        words.add(item.name, read(weights[item.name], learned_names(item.name)), item.record.objects[item.name])
    return words


def check_length(ctx: Context, stack: "Stack", prompt: str) -> None:
    """Tell the user where the base cuts a prompt off."""
    count = len(stack.tokenizer(prompt).input_ids)
    limit = stack.tokenizer.model_max_length
    if count > limit:
        ctx.report.note(f"the prompt has {count} tokens; the base reads the first {limit}")
