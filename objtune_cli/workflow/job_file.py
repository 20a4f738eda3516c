"""The jobs file of `run`: many objects, each a `train` and the prompts that are drawn with it."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from objtune_cli import paths, renamed_settings
from objtune_cli.config import toml_files
from objtune_cli.config.sections import SECTIONS, Common
from objtune_cli.errors import InputError, MissingError, ObjtuneError
from objtune_cli.store import refs
from objtune_cli.store.store import Store
from objtune_cli.workflow import class_words as classes
from objtune_cli.workflow import job_drawings, prompt_tags, prompt_text
from objtune_cli.workflow.job_keys import JOB_EXAMPLE, KEYS, check_job, rename_keys
from objtune_cli.workflow.photo_keys import HINTS, PHOTO_OPTIONS

_MODEL_OPTIONS = {"base": "--base", "device": "--device", "precision": "--precision", "set": "--set"}


@dataclass(frozen=True, slots=True)
class Job:
    """The objects of one photo, or one object of several: names, and the command lines in their order.

    Attributes:
        settings: The words of `train` that do not depend on the photos: base, device, precision, settings, seed and time.
        files: Photos, masks and other files that the commands read, as they stand in them.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    settings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return "-".join(self.names)


def read_jobs(file: Path, note: Callable[[str], None] = lambda text: None) -> list[Job]:
    """Read the jobs of a file; relative paths in it start from the file's own folder.

    Args:
        note: Called with one line for each former key that the file has.

    Raises:
        InputError: No readable jobs file; the message says what stands where.
    """
    table = _read_table(file)
    rename_keys(table, file, note)
    jobs, defaults = table.get("job"), check_job(table.get("defaults", {}), f"[defaults] of {file}")
    if isinstance(jobs, dict):
        raise InputError(f"job in {file} is a single table", "write `[[job]]` with two brackets above each photo")
    if not isinstance(jobs, list) or not jobs:
        raise InputError(f"{file} lists no jobs", JOB_EXAMPLE)
    built = [
        _build_job(defaults | check_job(job, f"job {i} of {file}"), f"job {i} of {file}", file.parent)
        for i, job in enumerate(jobs, 1)
    ]
    _check_distinct(built, file)
    return built


def _check_distinct(jobs: Sequence[Job], file: Path) -> None:
    """Refuse two jobs that make one object, or adapters of one name: those of `a` and `b` together and of `a-b`.

    Raises:
        InputError: Names it.
    """
    for names in ((name for job in jobs for name in job.names), (classes.name_adapter(job.names) for job in jobs)):
        twice = min((name for name, count in Counter(names).items() if count > 1), default="")
        if twice:
            raise InputError(f"two jobs of {file} make {twice}", 'tell them apart with `name = "…"`')


def _read_table(file: Path) -> dict[str, Any]:
    """The file's table, which has `job` and `defaults` alone."""
    try:
        table = toml_files.read(file, JOB_EXAMPLE)
    except FileNotFoundError:
        raise InputError(f"{file} cannot be read: there is no such file", "give a file that lists jobs") from None
    unknown = sorted(set(table) - {"job", "defaults"})
    if unknown:
        near = toml_files.find_nearest(unknown[0], ("job", "defaults"))
        form = {"job": "[[job]]", "defaults": "[defaults]"}.get(near, "")
        raise InputError(
            f"unknown key {unknown[0]} in {file}",
            (f"did you mean `{form}`? " if form else "") + "known keys: defaults, job",
        )
    return table


