"""F16: hostile names and words on a terminal, in a pipe, and where the environment asks for colour."""

import json
import os
import pty
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

from tests.conftest import COLOUR
from tests.support.scaled import sized

NAMES = [
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "\x1b[6n", "\x1bPq\x1b\\", "bell\x07", "back\x08\x08", "a\rb", "a\nb", "tab\tb", "\x7fdel", "\x9b31m", "\x85next",
    "\u202egnp.exe", "\u2066iso\u2069", "\u200fmark", "\u2028line", "[bold][red]x[/]", "[/].png", "{0}%s%n", "\udcff\udcfe", "\x00nul", "\x0e\x0f",
]  # fmt: skip
MODES = {
    "terminal": {"TERM": "xterm-256color"}, "terminal, NO_COLOR": {"TERM": "xterm", "NO_COLOR": "1"}, "terminal, dumb": {"TERM": "dumb"},
    "pipe": {}, "pipe, NO_COLOR": {"NO_COLOR": "1"}, "pipe, GITHUB_ACTIONS": {"GITHUB_ACTIONS": "true"}, "pipe, FORCE_COLOR": {"FORCE_COLOR": "1", "PY_COLORS": "1"},
}  # fmt: skip
DO = """
import json, sys
from pathlib import Path
import numpy as np
from objtune_cli.cli.app import run
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
names = [n.encode("ascii").decode("unicode_escape") for n in json.loads(sys.argv[1])]
for i, name in enumerate(names):
    word = name.encode("utf-8", "backslashreplace").decode()
    Store.at(Path()).create(Record("adapter", f"a{i}", {f"a{i}": word}, {}, {"prompt": word}, {}), {"x": np.ones(3)})
    for line in (["segment", "--class", "dog", "--", name], ["show", name], ["generate", f"a <{name}>"], ["segment", "x", "--class", name], ["show", f"a{i}"], ["list"], [name]):
        try:
            run(line)
        except SystemExit:
            pass
"""
OURS = re.compile(r"\x1b\[(?:0|1|2|3[0-7]|9[0-7])?(?:;\d+)*m")
"""What rich itself writes for a bold heading."""


def unsafe(text: str) -> set[str]:
    """Characters that a terminal acts on, except line ends and tabs between columns."""
    return {
        c
        for c in text
        if c not in "\n\t"
        and (
            unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
            or c in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
        )
    }


def shown(names: list[str], folder: Path, variables: dict[str, str], *, terminal: bool) -> str:
    """All that seven command lines a name write, as text."""
    escaped = json.dumps([n.encode("unicode_escape").decode() for n in names])
    environment = {k: v for k, v in os.environ.items() if k not in COLOUR} | variables
    command = [sys.executable, "-c", DO, escaped]
    if not terminal:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        return done.stdout.decode("utf-8", "surrogateescape")
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    running.wait(timeout=60)
    os.close(ours)
    return b"".join(parts).decode("utf-8", "surrogateescape").replace("\r\n", "\n")


@sized(5, len(NAMES))
def test_f16_hostile_names(size: int, tmp_path: Path, say: Callable[[str], None]) -> None:
    step = -(-len(NAMES) // size)
    names, told = NAMES[::step], 0
    for number, (mode, variables) in enumerate(MODES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "objtune.toml").touch()
        terminal = mode.startswith("terminal")
        text = shown(names, folder, variables, terminal=terminal)
        assert text.count("error: ") >= 4 * len(names), f"{mode}\n{text[-2000:]}"
        assert "Traceback" not in text
        if not terminal or "NO_COLOR" in variables or variables["TERM"] == "dumb":
            assert "\x1b" not in text, mode
        assert "\x1b[31m" not in text
        assert unsafe(OURS.sub("", text)) == set(), mode
        told += len(text)
    say(
        f"F16 {len(names)} hostile names in 7 places x {len(MODES)} kinds of terminal and pipe: 0 control or direction characters of theirs in {told / 1000:.0f} kB of output"
    )


def test_the_check_would_notice() -> None:
    assert unsafe("a\x07") and unsafe("\x9b") and unsafe("\u202e") and unsafe("\udcff")
    assert unsafe(OURS.sub("", "\x1b[1mref\x1b[0m")) == set()
    assert unsafe(OURS.sub("", "\x1b[2J\x1b]0;"))
