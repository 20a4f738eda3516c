"""The commands of a job that draw its objects: `generate`, `compose` and `place`, with their options as keys of the job."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from objtune_cli import paths
from objtune_cli.errors import InputError
from objtune_cli.workflow import photo_sources, prompt_files, prompt_text
from objtune_cli.workflow.job_keys import COMPOSE_KEYS, GENERATE_KEYS, PLACE_KEYS, SAMPLING_KEYS, SIZE_KEYS

FILES = ("wildcards", "prompts_file", "out", "from", "sheet", "layout", "into", "mask")
"""Keys of drawings that are paths; `mask` only of `place`."""
READ_FILES = ("wildcards", "from", "layout", "into", "mask")
"""Those of them that a drawing reads."""
NAMES = {"places": "--place"}
"""Keys whose options have other names."""
REQUIRED = {"compose": ("prompt",), "place": ("prompt", "into")}
TABLES = {"compose": COMPOSE_KEYS, "place": PLACE_KEYS}


def resolve_photo(text: str, folder: Path) -> str:
    """A photo's path from the jobs file's folder, or its web address."""
    return text if photo_sources.is_address(text) else str(paths.to_path(text, folder))


def resolve_paths(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The keys of drawings with every path in them started from the jobs file's folder."""
    resolved: dict[str, Any] = {}
    if "lora" in job:
        resolved["lora"] = [paths.to_lora_list(f"{text}\n", folder).strip() for text in job["lora"]]
    for key in FILES:
        if key in job and isinstance(job[key], str):  # the masks of photos are lists
            resolved[key] = (
                resolve_photo(job[key], folder) if key in ("from", "into") else paths.to_file(job[key], folder)
            )
    if "base" in job:
        resolved["base"] = paths.to_model(job["base"], folder)
    for command in TABLES:
        if command in job:
            resolved[command] = [each | resolve_paths(each, folder) for each in job[command]]
    return resolved


def list_files(job: Mapping[str, Any]) -> list[str]:
    """The files that a job's drawings read, as they stand in the commands; `job` has its paths resolved."""
    tables = [job, *(table for command in TABLES for table in job.get(command, ()))]
    return [table[key] for table in tables for key in READ_FILES if isinstance(table.get(key), str)]


def build_commands(job: dict[str, Any], model: list[str], where: str) -> list[tuple[str, ...]]:
    """The command lines that draw a job's objects.

    Args:
        job: Checked, with its paths resolved. model: Options of every command.

    Raises:
        InputError: A prompt is not text, or a table lacks a key.
    """
    commands: list[tuple[str, ...]] = []
    texts = [
        prompt_text.clean_prompt(text, f"prompt {i} in {where}") for i, text in enumerate(job.get("prompts", ()), 1)
    ]
    texts += prompt_files.read_prompts(Path(job["prompts_file"])) if "prompts_file" in job else []
    if texts:
        keys = (*SAMPLING_KEYS, *SIZE_KEYS, *GENERATE_KEYS)
        commands.append(("generate", *model, *_options(job, keys), "--", *texts))
    for command, options in TABLES.items():
        for table in job.get(command, ()):
            missing = next((key for key in REQUIRED[command] if key not in table), "")
            if missing:
                raise InputError(f"{command} in {where} has no {missing}", f"`{missing} = {options[missing][1]}`")
            prompt = prompt_text.clean_prompt(table["prompt"], f"the prompt of {command} in {where}")
            shared = {key: job[key] for key in (*SAMPLING_KEYS, *SIZE_KEYS) if key in job and key in options}
            if "seed" in table:
                shared.pop("seeds", None)
            commands.append(
                (command, *model, *_options(shared | table, [k for k in options if k != "prompt"]), "--", prompt)
            )
    return commands


def _options(job: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Options as `--name=value`, so that a value may begin with a dash."""
    options = []
    values = {key: job[key] for key in keys if key in job}
    if "seeds" in values:
        values = {"seed": ",".join(map(str, values.pop("seeds")))} | {k: v for k, v in values.items() if k != "seed"}
    for key, value in values.items():
        name = NAMES.get(key, f"--{key.replace('_', '-')}")
        if isinstance(value, bool):
            options += [name] if value else []
        elif key == "n":
            options += ["-n", str(value)]
        else:
            options += [f"{name}={each}" for each in (value if isinstance(value, list) else [value])]
    return options
