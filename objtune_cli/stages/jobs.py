"""The jobs file of `run`: many photos, each a `train` and what is drawn with it."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.config import MAX_SEED, SEEDS
from objtune_cli.errors import InputError, ObjtuneError
from objtune_cli.store import refs

_TEXT, _TEXTS, _NUMBER = "a text", "a text or a list of texts", "a whole number"
KEYS: dict[str, str] = {
    "photo": _TEXT, "class": _TEXTS, "name": _TEXTS, "mask": _TEXTS, "box": _TEXTS, "point": _TEXTS, "not_point": _TEXTS, "rough": _TEXTS,
    "which": _TEXT, "prompts": _TEXTS, "n": _NUMBER, "seed": _NUMBER, "base": _TEXT, "device": _TEXT, "precision": _TEXT,
    "set": _TEXTS, "max_time": _TEXT,
}  # fmt: skip
"""What a job may say, and what `[defaults]` may say for all of them."""
_FINDING = {"class": "--class", "name": "--name", "mask": "--mask", "box": "--box", "point": "--point", "not_point": "--not-point", "rough": "--rough", "which": "--which"}
_MODEL = {"base": "--base", "device": "--device", "precision": "--precision", "set": "--set"}
FORM = 'for example `[[job]]`, below it `photo = "rex.jpg"` and `class = "dog"`'


@dataclass(frozen=True, slots=True)
class Job:
    """One photo: its names, and the command lines in their order."""

    names: tuple[str, ...]
    classes: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]

    @property
    def label(self) -> str:
        return "-".join(self.names)


def read(file: Path) -> list[Job]:
    """The jobs of a file; photos and masks are found from the file's own folder.

    Raises:
        InputError: No readable jobs file; the message says what stands where.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", "give a file that lists jobs") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{file} is not valid TOML: {error}", FORM) from None
    more = sorted(set(table) - {"job", "defaults"})
    if more:
        raise InputError(f"unknown key {more[0]} in {file}", "known keys: defaults, job")
    jobs, defaults = table.get("job"), _checked(table.get("defaults", {}), f"[defaults] of {file}")
    if not isinstance(jobs, list) or not jobs:
        raise InputError(f"{file} lists no jobs", FORM)
    made = [_job(defaults | _checked(job, f"job {i} of {file}"), f"job {i} of {file}", file.parent) for i, job in enumerate(jobs, 1)]
    called = [name for job in made for name in job.names]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise InputError(f"two jobs of {file} make {twice[0]}", 'tell them apart with `name = "…"`')
    return made


def _checked(job: Any, where: str) -> dict[str, Any]:
    """A job's table with texts as lists.

    Raises:
        InputError: An unknown key, or a value of another type.
    """
    if not isinstance(job, dict):
        raise InputError(f"{where} is no table", FORM)
    for key, value in job.items():
        if key not in KEYS:
            raise InputError(f"unknown key {key} in {where}", f"known keys: {', '.join(sorted(KEYS))}")
        kind = KEYS[key]
        texts = isinstance(value, str) or (kind == _TEXTS and isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value))
        if not (type(value) is int if kind == _NUMBER else texts):
            raise InputError(f"{key} in {where} is {value!r}", f"{kind} is needed")
        if key == "seed" and not 0 <= value <= MAX_SEED:
            raise InputError(f"{key} in {where} is {value}", f"{kind}, {SEEDS}")
    return {key: [value] if KEYS[key] == _TEXTS and isinstance(value, str) else value for key, value in job.items()}


def _job(job: dict[str, Any], where: str, folder: Path) -> Job:
    for key in ("photo", "class"):
        if key not in job:
            raise InputError(f"{where} has no {key}", FORM)
    given = job.get("name", [])
    try:
        names = [refs.check_name(n) for n in given] + [refs.slug(word) for word in job["class"][len(given) :]]
    except ObjtuneError as error:
        raise InputError(f"{error.message} in {where}", error.hint) from None
    found = job | {"photo": str(folder / job["photo"])}
    for key in ("mask", "rough"):
        if key in job:
            found[key] = [_below(folder, text, names) for text in job[key]]
    model = _options(found, _MODEL)
    train = ["train", *_options(found, _FINDING), *model]
    train += [f"--seed={job['seed']}"] if "seed" in job else []
    train += [f"--max-time={job['max_time']}"] if "max_time" in job else []
    commands = [(*train, "--", found["photo"])]
    if "prompts" in job:
        draw = [f"--seed={job['seed']}"] if "seed" in job else []
        draw += ["-n", str(job["n"])] if "n" in job else []
        commands.append(("generate", *model, *draw, "--", *job["prompts"]))
    return Job(tuple(names), tuple(job["class"]), tuple(commands))


def _below(folder: Path, text: str, names: list[str]) -> str:
    """A mask's path from the jobs file's folder, behind the object's name where there is one."""
    name, equals, path = text.partition("=")
    return f"{name}={folder / path}" if equals and name in names else str(folder / text)


def _options(job: dict[str, Any], known: dict[str, str]) -> list[str]:
    """Options as `--name=value`, so that a value may begin with a dash."""
    pairs = [(option, job[key]) for key, option in known.items() if key in job]
    return [f"{option}={text}" for option, value in pairs for text in (value if isinstance(value, list) else [value])]
