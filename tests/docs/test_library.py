"""docs/how-to/notebooks.md runs from top to bottom and prints what it says; importing the package loads nothing."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import objtune_cli
from objtune_cli.errors import UsageError
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.commands


@pytest.mark.timeout(600)
def test_the_page_prints_what_it_says(project: Path) -> None:
    text = (REPOSITORY / "docs" / "how-to" / "notebooks.md").read_text()
    cells = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", text, re.S)
    assert len(cells) == text.count("```python") == 7
    for photo in ("photo.jpg", "mug.jpg"):
        shutil.copy(REPOSITORY / "docs" / "examples" / photo, project)
    names: dict[str, Any] = {}
    for code, expected in cells:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == expected


def test_every_function_is_there_and_says_what_it_does() -> None:
    from objtune_cli import api

    assert set(objtune_cli.FUNCTIONS) == set(api.__all__) <= set(dir(objtune_cli))
    for name in objtune_cli.FUNCTIONS:
        assert getattr(objtune_cli, name) is getattr(api, name) and getattr(api, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = objtune_cli.nothing


def test_importing_the_functions_loads_nothing_heavy() -> None:
    code = "import sys; from objtune_cli import train, generate; print(sorted({'torch', 'numpy', 'PIL', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "[]\n"


def test_settings_of_a_project_are_checked(project: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    ctx = objtune_cli.project(
        "inner",
        base="toybox",
        train={"max_steps": 7},
        init_embedding={"num_vectors": 3},
        on_step=lambda *a: steps.append(a),
    )
    from objtune_cli.config.sections import Embed, Train

    assert (
        ctx.settings.resolve(Train).max_steps == 7
        and ctx.settings.resolve(Embed).num_vectors == 3
        and Path("inner/objtune.toml").is_file()
    )
    ctx.report.step("train", 1, 2, loss=0.5)
    assert steps == [("train", 1, 2)]
    with pytest.raises(UsageError, match="stepz"):
        objtune_cli.project("inner", train={"stepz": 7})


@pytest.mark.usefixtures("fast_sampling")
def test_generate_takes_what_the_command_takes(project: Path, base: Path, trained_artifacts: Path) -> None:
    Path("objtune.toml").write_text(f'base = "{base}"\n[styles.ink]\nprompt = "{{prompt}}, ink"\n')
    shutil.copytree(trained_artifacts, "artifacts")
    Path("lists").mkdir()
    Path("lists/animal.txt").write_text("cat\nowl\n")
    ctx = objtune_cli.project(".", generate={"steps": 2})
    (kept,) = objtune_cli.generate(
        ctx, "a photo of <cup>", n=3, best=2, sheet="best.png", style=["ink"], out=Path("kept")
    )
    assert ctx.store.read_record(kept.ref).config["prompt"] == "a photo of <cup>, ink"
    assert len(kept.images) == len(kept.metrics["best"]) == 2 and kept.images[0].parent.name == "kept"
    assert {"object", "prompt"} >= set(kept.metrics["best"][0]) and Path("best.png").is_file()
    cells = objtune_cli.generate(ctx, "<cup>", grid={"strength": [0.5, 1], "seed": [1, 2]}, sheet="cells.png")
    settings = [ctx.store.read_record(cell.ref).config for cell in cells]
    assert [each["seed"] for each in settings] == [1, 1, 2, 2] and all(len(cell.images) == 1 for cell in cells)
    assert [each.get("strengths") for each in settings] == [{"cup": 0.5}, None] * 2
    one, two = objtune_cli.generate(ctx, "<cup> and an __animal__", seed=[4, 6], wildcards=Path("lists"), aspect="3:2")
    prompts = {ctx.store.read_record(each.ref).config["prompt"] for each in (one, two)}
    assert prompts <= {"<cup> and an cat", "<cup> and an owl"}
    with pytest.raises(UsageError, match="no setting stile"):
        objtune_cli.generate(ctx, "<cup>", stile="ink")
    with pytest.raises(UsageError, match="--best is 4 of 4"):
        objtune_cli.generate(ctx, "<cup>", best=4)
