"""Writes the model card of an exported object and uploads exports to the hub."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from objtune_cli.errors import InputError, ObjtuneError, ResourceError
from objtune_cli.interchange import diffusers_example
from objtune_cli.lora import file_names
from objtune_cli.models import hub_cache
from objtune_cli.models.families import Family
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.adapter import EMBEDDING_ROLE
from objtune_cli.store.kinds.embedding import mask_inputs
from objtune_cli.store.refs import Ref, parse
from objtune_cli.store.store import Store
from objtune_cli.workflow.output_files import OutputFile

SIGNATURE_START = "<!-- objtune card of "


def base_licence(record: Record, family: Family) -> tuple[str, str]:
    """Name and address of the licence of the base's weights; empty texts if the base is not a pinned one."""
    ident = record.base.get("id", "")
    if ident == "toybox":
        return "apache-2.0", ""
    repositories = {*family.hub, *(repository for repository, _ in family.hub.values())}
    return family.licence if ident in repositories else ("", "")


def list_outputs(
    store: Store, record: Record, family: Family, out: Path, files: Sequence[str], words: Mapping[str, str]
) -> list[OutputFile]:
    """README.md with the hub's front matter, and the images that it shows.

    Args:
        files: Paths of the other exported files, relative to `out`. words: Object to trigger word.
    """
    versions = [Ref("adapter", record.name, version) for version in store.list_versions("adapter", record.name)]
    images = [
        OutputFile(
            out / "pictures" / picture.name,
            picture.read_bytes(),
            lambda content: any(content == p.read_bytes() for v in versions for p in store.list_images(v)),
        )
        for picture in store.list_images(record.ref)
    ]
    text = _front_matter(record, family) + _body(
        record, family, files, [file.path.relative_to(out).as_posix() for file in images], words,
        _describe_source(store, record),
    )  # fmt: skip
    return [*images, OutputFile(out / "README.md", _sign(record, text), partial(_is_untouched, store, versions))]


def _describe_source(store: Store, record: Record) -> str:
    """The photos of the object or objects as the start of a sentence; without them if their artifacts are removed."""
    count = 0
    for role, source in record.inputs.items():
        if role.startswith(EMBEDDING_ROLE):
            with contextlib.suppress(ObjtuneError):
                origin = store.read_record(store.resolve(parse(source["ref"])))
                count = max(count, len(mask_inputs(origin.inputs)))  # several objects share one photo
    return {0: "Made", 1: "Learned from one photo"}.get(count, f"Learned from {count} photos")


def _sign(record: Record, text: str) -> bytes:
    """Append a line with a hash, by which a later export recognises an unedited card."""
    digest = hashlib.sha256(f"{record.digest}{text}".encode()).hexdigest()
    return f"{text}\n{SIGNATURE_START}{record.ref}, {digest} -->\n".encode()


def _is_untouched(store: Store, versions: Sequence[Ref], content: bytes) -> bool:
    """Whether a card is the unedited card of one of these versions."""
    text = content.decode(errors="replace").rpartition(f"\n{SIGNATURE_START}")[0]
    for version in versions:
        with contextlib.suppress(ObjtuneError):  # a damaged version is reported elsewhere
            if content == _sign(store.read_record(version), text):
                return True
    return False


def _base_repository(record: Record) -> str:
    ident = record.base.get("id", "")
    return hub_cache.HUB_REPOSITORIES.get(ident, ident if ident.count("/") == 1 else "")


def _front_matter(record: Record, family: Family) -> str:
    name, link = base_licence(record, family)
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        f"tags: [lora, text-to-image, {file_names.of_family(family).hub_tag}, objtune]",
    ]
    if _base_repository(record):
        lines.append(f"base_model: {json.dumps(_base_repository(record))}")
    if name:
        lines.append(f"license: {name if name in ('apache-2.0', 'creativeml-openrail-m', 'openrail++') else 'other'}")
    if link:
        lines.append(f"license_link: {link}")
    words = " and ".join(f"<{o}>" for o in record.objects)
    return "\n".join([*lines, f"instance_prompt: {json.dumps('a photo of ' + words)}", "---", "", ""])


def _describe_words(family: Family, word: str, class_word: str) -> str:
    """How other tools name the object in a prompt."""
    if not file_names.of_family(family).tools_read_embeddings:
        return f"""diffusers reads the embedding as below. Other tools take the LoRA alone: write "{class_word}" in the object's place there."""
    return f"""In A1111 and Forge the name of the file in `embeddings/` is the word: `{word}`; in ComfyUI `embedding:{word}`. A file that is
renamed to a common word takes that word over: as `{class_word}.safetensors` it would make every {class_word} of any prompt this one."""


def _body(
    record: Record,
    family: Family,
    files: Sequence[str],
    image_paths: Sequence[str],
    words: Mapping[str, str],
    source: str,
) -> str:
    """Text of the card: trigger words, files, example code, settings, metrics and licence."""
    name, link = base_licence(record, family)
    base = _base_repository(record) or record.base.get("id", "?")
    triggers = "\n".join(
        f"- `<{o}>`: one {word}; `{words[o]}` where a word is the name of a file" for o, word in record.objects.items()
    )
    first, class_word = next(iter(record.objects.items()))
    settings = "\n".join(f"| {key} | {value} |" for key, value in sorted(record.config.items()))
    metrics = "\n".join(f"| {key} | {value} |" for key, value in sorted(record.metrics.items()))
    pictures = "\n".join(f"![{path}]({path})" for path in image_paths)
    base_line = f"[{name}]({link})" if link else name or "not known here; see the base"
    return f"""# {record.name}

{pictures}

{source} by `objtune` on {base} ({family.title}); LoRA of rank {record.config.get("rank", "?")} and the objects' own words.

## Words

{triggers}

{_describe_words(family, words[first], class_word)}

## Files

{chr(10).join(f"- `{file}`" for file in files)}

## With diffusers

```python
{chr(10).join(diffusers_example.write_example(family, base, first, class_word, words[first]))}
```

## Settings

| setting | value |
|---|---|
{settings}

| measured | value |
|---|---|
{metrics}

## Licence of the base

{base_line}. What is drawn and what is passed on is bound by it.
"""


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a folder to the hub, create the repository if needed, and return its address.

    Raises:
        InputError: Invalid repository name. ResourceError: No network or no access.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    from objtune_cli.interchange import hub_environment

    hub_environment.check_environment()
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="objtune export")
    except HFValidationError:
        raise InputError(f"{repository} is not a repository name", "for example `--push you/rex`") from None
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        lines = str(error).strip().splitlines()
        raise ResourceError(
            f"the hub did not take it: {lines[0] if lines else 'no access'}",
            "`hf auth login` with a token that may write",
        ) from None
    except (OfflineModeIsEnabled, OSError) as error:
        raise ResourceError(
            f"the hub cannot be reached: {str(error).strip().splitlines()[0]}",
            f"{hub_environment.suggest_variables()}the files are written; push them when there is a network",
        ) from None
    return str(address)
