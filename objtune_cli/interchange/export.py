"""`export`: write an adapter as files that other tools read.

docs/reference/file-format.md lists the key names. Adapters have alpha = rank, which readers assume if a file has no alpha.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.interchange import model_card, trigger_words
from objtune_cli.interchange.export_files import AdapterExport
from objtune_cli.interchange.lora_keys import KOHYA_PREFIXES
from objtune_cli.interchange.number_formats import DTYPES, convert
from objtune_cli.models import families
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow.output_files import OutputFile, is_file_name, write_files

FORMATS = ("diffusers", "kohya", "embedding", "bundle", "hub")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
HUB_FOLDERS = {"diffusers": ".", "kohya": "kohya", "embedding": "embeddings"}
"""Folder of each format in a hub repository."""
Note = Callable[[str], None]


def run(
    store: Store, ref: Ref, form: str, out: Path, *, dtype: str = "fp32", trigger: Sequence[str] = (), force: bool = False,
    note: Note = lambda text: None,
) -> list[Path]:  # fmt: skip
    """Write the files of one format into the folder `out`; see `plan` and `output_files.write_files`.

    Returns:
        diffusers: pytorch_lora_weights.safetensors; kohya: <name>.safetensors; embedding: <trigger>.safetensors for each
        object; bundle: <name>-bundle.safetensors, kohya's with the embeddings inside; hub: all but the bundle, with a model card.
    """
    return write_files(plan(store, ref, form, out, dtype=dtype, trigger=trigger, note=note), force=force, note=note)


def plan(
    store: Store,
    ref: Ref,
    form: str,
    out: Path,
    *,
    dtype: str = "fp32",
    trigger: Sequence[str] = (),
    note: Note = lambda text: None,
) -> list[OutputFile]:
    """Encode the files of one format without writing them.

    Args:
        out: A folder; or a file that ends in .safetensors, where the format is one file.
        dtype: Number format of the weights. trigger: `WORD`, or `NAME=WORD` for one of several objects.

    Raises:
        IncompatibleError: No adapter, or one that the format cannot hold. UsageError: no such format, or values too large for the number format.
        DamagedError: A weight is NaN or infinite.
    """
    _check_arguments(ref, form, dtype)
    record, tensors = store.read(ref)
    family = families.get_family(record.base.get("family", ""))
    has_layers = any(key.startswith(tuple(KOHYA_PREFIXES)) for key in tensors)
    if form in ("diffusers", "kohya", "bundle") and not has_layers:
        raise IncompatibleError(f"{ref} contains only a token and no LoRA", "use `--format embedding`")
    store.require_finite(ref)  # other tools draw black images from it without an error
    words = _choose_triggers(record, form, out, trigger)
    if form in ("embedding", "bundle", "hub"):
        for line in trigger_words.describe_common(words, record.objects, is_file=is_file_name(out)):
            note(line)
    exported = AdapterExport(record, convert(ref, tensors, dtype, note), family, words)
    if form != "hub":
        return list(_list_outputs(store, exported, form, out))
    forms = ["diffusers", "kohya", "embedding"] if has_layers else ["embedding"]
    files = [file for each in forms for file in _list_outputs(store, exported, each, out / HUB_FOLDERS[each])]
    names = [file.path.relative_to(out).as_posix() for file in files]
    return [*files, *model_card.list_outputs(store, record, family, out, names, words)]


def _check_arguments(ref: Ref, form: str, dtype: str) -> None:
    """Refuse what cannot be exported.

    Raises:
        IncompatibleError: No adapter. UsageError: no such format.
    """
    if ref.kind != "adapter":
        raise IncompatibleError(f"{ref} is not an adapter", "`objtune list adapter` shows what can be exported")
    for what, value, choices in (("format", form, FORMATS), ("number format", dtype, tuple(DTYPES))):
        if value not in choices:
            raise UsageError(f"there is no {what} {value}", f"one of {', '.join(choices)}")


def _choose_triggers(record: Record, form: str, out: Path, trigger: Sequence[str]) -> dict[str, str]:
    """Trigger word of each object; if `out` is the file of an embedding, its stem is the trigger word.

    Raises:
        UsageError: One file for several, or two triggers for one object.
    """
    words = trigger_words.choose_triggers(list(record.objects), trigger, is_inside=form == "bundle")
    if not is_file_name(out):
        return words
    if form == "hub" or (form == "embedding" and len(words) > 1):
        raise UsageError(f"{form} writes several files, {out} is one", "give a folder with `--out DIR`")
    if form != "embedding":
        return words
    (name,) = words
    if trigger and words[name] != out.stem:
        raise UsageError(
            f"the file {out.name} and --trigger {words[name]} do not match",
            "the file name is the trigger word: give only one of them",
        )
    return {name: out.stem}


def _list_outputs(store: Store, exported: AdapterExport, form: str, out: Path) -> Iterator[OutputFile]:
    """Encode the files of one format other than `hub`."""
    name = exported.record.name
    single = {"diffusers": DIFFUSERS_FILE, "kohya": f"{name}.safetensors", "bundle": f"{name}-bundle.safetensors"}
    embeddings = {each: f"{exported.words[each]}.safetensors" for each in exported.record.objects}
    for kind, file in ({form: single[form]} if form in single else embeddings).items():
        path = out if is_file_name(out) else out / file
        yield OutputFile(path, exported.encode(kind), partial(exported.is_earlier_export, store, kind))
