"""`bench dreambooth` on drawn objects in the data set's layout: every number from the pictures that lie there, nothing made twice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from objtune_cli.models import (
    loading,
)

# isort: split
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from objtune_cli.bench import dreambooth_dataset, single_training
from objtune_cli.bench.methods import Method
from objtune_cli.bench.single_training import TrainingResult
from objtune_cli.bench.suites import dreambooth
from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import Bench, Common
from objtune_cli.errors import ResourceError, Stopped
from objtune_cli.evaluation import clip_dino, features, statistics
from objtune_cli.models import clip
from objtune_cli.store.project import find_project
from objtune_cli.workflow.context import StageContext
from tests.support import fake_dreambooth as drawn
from tests.support import tiny_sd1
from tests.support.fixtures import Notes

METHODS = {"one": Method("One", ""), "two": Method("Two", "", train={"rank": 4})}
CONFIG = Bench(images_per_prompt=2)
PROMPTS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn.small_base(tmp_path_factory.mktemp("dreambench") / "tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dog with a mask beside its photo, and a mug without."""
    return drawn.write(tmp_path_factory.mktemp("photos") / "dataset", photos=3, count=PROMPTS, side=64, mask=True)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino") / "small-dino"
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=16)).save_pretrained(folder)
    return folder


@pytest.fixture
def context(project: Path, base: Path) -> Callable[..., StageContext]:
    def make(**given) -> StageContext:
        work = find_project(project / "bench" / "work", create=True)
        return StageContext(
            work, Settings(work.settings, {}), Common(base=str(base), device="cpu", precision="fp32"), Notes(), **given
        )

    return make


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which method was trained on which subject; a training gives a random token."""
    seen: list[tuple[str, str]] = []

    def learned(ctx: StageContext, handed: single_training.TrainingInput, name: str, method: Method) -> TrainingResult:
        seen.append((name, handed.name))
        assert handed.rgb.shape[:2] == handed.mask.shape == (64, 64) and handed.kind == handed.name
        rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(len(seen)))
        return TrainingResult({f"token.{handed.name}": rows}, 2.0 * len(seen), 100.0)

    monkeypatch.setattr(single_training, "train_object", learned)
    monkeypatch.setattr(dreambooth.class_prior_stage, "run", lambda *_: None)
    return seen


@pytest.fixture
def asked(photos: Path) -> list[dreambooth_dataset.DreamBoothSubject]:
    return dreambooth_dataset.read_subjects(photos, None, "", ("dog",))


def _by_name(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(row["method"], row["measure"]): row for row in rows}


ALL = [("one", "dog"), ("two", "dog"), ("one", "mug"), ("two", "mug")]
PLAIN = {"clip_i", "clip_t", "diversity"}


def test_rows_of_every_method_say_what_was_learned_and_what_measured(
    context: Callable[..., StageContext], asked: list, trained: list, project: Path
) -> None:
    ctx = context()
    rows = _by_name(dreambooth.run(ctx, project / "bench", asked, METHODS, CONFIG))
    assert trained == ALL
    found = {name: {m for n, m in rows if n == name} for name in dict.fromkeys(n for n, _ in rows)}
    assert found == {"photos": {"clip_i"}, "untrained": PLAIN} | dict.fromkeys(
        METHODS, PLAIN | {"seconds", "memory_mb"}
    )
    assert all(row["n"] == 2 and row["low"] <= row["mean"] <= row["high"] for row in rows.values())
    assert {(row["photo"], row["method"]) for row in rows.values()} == {
        ("00.jpg", "one"),
        ("00.jpg", "two"),
        ("", "photos"),
        ("", "untrained"),
    }
    assert {row["judge"] for (_, m), row in rows.items() if m in PLAIN} == {"tiny's own"} and rows["one", "seconds"][
        "judge"
    ] == ""
    assert rows["one", "seconds"]["mean"] == 4.0  # the first and the third training
    assert ctx.report.said[0].startswith(
        "facebook/dino-vits16 is not on this machine: no DINO, and diversity by CLIP; `objtune fetch --model"
    )
    kept = [json.loads(line) for line in (project / "bench" / "results.jsonl").read_text().splitlines()]
    assert {(r["method"], r["case"]): r["photo"] for r in kept} == {
        (n, c): "00.jpg" if n in METHODS else "" for n in found for c in ("dog", "mug")
    }
    header, *lines = (project / "bench" / "table.csv").read_text().splitlines()
    assert header == "method,measure,mean,low,high,n,photo,judge" and len(lines) == len(rows)


def test_every_number_is_that_of_the_pictures_that_lie_there(
    context: Callable[..., StageContext], asked: list, trained: list, project: Path
) -> None:
    ctx, out = context(), project / "bench"
    rows = _by_name(dreambooth.run(ctx, out, asked, {"one": METHODS["one"]}, CONFIG))
    look, say = features.load_base_clip(ctx)

    def opened(path: Path) -> np.ndarray:
        return look(np.asarray(Image.open(path).convert("RGB"))[None])[0]

    clip_i, clip_t, diversity, among = [], [], [], []
    for subject in asked:
        real = [opened(path) for path, _ in subject.photos]
        files = sorted((out / "pictures" / "one" / subject.name).glob("*.png"))
        assert [f.name for f in files] == [f"{p:02d}-{s}.png" for p in (1, 2, 3) for s in (1, 2)]
        made = [opened(f) for f in files]
        clip_i.append(np.mean([a @ b for a in made for b in real]))
        told = say([text.replace("{0} {1}", subject.kind) for text in subject.prompts])
        clip_t.append(np.mean([a @ told[i // 2] for i, a in enumerate(made)]))
        diversity.append(np.mean([1 - made[i] @ made[i + 1] for i in (0, 2, 4)]))
        among.append(np.mean([real[0] @ real[1], real[0] @ real[2], real[1] @ real[2]]))
    for name, values in {"clip_i": clip_i, "clip_t": clip_t, "diversity": diversity}.items():
        assert rows["one", name]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert rows["photos", "clip_i"]["mean"] == pytest.approx(np.mean(among), abs=1e-4)
    assert rows["one", "clip_i"]["low"] == pytest.approx(statistics.confidence_interval(clip_i)[1], abs=2e-3)


def test_a_prompt_names_the_object_for_a_method_and_the_class_for_the_base(
    context: Callable[..., StageContext], asked: list, trained: list, project: Path, monkeypatch
) -> None:
    said: dict[str, tuple[list[str], list[int], tuple[float, ...]]] = {}

    def drawn_as(
        ctx: StageContext,
        model: object,
        texts: list[str],
        seeds: list[int],
        label: str,
        prompt_guidance_scale: float = 0.0,
        autoguidance_scale: float = 0.0,
        subject_conditioning_start: float = 1.0,
    ) -> np.ndarray:
        said[label] = texts, seeds, (prompt_guidance_scale, autoguidance_scale, subject_conditioning_start)
        return np.random.default_rng(0).integers(0, 256, (len(texts), 32, 32, 3), np.uint8)

    monkeypatch.setattr(dreambooth.rendering, "sample_images", drawn_as)
    dreambooth.run(
        context(),
        project / "bench",
        asked[:1],
        {
            "one": replace(
                METHODS["one"],
                sampling={"prompt_guidance_scale": 1.5, "autoguidance_scale": 0.5, "subject_conditioning_start": 0.9},
            )
        },
        CONFIG,
    )
    assert (said["untrained on dog"][2], said["one on dog"][2]) == ((0.0, 0.0, 1.0), (1.5, 0.5, 0.9))
    assert said["untrained on dog"][0] == [
        text for place in ("on the beach", "at the beach", "in the snow") for text in [f"a dog {place}"] * 2
    ]
    learned = said["one on dog"][0]
    assert (
        learned[0].startswith("a ")
        and learned[0].endswith(" on the beach")
        and "<dog>" not in learned[0]
        and learned[0] != "a dog on the beach"
    )
    assert said["one on dog"][1] == said["untrained on dog"][1] == list(range(1000, 1006))
    dreambooth.run(context(), project / "other", asked[:1], {}, replace(CONFIG, seed=1))
    assert said["untrained on dog"][1] == list(range(11000, 11006))


def test_a_second_run_makes_nothing_again_and_another_judge_looks_at_the_same_pictures(
    context: Callable[..., StageContext], asked: list, trained: list, project: Path, vit: Path, monkeypatch
) -> None:
    out = project / "bench"
    first = dreambooth.run(context(), out, asked, METHODS, CONFIG)
    sheet = (out / "sheet.png").read_bytes()
    ctx = context()
    assert dreambooth.run(ctx, out, asked, METHODS, CONFIG) == first and trained == ALL and len(ctx.report.said) == 1
    assert (out / "sheet.png").read_bytes() == sheet
    monkeypatch.setattr(dreambooth.rendering, "sample_images", lambda *_: pytest.fail("drawn again"))
    rows = _by_name(dreambooth.run(context(), out, asked, METHODS, replace(CONFIG, dino_model=str(vit))))
    assert trained == ALL and {m for n, m in rows if n == "one"} == PLAIN | {"dino", "seconds", "memory_mb"}
    assert {rows["one", m]["judge"] for m in ("dino", "diversity")} == {"small-dino"}
    before = _by_name(first)
    assert all(rows["two", m] == before["two", m] for m in ("clip_i", "clip_t", "seconds"))
    assert rows["one", "diversity"]["mean"] != before["one", "diversity"]["mean"]


def test_what_changes_a_picture_is_made_again_and_nothing_else(
    context: Callable[..., StageContext], asked: list, trained: list, photos: Path, project: Path
) -> None:
    out, one = project / "bench", {"one": METHODS["one"]}
    dreambooth.run(context(), out, asked[:1], one, CONFIG)
    stamp = (out / "pictures" / "untrained" / "dog" / "made.json").stat().st_mtime_ns
    other = dreambooth_dataset.read_subjects(photos, 1, "02", ("dog",))
    assert other[0].mask is None
    settings = Settings(context().project.settings, {}, [f"{key}=-99" if "min_class" not in key else f"{key}=0" for key in ("segment.min_class_probability", "segment.min_score_margin", "segment.min_score")])  # fmt: skip
    rows = _by_name(dreambooth.run(replace(context(), settings=settings), out, other, one, CONFIG))
    assert trained == [("one", "dog")] * 2 and rows["one", "clip_i"]["photo"] == "02.jpg"
    assert (out / "pictures" / "untrained" / "dog" / "made.json").stat().st_mtime_ns == stamp, (
        "what learns nothing is the same"
    )
    dreambooth.run(context(), out, asked[:1], one, replace(CONFIG, images_per_prompt=1))
    assert trained == [("one", "dog")] * 3


def test_a_subject_without_a_usable_mask_has_no_result_and_the_note_says_what_helps(
    context: Callable[..., StageContext], asked: list, trained: list, project: Path
) -> None:
    bare = replace(asked[0], mask=None)  # and the tiny base's CLIP knows no dog
    ctx = context()
    rows = _by_name(dreambooth.run(ctx, project / "bench", [bare, asked[1]], METHODS, CONFIG))
    assert trained == ALL[2:] and rows["one", "clip_i"]["n"] == 1 and rows["untrained", "clip_i"]["n"] == 2
    notes = [text for text in ctx.report.said if "no usable mask of the dog" in text]
    assert len(notes) == 2 and all("put a mask beside the photo, 00.mask.png" in text for text in notes)


def test_a_stopped_run_keeps_the_finished_subjects(
    context: Callable[..., StageContext], asked: list, trained: list, project: Path
) -> None:
    out = project / "bench"
    with pytest.raises(Stopped) as caught:
        dreambooth.run(context(stopped=lambda: 2 if len(trained) == 3 else 0), out, asked, METHODS, CONFIG)
    assert caught.value.code == 130 and trained == ALL[:3]
    assert len((out / "results.jsonl").read_text().splitlines()) == 6 and not (out / "table.csv").exists()
    trained.clear()
    dreambooth.run(context(), out, asked, METHODS, CONFIG)
    assert trained == ALL[2:]


def test_judges_that_were_asked_for_and_are_not_here_are_7(
    context: Callable[..., StageContext], project: Path, tmp_path: Path
) -> None:
    for given in ({"dino_model": "nobody/nothing"}, {"clip_model": "nobody/nothing"}):
        with pytest.raises(ResourceError, match="nobody/nothing is not on this machine") as caught:
            clip_dino.load_models(context(), Bench(**given))
        assert "`objtune fetch --model nobody/nothing`" in caught.value.hint
    ctx = context()
    bare = replace(ctx, common=replace(ctx.common, base=str(tiny_sd1.build(tmp_path / "bare", clip=False))), _base=None)
    with pytest.raises(ResourceError, match="the base bare has no CLIP vision encoder for the measures") as caught:
        clip_dino.load_models(bare, Bench())
    assert "`--set bench.clip_model=openai/clip-vit-base-patch32`" in caught.value.hint


def test_the_toyboxs_own_clip_sees_and_reads_as_the_prototype_does(context: Callable[..., StageContext]) -> None:
    ctx = context()
    ctx = replace(ctx, common=replace(ctx.common, base="toybox"), _base=None)
    look, say = features.load_base_clip(ctx)
    model = loading.load(ctx.base.folder, torch.device("cpu"), torch.float32)
    own = clip.load(ctx.base.clip_path, model)
    texts = ["a dog on the beach", "a red mug", "a photo of a spotted fish with a yellow hat under water"]
    with torch.no_grad():
        np.testing.assert_allclose(say(texts), own.text_features(model, texts).numpy(), atol=1e-5)
    shown = np.random.default_rng(0).integers(0, 256, (20, 128, 128, 3), np.uint8)  # more than a batch
    seen = own.image_features(torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 255).numpy()
    np.testing.assert_allclose(look(shown), seen, atol=1e-5)
    assert features.fingerprint(look) == features.fingerprint(features.load_base_clip(ctx)[0])