def check_prompts(jobs: Sequence[Job], store: Store, syntax: str = "a1111") -> None:
    """Check, before anything is trained, that the jobs train the objects that their prompts name, or that the store holds them.

    Args:
        syntax: The project's `generate.prompt_syntax`.

    Raises:
        InputError: Brackets hold no name, or are not balanced. MissingError: nobody makes the object.
    """
    from objtune_cli.models.prompts import PLACEHOLDER

    texts = {
        text: (job, _find_option(words, "generate.prompt_syntax") or syntax)
        for job in jobs
        for _, *words in job.commands[1:]
        for text in _trained_names(words)
    }
    object_names = {name for job in jobs for name in job.names}
    for name in store.list_names("adapter") if texts else []:
        with contextlib.suppress(ObjtuneError):  # a damaged adapter is no matter of jobs that do not name it
            stored_objects = store.read_record(store.resolve(refs.Ref("adapter", name))).objects
            object_names |= {*stored_objects, name} if len(stored_objects) == 1 else {*stored_objects}
    for text, (job, own_syntax) in texts.items():
        prompt, _ = prompt_text.read_names(text, object_names.__contains__)
        prompt, _ = prompt_tags.extract_loras(
            prompt, f"a prompt of the job {job.label}", object_names.__contains__, own_syntax
        )
        prompt, _ = prompt_text.take_strengths(prompt)
        prompt_text.check_brackets(prompt, object_names.__contains__)
        missing = next((match[0] for match in PLACEHOLDER.finditer(prompt) if match[1] not in object_names), "")
        if missing:
            raise MissingError(
                f"a prompt of the job {job.label} names {missing}, which is not trained",
                f"objects of jobs and project: {', '.join(f'<{n}>' for n in sorted(object_names))}",
            )


def _trained_names(words: list[str]) -> list[str]:
    """The prompts of a command that draws, and its negative prompt where the job gives one."""
    end = words.index("--")
    negative = [word.partition("=")[2] for word in words[:end] if word.startswith("--negative=")]
    texts = [*words[end + 1 :], *negative, _find_option(words, "generate.negative_prompt")]
    return [text for text in texts if text not in ("", "-", "auto")]


def _find_option(words: list[str], key: str) -> str:
    """The value that the words of a command give a setting with `--set`; "" if they do not."""
    pairs = [word.removeprefix("--set=").partition("=") for word in words if word.startswith("--set=")]
    values = [value for name, _, value in pairs if renamed_settings.present_key(name.strip()) == key]
    return values[-1] if values else ""


def _build_job(job: dict[str, Any], where: str, folder: Path) -> Job:
    for key in ("photo", "class"):
        if key not in job:
            raise InputError(f"{where} has no {key}", JOB_EXAMPLE)
    try:
        pairs = classes.pair_with_names(job["class"], job.get("name", []))
        names = [name for _, name in pairs]
        owners = {*names, *job["class"], *(word for word, _ in pairs)}
        resolved = _resolve_paths(job, owners, folder)
    except ObjtuneError as error:
        raise InputError(
            f"{error.message} in {where}",
            error.hint.replace("`--name`, one for each `--class`", '`name = ["…", "…"]`, one for each class'),
        ) from None
    if len(names) > 1:
        _check_owners(job, owners, names, where)
    model = _command_options(resolved, _MODEL_OPTIONS)
    photos = _photo_arguments(resolved, where)
    own = resolved if len(resolved["photo"]) == 1 else {key: resolved[key] for key in resolved if key not in HINTS}
    settings = [*model]
    settings += [f"--seed={job['seed']}"] if "seed" in job else []
    settings += [f"--max-time={job['max_time']}"] if "max_time" in job else []
    commands: list[tuple[str, ...]] = [("train", *_command_options(own, PHOTO_OPTIONS), *settings, *photos)]
    commands += job_drawings.build_commands(resolved, model, where)
    masks = (text for key in ("mask", "refine_mask") for text in resolved.get(key, ()))
    files = [
        *resolved["photo"],
        *(_mask_path(text, owners) for text in masks if text),
        *job_drawings.list_files(resolved),
    ]
    return Job(tuple(names), tuple(word for word, _ in pairs), tuple(commands), tuple(settings), tuple(files))


def _mask_path(text: str, owners: set[str]) -> str:
    """The path of a mask without the name of its object."""
    owner, equals, path = text.partition("=")
    return path if equals and owner.strip() in owners else text


