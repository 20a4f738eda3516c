"""`doctor --run`: what the self-test prints, where it fails, and what its report never holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import numpy as np
import pytest
import torch

from objtune_cli.doctor import plain_diffusers, self_test
from objtune_cli.doctor.self_test_report import ImageDifferences, hide_private
from objtune_cli.errors import GateError
from objtune_cli.images import png
from tests.support import tiny_families
from tests.support.json_schema import check

Cli = Callable[..., Any]
pytestmark = [pytest.mark.usefixtures("cached_segmentation"), pytest.mark.commands]


def report_of(done: Any) -> dict[str, Any]:
    document = json.loads(done.out)
    check(document, "output", "doctor")
    report: dict[str, Any] = document["self_test"]
    return report


def test_sdxl_is_drawn_equally_by_diffusers_alone(cli: Cli, tmp_path: Path, project: Path) -> None:
    folder = tiny_families.sdxl(tmp_path / "base")
    done = cli("doctor", "--base", folder, "--run", "--quick", "--steps", "2", "--json")
    report = report_of(done)
    assert done.code == 0 and report["ok"]
    assert {step["state"] for step in report["steps"]} == {"ok"}
    assert [step["name"] for step in report["steps"]][-3:] == ["export", "load in diffusers", "compare"]
    differences = report["differences"]
    assert differences["mean"] < 0.1 < differences["without_object"]
    assert (report["base"]["family"], report["base"]["dtype"], report["base"]["resolution"]) == ("sdxl", "float32", 32)
    assert report["base"]["million_parameters"].keys() == {"unet", "vae", "text_encoder", "text_encoder_2"}
    assert report["machine"]["device"] == "cpu" and report["machine"]["torch"] == torch.__version__
    assert report["photo"] == "the mug of the package"
    assert str(tmp_path) not in done.out
    assert [path.name for path in project.iterdir()] == ["objtune.toml"]


def test_another_image_fails_the_last_step(
    cli: Cli, tmp_path: Path, dog_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without the exported files diffusers draws another image, and the report says so."""
    folder = tiny_families.sd2(tmp_path / "base")
    monkeypatch.setattr(plain_diffusers, "load_object", lambda *_: None)
    monkeypatch.setitem(self_test.LARGEST_MEAN, "float32", 0.1)
    mask = np.zeros((640, 640), np.uint8)
    mask[240:535, 110:530] = 255
    Path("mask.png").write_bytes(png.encode_png(mask))
    own = ("--photo", dog_photo, "--class", "dog", "--mask", "mask.png")
    done = cli("doctor", "--base", folder, "--run", "--quick", "--steps", "2", *own)
    rows = {row[0]: row[1:] for row in (line.split("\t") for line in done.out.splitlines())}
    assert done.code == 9
    assert rows["compare"][0] == "failed" and rows["load in diffusers"][0] == "ok"
    assert "plain diffusers draws another image" in rows["compare"][3]
    assert rows["photo"] == ["a photo of the user"] and "difference, mean" in rows
    assert "self-test: compare failed" in done.err
    assert dog_photo.name not in done.out and str(tmp_path) not in done.out


def test_a_failure_is_in_the_report_and_ends_the_steps(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"cannot open {tmp_path}/private/unet with hf_abcdefghijk")

    monkeypatch.setattr(self_test.SelfTest, "_segment", fail)
    done = cli("doctor", "--base", base, "--run", "--quick", "--json")
    report = report_of(done)
    assert done.code == 1 and not report["ok"]
    steps = {step["name"]: step for step in report["steps"]}
    assert steps["segment"]["message"].startswith("RuntimeError: cannot open …/unet with (hidden) (test_self_test.py")
    assert (steps["load the base"]["state"], steps["segment"]["state"], steps["train"]["state"]) == (
        "ok", "failed", "skipped",
    )  # fmt: skip


def test_a_base_that_is_not_here_names_its_command(cli: Cli) -> None:
    done = cli("doctor", "--base", "sdxl", "--run", "--quick", "--json")
    (step,) = report_of(done)["steps"]
    assert (done.code, step["name"], step["state"]) == (7, "find the base", "failed")
    assert "objtune fetch --base sdxl" in step["hint"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--photo", "a.jpg", "--class", "dog"), "belong to the self-test"),
        (("--run", "--photo", "a.jpg"), "the self-test's photo needs its class word"),
        (("--run", "--class", "dog"), "the self-test's photo needs its class word"),
        (("--run", "--mask", "a.png"), "and a mask needs its photo"),
        (("--run", "--steps", "0"), "--steps"),
    ],
)
def test_wrong_options_are_one_line(cli: Cli, options: tuple[str, ...], message: str) -> None:
    done = cli("doctor", "--quick", *options)
    assert done.code == 2 and message in done.err and done.out == ""


def test_reports_hold_no_paths_and_no_tokens() -> None:
    hidden = hide_private(
        "no file /home/ann/my models/unet/config.json, see /data/x.log; https://huggingface.co/a/b said token=abcdefghij12",
        (Path("/home/ann/my models"),),
    )
    assert hidden == "no file …/config.json, see …/x.log; https://huggingface.co/a/b said (hidden)"
    assert hide_private("rex.jpg: no dog in /p/rex.jpg", photo=Path("/p/rex.jpg")) == "the photo: no dog in the photo"
    assert hide_private("stabilityai/sdxl at 1/2") == "stabilityai/sdxl at 1/2"


def test_images_that_are_no_numbers_are_not_equal() -> None:
    with pytest.raises(GateError, match="mean difference nan"):
        ImageDifferences(float("nan"), 0.0, 0.0, 0.0, 1.0).require_equal()
