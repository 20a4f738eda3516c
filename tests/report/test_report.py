"""`objtune report`: what the page shows, what it escapes, and what it refuses."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.report import charts, page
from objtune_cli.report.contents import Image, Scene
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
from tests.support.hostile_names import HOSTILE as HOSTILE_NAMES
from tests.support.hostile_names import MARKUP, find_active, unsafe
from tests.support.json_schema import check
from tests.support.quick_runs import write_settings
from tests.support.report_projects import add_object, add_scene

HOSTILE = "</script <img src=x onerror=alert(1) &\"'"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves its project for the others."""
    return tmp_path_factory.mktemp("report") / "project"


@pytest.fixture
def project_with_dog(
    cli: Any, base: Path, dog_photo: Path, finished: Path, fast_sampling: None, cached_segmentation: None
) -> Any:
    """A project with a trained dog and a scene of two images as the working folder."""
    if finished.exists():
        shutil.copytree(finished, Path(), dirs_exist_ok=True)
        return cli
    write_settings(base, max_steps=4)
    assert cli("train", dog_photo, "--class", "dog", "--sample-every", 2).code == 0
    assert cli("generate", f"a photo of <dog> {HOSTILE}", "-n", 2).code == 0
    shutil.copytree(Path(), finished)
    return cli


def test_the_page_shows_an_object_and_its_scenes(project_with_dog: Any) -> None:
    cli = project_with_dog
    done = cli("report", "--json")
    document = json.loads(done.out)
    check(document, "output", "report")
    assert document["refs"][0]["ref"] == "adapter/dog@1" and document["problems"] == []
    text = Path("report.html").read_text()
    for title in ("the photo and its mask, mask/dog@1", "photo, the object in four places", "samples during training"):
        assert title in text
    assert re.search(r"gate: class probability [\d.]+ of at least 0, score -?[\d.]+ of at least -99", text)
    assert text.count("data:image/webp;base64,") == 5  # mask, preview, samples, and two images of the scene
    for name in ("identity", "prompt", "drift", "copy"):
        assert f'<th scope="row">{name}</th>' in text
    assert "objtune generate &#39;a photo of &lt;dog&gt; on the beach&#39;" in text
    assert "<title>token dog@1, dog</title>" in text and "4 steps." in text
    assert text.count("<svg") == 4  # losses, scores of samples, and the lineage for wide and narrow pages
    assert '<a href="#scene/dog@1">' in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    first = Path("report.html").read_bytes()
    assert cli("report").out == "report.html\n"
    assert Path("report.html").read_bytes() == first


def test_prompts_are_escaped(project_with_dog: Any) -> None:
    project_with_dog("report")
    text = Path("report.html").read_text()
    assert "<img src=x" not in text and "</script <" not in text
    (scenes,) = re.findall(r'<script type="application/json" class="page">(.*?)</script>', text, re.S)
    (scene,) = json.loads(scenes)
    assert scene["prompt"] == f"a photo of <dog> {HOSTILE}"
    assert "Seed: 1" in scene["images"][1][4]
    assert scene["command"].startswith("objtune generate ") and "--seed 0 -n 2" in scene["command"]


