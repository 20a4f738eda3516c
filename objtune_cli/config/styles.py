"""Styles by name, and negative prompts by base, from the tables `[styles.NAME]` and `[negative_prompts]` of objtune.toml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from objtune_cli.errors import UsageError

SLOT = "{prompt}"
"""Where a style's text takes the prompt."""
EXAMPLE = '`[styles.watercolor]`, below it `prompt = "{prompt}, watercolor"`'


@dataclass(frozen=True, slots=True)
class Style:
    """A text around or behind prompts, and one around or behind negative prompts."""

    prompt: str = ""
    negative: str = ""


def read_styles(table: Any, file: str) -> dict[str, Style]:
    """Read the table `styles`.

    Raises:
        UsageError: It has another form.
    """
    if not isinstance(table, dict):
        raise UsageError(f"styles in {file} is {table!r}", f"each style is a table: {EXAMPLE}")
    styles = {}
    for name, values in table.items():
        where = f"[styles.{name}] of {file}"
        if not isinstance(values, dict) or not values:
            raise UsageError(f"the style {name} in {file} is {values!r}", f"each style is a table: {EXAMPLE}")
        unknown = sorted(set(values) - {"prompt", "negative"})
        if unknown:
            raise UsageError(f"unknown key {unknown[0]} in {where}", "known keys: negative, prompt")
        wrong = next((key for key, value in values.items() if not isinstance(value, str)), "")
        if wrong:
            raise UsageError(f"{wrong} in {where} is {values[wrong]!r}", f"text is needed: {EXAMPLE}")
        if "," in name:
            raise UsageError(f"the style {name} in {file} has a comma in its name", "commas separate styles")
        styles[name.strip()] = Style(**values)
    return styles


def read_negative_prompts(table: Any, file: str) -> dict[str, str]:
    """Read the table `negative_prompts`: name of a base or of a family to the negative prompt.

    Raises:
        UsageError: It has another form.
    """
    wrong = not isinstance(table, dict) or next((key for key, text in table.items() if not isinstance(text, str)), "")
    if wrong:
        named = f"{wrong} in [negative_prompts] of {file}" if isinstance(table, dict) else f"negative_prompts in {file}"
        raise UsageError(f"{named} is no text", '`[negative_prompts]`, below it `sdxl = "blurry, low quality"`')
    return dict(table)


def find_styles(styles: Mapping[str, Style], names: Sequence[str]) -> list[Style]:
    """The styles with these names.

    Raises:
        UsageError: There is no such style; the hint lists all.
    """
    missing = next((name for name in names if name not in styles), "")
    if not missing:
        return [styles[name] for name in names]
    from objtune_cli.config import toml_files

    near = toml_files.find_nearest(missing, styles)
    meant = f"did you mean {near}? " if near else ""
    alternatives = f"styles: {', '.join(sorted(styles))}" if styles else f"write one into objtune.toml: {EXAMPLE}"
    raise UsageError(f"there is no style {missing}", f"{meant}{alternatives}")


def apply_styles(text: str, patterns: Sequence[str]) -> str:
    """Apply the texts of styles to a prompt, one after the other: into its `{prompt}`, else behind it with a comma."""
    for pattern in patterns:
        if SLOT in pattern:
            text = pattern.replace(SLOT, text)
        elif pattern:
            text = f"{text}, {pattern}" if text.strip() else pattern
    return text
