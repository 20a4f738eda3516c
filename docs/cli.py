"""`python docs/cli.py`: the command reference, from the commands themselves. A test compares."""

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from objtune_cli.config.sections import SECTIONS, Common

HEAD = "# Commands\n\nMade by `make reference` from `objtune --help`; a test compares.\n"
SETTINGS = """
## Settings

Flag > `--set section.key=value` > `OBJTUNE_SECTION_KEY` > `objtune.toml` (`[section]`) > default.

| key | default | meaning |
|---|---|---|
"""


def reference() -> str:
    """Help of objtune and of every command, as Markdown."""
    parts = [HEAD, f"\n```text\n{_help()}```\n"]
    for name in _commands():
        parts.append(f"\n## `objtune {name}`\n\n```text\n{_help(name)}```\n")
    return "".join([*parts, SETTINGS, *_settings()])


def _settings() -> list[str]:
    """One row for every key of every section."""
    rows = []
    for section, kind in {"": Common, **SECTIONS}.items():
        for item in fields(kind):
            default = f"`{item.default}`" if item.default != "" else ""
            rows.append(f"| `{section}{'.' if section else ''}{item.name}` | {default} | {item.metadata['help']} |\n")
    return rows


def _help(*command: str) -> str:
    program = [str(Path(sys.executable).with_name("objtune")), *command, "--help"]
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    return subprocess.run(program, check=True, capture_output=True, text=True, env=environment).stdout


def _commands() -> list[str]:
    listed = _help().split("Commands:\n")[1]
    return [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(reference())