def test_hostile_names_and_prompts_are_text(cli: Any) -> None:
    """As prompts, and as names and messages of jobs."""
    store = Store.at(Path.cwd())
    adapter = add_object(store, "rex")
    texts = [name.encode("utf-8", "replace").decode() for name in (*HOSTILE_NAMES, *MARKUP)]
    for text in texts:
        add_scene(store, text, [adapter], 0)
    lines = [{"name": text, "state": "failed", "code": 3, "message": text, "refs": [], "seconds": 0} for text in texts]
    Path("run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli("report", "--jobs", "run.jsonl").code == 0
    page = Path("report.html").read_text()
    assert find_active(page) == []
    (scenes,) = re.findall(r'<script type="application/json" class="page">(.*?)</script>', page, re.S)
    prompts = [scene["prompt"] for scene in json.loads(scenes)]
    assert len(prompts) == len(texts) and set(MARKUP) | {"[bold][red]x.png", "{0}%s.png"} <= set(prompts)
    assert [each for prompt in prompts for each in unsafe(prompt)] == []


def test_jobs_that_failed_say_why(project_with_dog: Any) -> None:
    lines = [
        {"name": "rex", "state": "failed", "code": 3, "message": f"no photo {HOSTILE}"},
        {"name": "tom", "state": "failed", "code": 7, "message": "earlier"},
        {"name": "tom", "state": "done", "code": 0, "message": ""},
    ]
    Path("run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert project_with_dog("report", "dog", "--jobs", "run.jsonl").code == 0
    text = Path("report.html").read_text()
    assert "no photo &lt;/script" in text and "earlier" not in text
    assert '<tr class="failed"><th scope="row">rex</th>' in text
    assert "<b>1</b> failed, <b>1</b> done" in text


def test_missing_inputs_are_named(project_with_dog: Any) -> None:
    assert project_with_dog("rm", "mask/dog", "--force").code == 0
    assert project_with_dog("report").code == 0
    assert "<title>mask dog@1, no longer here</title>" in Path("report.html").read_text()


def test_other_files_are_not_replaced(project_with_dog: Any) -> None:
    Path("page.html").write_text("<p>mine</p>")
    refused = project_with_dog("report", "--out", "page.html")
    assert refused.code == 2 and Path("page.html").read_text() == "<p>mine</p>"
    assert project_with_dog("report", "--out", "page.html", "--force").code == 0
    assert "objtune report</title>" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (("report",), 4, "there is nothing to report"),
        (("report", "dog"), 4, "there is no adapter/dog"),
        (("report", "--out", "page.pdf"), 2, "page.pdf is not named as HTML"),
        (("report", "--jobs", "none.jsonl"), 3, "none.jsonl cannot be read"),
        (("report", "--bench", "none.json"), 3, "none.json cannot be read"),
        (("report", "--bench", "."), 3, "table.csv cannot be read"),
        (("report", "--bench", "objtune.toml"), 3, "objtune.toml has no results of `objtune bench`"),
    ],
)
def test_what_cannot_be_reported_is_one_line(cli: Any, line: tuple[str, ...], code: int, message: str) -> None:
    done = cli(*line)
    assert (done.code, done.out) == (code, "") and message in done.err, done.err
    assert not list(Path().glob("*.html"))


@pytest.mark.parametrize("module", ["jinja2", "matplotlib.figure"])
def test_without_the_extra_one_line_says_what_to_install(
    project_with_dog: Any, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = project_with_dog("report")
    assert done.code == 7 and "`pip install 'objtune[report]'`" in done.err
    assert not Path("report.html").exists()


def test_pages_hold_a_bounded_number_of_images() -> None:
    record = Record("scene", "s", {}, {}, {"prompt": "p"}, {})
    scenes = [Scene(record, tuple(Image(f"{n}-{i}", "") for i in range(n))) for n in (1, 60, 60, 250, 0, 3)]
    pages = page.paginate(scenes)
    sizes = [sum(len(scene.images) for scene in each) for each in pages]
    assert max(sizes) <= page.IMAGES_PER_PAGE and sum(sizes) == 374
    keys = [image.key for each in pages for scene in each for image in scene.images]
    assert keys == [image.key for scene in scenes for image in scene.images]


def test_the_end_of_the_peak_rate_is_the_moment_of_the_stop() -> None:
    rates = [0.1, 0.5, 1.0, 1.0, 1.0, 0.5, 0.1]
    assert charts.decay_start({"curves": {"learning_rate": rates}}) == 5
    for flat in ([], [1.0], [1.0, 1.0], [0.5, 1.0, 0.5]):
        assert charts.decay_start({"curves": {"learning_rate": flat}}) == 0
