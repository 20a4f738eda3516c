"""The report that `run` writes at its end: what is in it, and that it never fails the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.cli import report_file
from objtune_cli.report import page
from objtune_cli.store.store import Store
from objtune_cli.workflow.job_results import JobResult
from tests.support.json_schema import check
from tests.support.report_projects import add_object, add_scene

Run = Callable[..., Any]


@pytest.fixture
def run(cli: Any, dog_photo: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`objtune run jobs.toml` of two jobs: <rex> has been made with a scene before, and `lost` fails. <cup> belongs to no job."""
    from objtune_cli.cli.commands import run as command

    store = Store.at(Path.cwd())
    rex, cup = add_object(store, "rex"), add_object(store, "cup")
    add_scene(store, "<rex> at night", [rex], 1)
    add_scene(store, "<cup> at night", [cup], 1)
    results = {
        "rex": JobResult("rex", "done", 0, ["adapter/rex@1", "scene/rex@1"], [], 4.5),
        "lost": JobResult("lost", "failed", 3, message="there is no <file> lost.jpg"),
    }
    monkeypatch.setattr(command, "_work", lambda *_: results)
    jobs = "".join(f'[[job]]\nphoto = "{dog_photo}"\nclass = "dog"\nname = "{name}"\n' for name in results)
    Path("jobs.toml").write_text(jobs)
    return lambda *words: cli("run", "jobs.toml", *words)


def test_run_writes_a_page_of_its_jobs_and_their_objects(run: Run) -> None:
    done = run("--json")
    document = json.loads(done.out)
    check(document, "output", "run")
    assert done.code == 3 and [Path(file).name for file in document["files"]] == ["report.html"]
    assert "report: report.html" in done.err
    text = Path("report.html").read_text()
    assert "there is no &lt;file&gt; lost.jpg" in text and "jobs.toml · objtune report" in text
    assert '<a href="#adapter/rex@1">' in text and 'id="adapter/rex@1"' in text and 'id="adapter/cup@1"' not in text
    assert "\\u003crex> at night" in text and "\\u003ccup> at night" not in text
    assert run("--report", "pages/mine.html").code == 3 and Path("pages/mine.html").is_file()


@pytest.mark.parametrize("words", [("--no-report",), ("--shard", "1/1")])
def test_no_page_is_written_unasked(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words, "--json")
    assert json.loads(done.out)["files"] == [] and not Path("report.html").exists()


def test_a_page_that_fails_is_a_note(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("report.html").write_text("mine")
    done = run()
    assert (
        done.code == 3
        and done.out.startswith("rex\tdone\t0")
        and "no report: report.html exists and is not a report" in done.err
    )
    assert Path("report.html").read_text() == "mine"

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("in a chart")

    monkeypatch.setattr(page, "render", fail)
    done = run()
    assert done.code == 3 and "no report: ZeroDivisionError: in a chart" in done.err


def test_a_page_that_cannot_be_written_is_refused_before_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from objtune_cli.cli.commands import run as command

    monkeypatch.setattr(command, "_work", lambda *_: pytest.fail("work was done"))
    done = run("--report", "page.pdf")
    assert done.code == 2 and "page.pdf is not named as HTML" in done.err
    monkeypatch.setattr(report_file, "PACKAGES", ("no_such_package",))
    done = run("--report", "page.html")
    assert done.code == 7 and "`pip install 'objtune[report]'`" in done.err


def test_without_the_packages_run_says_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file, "PACKAGES", ("no_such_package",))
    done = run()
    assert done.code == 3 and "report" not in done.err and not Path("report.html").exists()


def test_a_damaged_image_is_a_grey_square(cli: Any) -> None:
    store = Store.at(Path.cwd())
    ref = add_scene(store, "<rex>", [add_object(store, "rex")], 2)
    Path(ref.images_key, "002.png").write_bytes(b"\x89PNG damaged")
    assert cli("report").code == 0
    assert Path("report.html").read_text().count("this image cannot be read") == 1