def _photo_arguments(job: dict[str, Any], where: str) -> list[str]:
    """The photos of a job as arguments; of several, each is followed by its hints.

    Raises:
        InputError: Several classes, or another number of hints than of photos.
    """
    photos = job["photo"]
    if len(photos) == 1:
        return ["--", *photos]
    if len(job["class"]) > 1:
        raise InputError(
            f"{where} has several photos and several classes", "several photos are of one object: give a job to each"
        )
    hints = {key: job[key] for key in HINTS if key in job}
    for key, values in hints.items():
        if len(values) != len(photos):
            raise InputError(
                f"{key} in {where} has {len(values)} values for {len(photos)} photos",
                'a list with one value for each photo, "" for none',
            )
    words: list[str] = []
    for i, photo in enumerate(photos):
        own = {key: values[i] for key, values in hints.items() if values[i]}
        words += [f"./{photo}" if photo.startswith("-") else photo, *_command_options(own, PHOTO_OPTIONS)]
    return words


def _check_owners(job: dict[str, Any], owners: set[str], names: list[str], where: str) -> None:
    """Refuse a mask, box or point of one of several objects that names no object.

    Raises:
        InputError: Shows the form.
    """
    for key, text in [(each, text) for each in HINTS for text in job.get(each, [])]:
        owner, equals, _ = text.partition("=")
        if not equals or owner.strip() not in owners:
            example = KEYS[key][1]
            form = ", ".join(
                f"{name if name.isidentifier() and name.isascii() else repr(name)} = {example}" for name in names
            )
            raise InputError(
                f"{key} in {where} names no object, and the photo has several: {text}", f"`{key} = {{{form}}}`"
            )


def _resolve_paths(job: dict[str, Any], owners: set[str], folder: Path) -> dict[str, Any]:
    """The job with every path in it started from the jobs file's folder.

    Args:
        owners: Names and classes of its objects, which may stand before a mask's path.
    """
    resolved = job | {"photo": [job_drawings.resolve_photo(text, folder) for text in job["photo"]]}
    for key in ("mask", "refine_mask"):
        if key in job:
            resolved[key] = [_resolve_value(text, owners, "file", folder) for text in job[key]]
    resolved |= job_drawings.resolve_paths(job, folder)
    if "set" in job:
        resolved["set"] = [_resolve_setting(text, folder) for text in job["set"]]
    return resolved


def _resolve_value(text: str, owners: set[str], kind: str, folder: Path) -> str:
    """A path behind the name of its object, if there is one."""
    if not text:  # no hint for one of several photos
        return text
    owner, equals, path = text.partition("=")
    if equals and owner.strip() in owners:
        return f"{owner.strip()}={paths.CONVERTERS[kind](path, folder)}"
    return paths.CONVERTERS[kind](text, folder)


def _resolve_setting(text: str, folder: Path) -> str:
    """A setting `section.key=value`, its value a path from the folder where the setting is one."""
    key, equals, value = text.partition("=")
    kind = _path_kind(key.strip())
    return f"{key}{equals}{paths.CONVERTERS[kind](value.strip(), folder)}" if kind and equals else text


@functools.cache
def _path_kind(key: str) -> str:
    """The kind of path that a setting takes, a key of `paths.CONVERTERS`; "" if it takes none, or there is no such setting."""
    section, _, name = renamed_settings.present_key(key).rpartition(".")
    if section not in (*SECTIONS, ""):
        return ""
    kinds = {f.name: f.metadata["path"] for f in fields(SECTIONS.get(section, Common))}
    return str(kinds.get(name, ""))


def _command_options(job: dict[str, Any], options: dict[str, str]) -> list[str]:
    """Options as `--name=value`, so that a value may begin with a dash."""
    pairs = [(option, job[key]) for key, option in options.items() if key in job]
    return [f"{option}={text}" for option, value in pairs for text in (value if isinstance(value, list) else [value])]
