"""Several photos of one object: the masks, embedding, views and samples of a run; stopped and gone on with."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from objtune_cli import api
from objtune_cli.errors import UsageError
from objtune_cli.models.base_model import BaseModel
from objtune_cli.numerics.augmentation import PhotoLayers, views, views_of_photos
from objtune_cli.store.refs import Ref, parse
from objtune_cli.store.store import Store
from objtune_cli.training import parallel_trainers, preview, self_evaluation
from objtune_cli.training.batches import VALIDATION_SAMPLES, BatchSampler
from objtune_cli.training.subjects import Subject, SubjectPhoto, encode_views
from objtune_cli.training.train import group_photos
from tests.support import tiny_sd1
from tests.support.quick_runs import FAST_SETTINGS, NO_GATE_SETTINGS, UNSCORED, write_settings
from tests.support.training import CONFIG

# Views.


def _photo(colour: float, side: int = 48) -> SubjectPhoto:
    """A square of one grey on another ground."""
    mask = torch.zeros(side, side)
    mask[side // 4 : -(side // 4), side // 4 : -(side // 4)] = 1
    ground = torch.full((3, side, side), -colour)
    return SubjectPhoto(ground * (1 - mask) + colour * mask, ground, mask)


def _layers(photo: SubjectPhoto) -> PhotoLayers:
    return PhotoLayers(photo.picture, photo.mask, photo.background)


COLOURS = (0.2, 0.5, 0.8)


@given(st.integers(1, 3), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_each_view_is_of_the_next_photo_and_each_original_is_there(photos: int, count: int) -> None:
    own = [_layers(_photo(colour)) for colour in COLOURS[:photos]]
    pictures, masks = views_of_photos(own, count, 32, torch.Generator().manual_seed(0))
    assert len(pictures) == len(masks) == max(count, photos)
    for i, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        assert picture[:, mask[0] > 0.999].mean() == pytest.approx(COLOURS[i % photos], abs=1e-3)
    for i in range(photos):
        original, cover = views(own[i].picture, own[i].mask, own[i].ground, min(count, 2), 32, torch.Generator())
        torch.testing.assert_close(masks[i], cover[0])
        torch.testing.assert_close(pictures[i], original[0])  # on the photo's own background


def test_one_photo_has_the_views_that_it_always_had() -> None:
    photo = _layers(_photo(0.5))
    one = views_of_photos([photo], 7, 32, torch.Generator().manual_seed(3))
    same = views(photo.picture, photo.mask, photo.ground, 7, 32, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))


# Samples.


@pytest.fixture
def subject(model: BaseModel) -> Subject:
    """The red block, and the same on a darker and larger photo."""
    rex = tiny_sd1.subject(model)
    first = rex.photos[0]
    darker = SubjectPhoto(first.picture * 0.5, first.background * 0.5, first.mask)
    return replace(rex, photos=(first, darker, _photo(0.5)))


def test_samples_show_originals_of_all_photos_evenly(model: BaseModel, subject: Subject) -> None:
    sampler = BatchSampler(model, [subject], {}, replace(CONFIG, num_augmentations=9, original_view_prob=0.6))
    (own,) = sampler.views
    assert (len(own.latents), own.num_originals) == (9, 3)
    picks = sampler.sample_indices(own, 6000, torch.Generator().manual_seed(0))
    shares = torch.bincount(picks, minlength=9) / 6000
    torch.testing.assert_close(shares[:3], torch.full((3,), 0.6 / 3 + 0.4 / 9), atol=0.02, rtol=0)
    torch.testing.assert_close(shares[3:], torch.full((6,), 0.4 / 9), atol=0.01, rtol=0)
    half = sampler.validation_batch(0).indices[VALIDATION_SAMPLES // 2 :]
    assert sorted(set(half.tolist())) == [0, 1, 2]


def test_one_photo_draws_no_further_random_number(model: BaseModel, subject: Subject) -> None:
    config = replace(CONFIG, num_augmentations=4, original_view_prob=0.5)
    sampler = BatchSampler(model, [replace(subject, photos=subject.photos[:1])], {}, config)
    g, expected = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    picks = sampler.sample_indices(sampler.views[0], 50, g)
    by_hand = torch.randint(4, (50,), generator=expected)
    by_hand[torch.rand(50, generator=expected) < 0.5] = 0
    assert torch.equal(picks, by_hand) and torch.equal(g.get_state(), expected.get_state())


def test_no_photo_is_left_out_where_there_are_fewer_views(model: BaseModel, subject: Subject) -> None:
    own = encode_views(model, (subject,), replace(CONFIG, num_augmentations=1))
    assert len(own.latents) == own.num_originals == 3
    whole, _ = model.encode_image_distribution(subject.photos[1].picture[None])
    torch.testing.assert_close(own.latents[1].cpu(), whole[0].cpu(), atol=0.05, rtol=0.05)


def test_copy_is_measured_against_the_nearest_photo() -> None:
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layouts = tuple(self_evaluation.layout_descriptor(pictures))
    assert self_evaluation.nearest_photo_correlation(pictures, layouts) == pytest.approx(1, abs=1e-5)
    alone = [self_evaluation.nearest_photo_correlation(pictures[i : i + 1], layouts[:1]) for i in range(3)]
    assert self_evaluation.nearest_photo_correlation(pictures, layouts[:1]) == pytest.approx(sum(alone) / 3)


def test_masks_of_one_name_are_photos_of_one_object() -> None:
    refs = [parse(text) for text in ("mask/a@1", "mask/b@1", "mask/a@3", "embedding/b@1", "embedding/b@1")]
    assert group_photos(refs) == [[refs[0], refs[2]], [refs[1]], [refs[3]], [refs[4]]]


# Commands on a tiny base.


@pytest.fixture
def photos(project: Path, base: Path, dog_photo: Path) -> tuple[str, str]:
    """The example photo and its darker mirror image, each with a mask as its option."""
    write_settings(base, max_steps=4)
    photo = Image.open(dog_photo).convert("RGB").resize((96, 96))
    for name, picture in (("a", photo), ("b", ImageOps.mirror(photo).point(lambda v: v // 2))):
        picture.save(f"{name}.png")
        cover = np.zeros((96, 96), np.uint8)
        cover[24:72, 24:64] = 255
        Image.fromarray(cover).save(f"{name}-mask.png")
    return "a.png --mask a-mask.png", "b.png --mask b-mask.png"


@pytest.fixture
def train(cli: Any, photos: tuple[str, str], fast_sampling: None) -> Any:
    return lambda *words, more=(): cli("train", *" ".join(words).split(), *UNSCORED, *more)


def _inputs(ref: str) -> dict[str, str]:
    return {role: own["ref"] for role, own in Store.at(Path()).read_record(parse(ref)).inputs.items()}


def test_two_photos_make_one_adapter_that_names_both(train: Any, cli: Any, photos: tuple[str, str]) -> None:
    first, second = photos
    done = train(first, second, "--class dog --name rex")
    assert (done.code, done.out) == (0, "adapter/rex@1\n"), done.err
    assert _inputs("embedding/rex@1") == {"mask": "mask/rex@1", "mask.2": "mask/rex@2"}
    colours = [Store.at(Path()).read(parse(f"mask/rex@{n}"))[1]["rgb"].mean() for n in (1, 2)]
    assert colours[0] > 1.8 * colours[1]

    turned = train(second, first, "--class dog --name rex", more=("--json",))
    assert json.loads(turned.out)["refs"][0] == {
        **json.loads(turned.out)["refs"][0],
        "ref": "adapter/rex@1",
        "reused": True,
    }
    assert train("mask/rex@2 mask/rex@1").out == train("rex").out == "adapter/rex@1\n"
    one = train(first, "--class dog --name rex")
    assert one.out == "adapter/rex@2\n" and _inputs("embedding/rex@2") == {"mask": "mask/rex@1"}
    refused = cli("rm", "mask/rex@2")
    assert refused.code == 2 and "embedding/rex@1 was made from mask/rex@2" in refused.err
    assert cli("verify").code == 0 and "mask/rex@2" in cli("show", "embedding/rex@1").out


def test_the_photos_change_what_is_learned(train: Any, photos: tuple[str, str]) -> None:
    for line, name in ((photos[0], "one"), (" ".join(photos), "both")):
        assert train(line, f"--class dog --name {name}").code == 0
    one, both = (Store.at(Path()).read(Ref("adapter", name, 1))[1] for name in ("one", "both"))
    assert one.keys() - {"token.one"} == both.keys() - {"token.both"}
    assert any(not np.array_equal(one[key], both[key]) for key in one if key.endswith("lora_B.weight"))


def test_equal_photos_count_once(train: Any, photos: tuple[str, str]) -> None:
    shutil.copy("a.png", "copy.png")
    done = train(photos[0], "copy.png --mask a-mask.png --class dog")
    assert done.code == 0 and "copy.png is the same photo as a.png and counts once" in done.err
    assert _inputs("embedding/dog@1") == {"mask": "mask/dog@1"}
    other = train(photos[0], "copy.png --mask b-mask.png --point 1,1 --class dog")
    assert other.code == 2
    shutil.copy("a-mask.png", "same-mask.png")
    differs = train(photos[0], "copy.png --refine-mask a-mask.png --class dog")
    assert differs.code == 2 and "a.png and copy.png are the same photo with different hints" in differs.err


def test_the_gate_names_the_photo(train: Any, photos: tuple[str, str]) -> None:
    Image.fromarray(np.pad(np.full((2, 2), 255, np.uint8), 47)).save("b-mask.png")
    done = train(*photos, "--class dog")
    assert done.code == 9 and "error: b.png: no usable mask of the dog" in done.err
    assert not Path("artifacts/embedding").exists()


def test_a_stopped_run_of_two_photos_goes_on_to_the_same_bytes(
    train: Any, photos: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*photos, "--class dog")
    assert train(*line).code == 0
    unbroken = Path("artifacts/adapter/dog/v001.safetensors").read_bytes()
    shutil.rmtree("artifacts/adapter")
    whole = parallel_trainers.train_step

    def stopping(trainers: Any) -> Any:
        failed = whole(trainers)
        if trainers[0].step == 2:
            signal.raise_signal(signal.SIGTERM)
        return failed

    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(parallel_trainers, "train_step", stopping)
    stopped = train(*line)
    fewer = train(photos[0], "--class dog")
    monkeypatch.setattr(parallel_trainers, "train_step", whole)
    signal.signal(signal.SIGTERM, handler)
    assert fewer.code == 143 and "the photo, mask, embedding or prior differs" in fewer.err
    assert stopped.code == 143 and not Path("artifacts/adapter").exists()
    resumed = train(*line)
    assert (resumed.code, resumed.out) == (0, "adapter/dog@1\n") and "resumes at step 2 of 4" in resumed.err
    assert Path("artifacts/adapter/dog/v001.safetensors").read_bytes() == unbroken


def test_two_objects_of_which_one_has_two_photos(train: Any, photos: tuple[str, str]) -> None:
    Image.open("b.png").rotate(90).save("c.png")
    done = train(*photos, "--class dog", "c.png --mask b-mask.png --class mug")
    assert (done.code, done.out.split()) == (0, ["adapter/dog@1", "adapter/mug@1"]), done.err
    assert len(_inputs("embedding/dog@1")) == 2 and len(_inputs("embedding/mug@1")) == 1
    refused = train("mask/dog@1 mask/dog@2 mask/mug@1")
    assert refused.code == 2 and "several objects of several photos are not trained together" in refused.err
    joint = train("embedding/dog@1 embedding/mug@1")
    assert joint.code == 2 and "the objects are not of one photo" in joint.err


def test_scores_and_preview_of_two_photos(cli: Any, photos: tuple[str, str], fast_sampling: None) -> None:
    done = cli("train", *" ".join(photos).split(), "--class", "dog", *UNSCORED[:-3], "--json")
    document = json.loads(done.out)
    assert done.code == 0 and len(document["images"]) == 1, done.err
    assert {"identity", "drift", "copy", "prompt"} <= set(document["metrics"]["adapter/dog@1"])
    sheet = np.asarray(Image.open(document["images"][0]))
    cell = sheet[4:, 4:][: (sheet.shape[0] - 12) // 2, : (sheet.shape[1] - 16) // 3].astype(int)
    half = len(cell) // 2
    assert cell[half + half // 3 :].min() == 255  # two of four places are empty
    assert np.abs(cell[:half, :half] - cell[:half, half : 2 * half]).mean() > 1
    assert cli("export", "dog", "--format", "hub", "--out", "card").code == 0
    assert "Learned from 2 photos by `objtune`" in Path("card/README.md").read_text()


def test_one_photo_stays_as_it_is_in_the_preview() -> None:
    photos = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert preview._tile(photos[:1]) is not None and torch.equal(preview._tile(photos[:1]), photos[:1])
    tiled = preview._tile(photos)
    assert tiled.shape == (1, 3, 12, 12) and torch.equal(tiled[0, :, 6:, 6:], torch.ones(3, 6, 6))
    assert torch.allclose(tiled[0, :, :6, 6:].mean((1, 2)), photos[1].mean((1, 2)), atol=1e-6)


def test_init_embedding_takes_masks_one_by_one_or_together(train: Any, cli: Any, photos: tuple[str, str]) -> None:
    for photo in photos:
        assert cli("segment", *photo.split(), "--class", "dog").code == 0
    masks = ("mask/dog@1", "mask/dog@2")
    each = cli("init-embedding", *masks, "--set", "init-embedding.steps=2")
    assert each.out.split() == ["embedding/dog@1", "embedding/dog@2"]
    assert [_inputs(f"embedding/dog@{n}") for n in (1, 2)] == [{"mask": mask} for mask in masks]
    joint = cli("init-embedding", "-", "--together", "--set", "init-embedding.steps=2", stdin="\n".join(masks))
    assert joint.out == "embedding/dog@3\n" and len(_inputs("embedding/dog@3")) == 2
    twice = cli("init-embedding", masks[0], masks[0], "--together", "--set", "init-embedding.steps=2")
    assert twice.out == "embedding/dog@1\n" and "mask/dog@1 is named more than once and counts once" in twice.err
    assert cli("segment", *photos[0].split(), "--class", "mug").code == 0
    wrong = cli("init-embedding", "mask/dog@1", "mask/mug@1", "--together")
    assert wrong.code == 2 and "mask/dog@1 and mask/mug@1 are not of one object: dog, mug" in wrong.err


def test_the_python_api_takes_a_list(photos: tuple[str, str], base: Path, fast_sampling: None) -> None:
    set_ = [text.partition("=") for text in (*FAST_SETTINGS, *NO_GATE_SETTINGS, "train.self_evaluation=false")]
    sections: dict[str, dict[str, str]] = {}
    for key, _, value in set_:
        section, _, name = key.rpartition(".")
        sections.setdefault(section.replace("-", "_"), {})[name] = value
    ctx = api.project(".", **sections)
    made = api.train(ctx, ["a.png", "b.png"], "dog", mask=["a-mask.png", "b-mask.png"], preview=False)
    assert str(made.ref) == "adapter/dog@1" and len(_inputs("embedding/dog@1")) == 2
    assert str(api.init_embedding(ctx, ["mask/dog@2", "mask/dog@1"]).ref) == "embedding/dog@1"
    with pytest.raises(UsageError, match="2 photos and 1 of mask"):
        api.train(ctx, ["a.png", "b.png"], "dog", mask="a-mask.png")
    with pytest.raises(UsageError, match="there is no photo"):
        api.train(ctx, [], "dog")
