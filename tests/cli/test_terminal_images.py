"""Images on a terminal, by what the terminal can show."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from objtune_cli.cli import progress, runner, terminal_images

PICTURE = Image.fromarray(np.dstack([np.full((80, 160), value, np.uint8) for value in (200, 30, 60)]))


def shown(image: Image.Image) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=100)
    console.print(terminal_images.render(image))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_half_blocks_where_the_terminal_is_not_on_stdin() -> None:
    text = shown(PICTURE)
    assert text.count("▀") == terminal_images.WIDTH * 18
    assert "38;2;200;30;60;48;2;200;30;60" in text


@pytest.mark.parametrize(("kind", "start"), [("SixelImage", "\x1bP"), ("TGPImage", "\x1b_G")])
def test_a_terminal_with_pictures_gets_them(monkeypatch: pytest.MonkeyPatch, kind: str, start: str) -> None:
    from textual_image import renderable

    written: list[str] = []
    terminal = SimpleNamespace(
        isatty=lambda: True, write=lambda text: written.append(text), flush=lambda: None, fileno=lambda: -1
    )
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys, "__stdout__", terminal)
    monkeypatch.setattr("textual_image._terminal.get_tiocgwinsz", lambda: (24, 80, 800, 480))
    monkeypatch.setattr(renderable, "Image", getattr(renderable, kind))
    text = shown(PICTURE)
    assert start in text + "".join(written) and "▀" not in text


def test_samples_are_shown_at_once_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    display = progress.ConsoleProgress()
    display.image(np.asarray(PICTURE))
    assert capsys.readouterr().err == ""
    display.terminal = True
    display.image(np.asarray(PICTURE))
    assert "▀" in capsys.readouterr().err


def test_of_an_adapter_the_preview_is_shown() -> None:
    preview, samples = Path("v001/preview.png"), Path("v001/samples.png")
    assert runner.pick_image([preview, samples]) == preview
    assert runner.pick_image([Path("001.png"), Path("002.png")]) == Path("002.png")
