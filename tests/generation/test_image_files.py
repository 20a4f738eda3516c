"""Copied images: formats whose parameters other tools read, no metadata, names by a pattern, nothing overwritten."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objtune_cli.config import file_patterns
from objtune_cli.images import encoding, exif
from tests.generation.test_extra_loras import studio, style  # noqa: F401

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

ONE = ("-n", "1", "--steps", "2")
LINE = ("generate", "a photo of <dog>, wet", *ONE)


def user_comment(block: bytes) -> bytes:
    """`UserComment` of a TIFF structure, read as piexif reads it: tags by their offsets, the type checked."""
    assert block[:4] == b"MM\0*"

    def entries(offset: int) -> dict[int, tuple[int, int, bytes]]:
        (count,) = struct.unpack_from(">H", block, offset)
        each = [struct.unpack_from(">HHI4s", block, offset + 2 + 12 * i) for i in range(count)]
        assert [tag for tag, *_ in each] == sorted(tag for tag, *_ in each)
        return {tag: (kind, length, value) for tag, kind, length, value in each}

    (first,) = struct.unpack_from(">I", block, 4)
    (inner,) = struct.unpack(">I", entries(first)[0x8769][2])
    kind, length, value = entries(inner)[0x9286]
    assert kind == 7  # UNDEFINED; other types are not comments
    (offset,) = struct.unpack(">I", value)
    return block[offset : offset + length]


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_parameters_are_read_as_a1111_reads_them(studio: Callable, suffix: str) -> None:  # noqa: F811
    kept = studio(*LINE)
    written = Image.open(kept.out.strip()).text["parameters"]
    copy = studio(*LINE, "--out", "out", "--format", suffix)
    assert copy.code == 0, copy.err
    assert copy.out == f"out/dog-001-001.{suffix}\n"
    with Image.open(copy.out.strip()) as image:
        assert image.format == {"jpg": "JPEG", "webp": "WEBP", "avif": "AVIF"}[suffix]
        comment = user_comment(image.info["exif"].removeprefix(b"Exif\0\0"))
        assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be") == written
        assert image.getexif().get_ifd(0x8769)[0x9286] == comment and image.getexif()[0x0131].startswith("objtune ")
        drawn = np.asarray(image.convert("L")).astype(int)
    assert (
        np.abs(drawn - np.asarray(Image.open(kept.out.strip()).convert("L"))).mean() < 6
    )  # noise, of which WebP stores few colours
    bare = studio(*LINE, "--out", "out", "--format", suffix, "--no-metadata")
    assert bare.out == f"out/dog-001-001-2.{suffix}\n"
    with Image.open(bare.out.strip()) as image:
        assert not image.getexif() and not image.info.get("exif") and "parameters" not in image.info
    assert "Steps" not in Path(bare.out.strip()).read_bytes().decode("latin1")


def test_a_png_has_its_bytes_or_no_metadata(studio: Callable) -> None:  # noqa: F811
    kept = studio(*LINE)
    copy = studio(*LINE, "--out", "out")
    assert Path(copy.out.strip()).read_bytes() == Path(kept.out.strip()).read_bytes()
    bare = studio(*LINE, "--out", "out", "--no-metadata")
    with Image.open(bare.out.strip()) as image, Image.open(kept.out.strip()) as whole:
        assert not image.text and np.array_equal(np.asarray(image), np.asarray(whole))


def test_names_follow_the_pattern_and_nothing_is_overwritten(studio: Callable) -> None:  # noqa: F811
    pattern = "{object}/{prompt}-{seed}-{index:04d}-{sampler}-{steps}-{size}"
    line = ("generate", "a photo: <dog> / wet?", "-n", 2, "--steps", 2, "--seed", 7, "--out", "out")
    first = studio(*line, "--name-pattern", pattern)
    assert first.out.splitlines() == [
        "out/dog/a photo- dog - wet-7-0001-PLMS-2-32x32.png",
        "out/dog/a photo- dog - wet-8-0002-PLMS-2-32x32.png",
    ]
    assert studio(*line, "--name-pattern", pattern).out == first.out  # the same bytes are there
    same = studio(*line, "--name-pattern", "{object}")
    assert same.out.splitlines() == ["out/dog.png", "out/dog-2.png"]
    Path("out/dog.png").write_bytes(b"mine")
    again = studio(*line, "--name-pattern", "{object}")
    assert Path("out/dog.png").read_bytes() == b"mine" and again.out.splitlines() == ["out/dog-3.png", "out/dog-2.png"]
    other = studio(*line, "--steps", 3, "--name-pattern", "{object}")
    assert other.out.splitlines() == ["out/dog-4.png", "out/dog-5.png"]
    Path("objtune.toml").write_text('[generate]\nname_pattern = "{seed}"\nimage_format = "jpg"\n')
    assert studio(*line).out.splitlines() == ["out/7.jpg", "out/8.jpg"]
    assert studio("generate", "<dog>", *ONE).out.endswith(".png\n")  # the project keeps PNG


def test_scenes_are_copied_in_the_same_way(studio: Callable) -> None:  # noqa: F811
    line = ("compose", "<dog> and <cup>", *ONE, "--retries", 0, "--set", "compose.presence_check=false")
    copy = studio(*line, "--out", "out", "--format", "jpg", "--name-pattern", "{object}_{seed}")
    assert copy.out == "out/dog-cup_0.jpg\n"


def test_what_cannot_be_written_is_refused(studio: Callable) -> None:  # noqa: F811
    for line, said in (
        (("--format", "jpg"), "--format is for images that are copied"),
        (("--no-metadata",), "--no-metadata is for images that are copied"),
        (("--name-pattern", "{seed}"), "--name-pattern is for images that are copied"),
        (("--out", "o", "--format", "tiff"), "--format"),
        (("--out", "o", "--name-pattern", "{date}"), "there is no field {date}; fields: {object}"),
        (("--out", "o", "--name-pattern", "../{seed}"), "a name below the folder"),
        (("--out", "o", "--name-pattern", "/tmp/{seed}"), "a name below the folder"),
        (("--out", "o", "--name-pattern", "{seed"), "brace"),
        (("--out", "o", "--name-pattern", "{prompt:04d}"), "for example `{index:04d}`"),
        (("--out", "o", "--name-pattern", "{seed.__class__}"), "there is no field"),
        (
            (
                "--out",
                "o.avif",
            ),
            "is the name of an image file",
        ),
    ):
        for command in ("generate", "compose"):
            result = studio(command, "<dog>", *ONE, *line)
            assert result.code == 2 and said in result.err and "Traceback" not in result.err, (line, result.err)
    assert not Path("o").exists()


def test_long_parameters_do_not_fit_a_jpeg() -> None:
    from objtune_cli.errors import InputError

    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(InputError, match="too long for a JPEG"):
        encoding.encode_image(image, "jpg", 0, "x" * 40_000, "objtune")
    assert encoding.encode_image(image, "webp", 0, "x" * 40_000, "objtune")
    text = "ein Hund \N{DOG FACE}, naß"
    assert user_comment(exif.encode_parameters(text, "objtune"))[8:].decode("utf-16-be") == text


def test_names_are_safe_on_every_file_system() -> None:
    values = {"object": "dog", "version": 12, "index": 3, "seed": 2**64 - 1, "prompt": 'a: "b" | <c>?*\n' + "é" * 200,
              "base": "C:\\models\\a", "sampler": "DPM++ 2M", "steps": 4, "guidance": "7.5", "size": "8x8"}  # fmt: skip
    assert file_patterns.fill_pattern(file_patterns.DEFAULT, values) == "dog-012-003"
    name = file_patterns.fill_pattern("{prompt}_{base}_{seed}", values)
    assert not set(name) & set('<>:"/\\|?*\n') and name.endswith(f"C-models-a_{2**64 - 1}")
    assert len(file_patterns.fill_pattern("{prompt}" * 5, values).encode()) <= file_patterns.MAX_NAME
