"""`objtune ui`: what it prints, repeats and refuses; the server itself does not run here."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.ui import server
from tests.conftest import REPOSITORY
from tests.support.json_schema import check

pytest.importorskip("nicegui", reason="the extra ui is not installed")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[server.Server]]:
    """The servers that would run; their sockets are open until the test ends."""
    servers: list[server.Server] = []
    monkeypatch.setattr(server.Server, "run", lambda self: servers.append(self))
    yield servers
    for each in servers:
        each.close()


def test_the_address_has_the_photos_and_a_new_token(cli: Any, dog_photo: Path, served: list[server.Server]) -> None:
    shutil.copy(dog_photo, "my dog.jpg")
    first, second = (cli("ui", "my dog.jpg", "--no-browser", "--set", "train.max_steps=3") for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.err
    pattern = r"http://127\.0\.0\.1:\d+/\?photo=my\+dog\.jpg&token=([\w-]{32})\n"
    tokens = [re.fullmatch(pattern, done.out)[1] for done in (first, second)]
    assert tokens[0] != tokens[1] and len(served) == 2
    workspace = server.CURRENT.get()
    assert workspace.opened == {"my dog.jpg": Path("my dog.jpg")}
    assert (workspace.shared, workspace.project_words) == (("--set", "train.max_steps=3"), ())


def test_options_of_the_page_are_repeated_by_its_commands(cli: Any, served: list[server.Server]) -> None:
    done = cli("ui", "--no-browser", "--json", "--project", "shop", "--base", "toybox", "--strict-base")
    document = json.loads(done.out)
    check(document, "output", "ui")
    assert document["address"].startswith("http://127.0.0.1:") and document["address"] in done.err
    assert server.CURRENT.get().shared == ("--project", "shop", "--base", "toybox", "--strict-base")
    assert Path("shop/objtune.toml").is_file()


def test_a_taken_port_is_refused_if_it_was_asked_for(cli: Any, served: list[server.Server]) -> None:
    port = re.search(r":(\d+)/", cli("ui", "--no-browser").out)[1]
    refused = cli("ui", "--no-browser", "--port", port)
    assert refused.code == 7 and f"port {port} of 127.0.0.1 is not free" in refused.err


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (("ui", "none.jpg"), 3, "there is no file none.jpg"),
        (("ui", "objtune.toml"), 3, "objtune.toml is"),
        (("ui", "--project", "memory://x"), 2, "needs a project in a folder"),
        (("ui", "--port", "0"), 2, "--port"),
    ],
)
def test_what_cannot_be_shown_is_one_line(cli: Any, line: tuple[str, ...], code: int, message: str) -> None:
    done = cli(*line)
    assert (done.code, done.out) == (code, "") and message in done.err, done.err


def test_the_commands_of_the_guide_open_the_page(cli: Any, dog_photo: Path, served: list[server.Server]) -> None:
    shutil.copy(dog_photo, "photo.jpg")
    guide = (REPOSITORY / "docs/how-to/ui.md").read_text()
    lines = re.findall(r"^objtune (ui.*)$", guide, re.M)
    for line in lines:
        words = [word for word in shlex.split(line) if word not in ("--port", "8765")]
        done = cli(*words, "--no-browser")
        assert done.code == 0 and done.out.startswith("http://127.0.0.1:"), done.err
    assert len(lines) == len(served) == 3


def test_without_the_extra_one_line_says_what_to_install(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "is_installed", lambda: False)
    done = cli("ui")
    assert done.code == 7 and "`pip install 'objtune[ui]'`" in done.err
