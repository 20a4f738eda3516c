"""Reads files of prompts, one prompt a line."""

from collections.abc import Iterable
from pathlib import Path

from objtune_cli.config import toml_files
from objtune_cli.errors import InputError
from objtune_cli.workflow.prompt_text import clean_prompt


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file, in any Unicode encoding; empty lines do not count.

    Raises:
        InputError: It cannot be read, or a line is not text.
    """
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read: {getattr(error, 'strerror', None) or error}", "give a text file, one prompt a line"
        ) from None
    return clean_lines(toml_files.number_lines(toml_files.decode(data, str(file))), str(file))


def clean_lines(lines: Iterable[tuple[int, str]], source: str) -> list[str]:
    """The prompts of numbered lines; `source`: the file or stream in messages."""
    cleaned = [clean_prompt(line, f"line {number} of {source}", may_be_empty=True) for number, line in lines]
    return [line for line in cleaned if line]
