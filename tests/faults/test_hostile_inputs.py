"""F8, F9, F19, F21: a corpus of bad inputs, pickles that want to run, blocked sockets, and what a photo says about its owner."""

import io
import json
import os
import pickle
import socket
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
from tests.support import quick_runs

Cli = Callable[..., Any]
Make = Callable[[Path], Any]
SIDE = 96


def picture(form: str = "PNG", size: tuple[int, int] = (SIDE, SIDE), mode: str = "RGB", **options: Any) -> bytes:
    """A plain picture with a square, as a file's bytes."""
    rgb = np.full((size[1], size[0], 3), 120, np.uint8)
    rgb[size[1] // 3 : size[1] // 2, size[0] // 3 : size[0] // 2] = (220, 30, 30)
    out = io.BytesIO()
    Image.fromarray(rgb).convert(mode).save(out, form, **options)
    return out.getvalue()


def photo(data: bytes | Callable[[], bytes]) -> tuple[list[str], int, Make]:
    """`segment` of a file with these bytes, which must be refused as unusable."""
    return (
        ["segment", "photo.png", "--class", "dog"],
        3,
        lambda folder: (folder / "photo.png").write_bytes(data() if callable(data) else data),
    )


def animated(form: str) -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (SIDE, SIDE), (i * 40, 0, 0)) for i in range(3)]
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds nothing."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("photo.png", picture())
    return out.getvalue()


def transparent() -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (SIDE, SIDE)).save(out, "PNG")
    return out.getvalue()


IMAGES: dict[str, tuple[list[str], int, Make]] = {
    "empty": photo(b""), "one byte": photo(b"\x89"), "signature alone": photo(b"\x89PNG\r\n\x1a\n"), "words": photo(b"these are words"),
    "zeros": photo(bytes(5000)), "ones": photo(b"\xff" * 5000), "html": photo(b"<html><body>404</body></html>"), "svg": photo(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "pdf": photo(b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"), "eps": photo(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\nshowpage\n"),
    "psd": photo(b"8BPS\0\1" + bytes(100)), "fits": photo(b"SIMPLE  =                    T" + b" " * 3000),
    "sgi": photo(lambda: picture("SGI")), "dds": photo(lambda: picture("DDS")), "ico": photo(lambda: picture("ICO")), "ppm": photo(lambda: picture("PPM")), "tga": photo(lambda: picture("TGA")), "pcx": photo(lambda: picture("PCX")),
    "zip": photo(zipped), "pickle": photo(pickle.dumps({"a": 1})), "elf": photo(b"\x7fELF" + bytes(500)), "json": photo(b'{"a":1}'), "xml bomb": photo(b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"),
    "animated gif": photo(lambda: animated("GIF")), "animated png": photo(lambda: animated("PNG")), "animated webp": photo(lambda: animated("WEBP")),
    "1x1": photo(lambda: picture(size=(6, 6))), "thin": photo(lambda: picture(size=(2000, 64))), "tall": photo(lambda: picture(size=(64, 2000))),
    "bomb 30000x30000": photo(lambda: png_of(30_000, 30_000)), "bomb 20000x1000": photo(lambda: png_of(20_000, 1000)), "0 wide": photo(lambda: png_of(0, 96)),
    "bomb 2^31": photo(lambda: png_of(2**31 - 1, 2**31 - 1)), "float tiff": photo(lambda: picture("TIFF", mode="F")), "int tiff": photo(lambda: picture("TIFF", mode="I")),
    **{f"{form} cut to {int(share * 100)} %": photo(lambda form=form, share=share: (data := picture(form))[: int(len(data) * share)])
       for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF") for share in (0.1, 0.5)},
    "png, a chunk's sum wrong": photo(lambda: picture().replace(b"IDAT", b"IDAU", 1)), "jpeg header alone": photo(b"\xff\xd8\xff\xe0\0\x10JFIF\0"),
    "heic": photo(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)), "avif header alone": photo(b"\0\0\0\x1cftypavif\0\0\0\0mif1avifmiaf" + bytes(64)), "jpeg xl": photo(b"\xff\x0a" + bytes(64)),
    "video": photo(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(64)), "raw": photo(b"FUJIFILMCCD-RAW 0201" + bytes(64)), "jpeg 2000 cut": photo(lambda: picture("JPEG2000")[:300]),
    "avif cut": photo(lambda: picture("AVIF")[:300]), "animated avif": photo(lambda: animated("AVIF")), "container without length": photo(b"\0\0\0\0ftyp"), "tiff header alone": photo(b"II*\0\xff\xff\xff\xff"),
    "profile of nothing": photo(lambda: picture("JPEG", icc_profile=b"\0" * 130)[:900]), "wholly transparent": photo(transparent),
    "plain colour": (["segment", "photo.png", "--class", "dog"], 9, lambda folder: Image.new("RGB", (SIDE, SIDE), "red").save(folder / "photo.png")),
    "folder": (["segment", "photo.png", "--class", "dog"], 3, lambda folder: (folder / "photo.png").mkdir()),
    "pipe": (["segment", "photo.png", "--class", "dog"], 3, lambda folder: os.mkfifo(folder / "photo.png")),
    "dead link": (["segment", "photo.png", "--class", "dog"], 3, lambda folder: (folder / "photo.png").symlink_to("nowhere")),
    "link to itself": (["segment", "photo.png", "--class", "dog"], 3, lambda folder: (folder / "photo.png").symlink_to("photo.png")),
    "device": (["segment", "/dev/zero", "--class", "dog"], 3, lambda folder: None),
}  # fmt: skip


def header_of(text: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def record_of(**changes: Any) -> bytes:
    """A file of one record, changed."""
    record = Record("mask", "rex", {"rex": "dog"}, {}, {}, {}, version=1, digest="0" * 64).header() | changes
    return header_of(json.dumps({"__metadata__": {"objtune": json.dumps(record)}}).encode())


def stored(data: bytes, *, code: int = 5) -> tuple[list[str], int, Make]:
    """A store whose only artifact is these bytes."""

    def make(folder: Path) -> None:
        path = folder / "artifacts/mask/rex/v001.safetensors"
        path.parent.mkdir(parents=True)
        path.write_bytes(data)

    return ["show", "rex"], code, make


def tensor(spec: str, body: bytes = b"") -> tuple[list[str], int, Make]:
    record = json.dumps(json.dumps(Record("mask", "rex", {}, {}, {}, {}, version=1, digest="0" * 64).header()))
    return stored(header_of(f'{{"__metadata__":{{"objtune":{record}}},{spec}}}'.encode(), body))


FILES: dict[str, tuple[list[str], int, Make]] = {
    "no bytes": stored(b""), "seven bytes": stored(bytes(7)), "length alone": stored(bytes(8)), "length 2^64-1": stored(b"\xff" * 8 + b"{}"),
    "length beyond the file": stored(header_of(b"{}", length=99)), "length over the limit": stored(header_of(b"{" + b" " * 2_000_000 + b"}")),
    "list": stored(header_of(b"[]")), "null": stored(header_of(b"null")), "number": stored(header_of(b"42")), "not json": stored(header_of(b"{hello}")),
    "not utf-8": stored(header_of(b'{"\xff":1}')), "leading space": stored(header_of(b' {"__metadata__":{"objtune":"{}"}}')), "nul padding": stored(header_of(b'{"__metadata__":{"objtune":"{}"}}\0')),
    "deep": stored(header_of(b'{"a":' + b"[" * 50_000)), "no metadata": stored(header_of(b"{}")), "metadata null": stored(header_of(b'{"__metadata__":null}')),
    "metadata of others": stored(header_of(b'{"__metadata__":{"format":"pt"}}')), "key twice": stored(header_of(b'{"__metadata__":{"objtune":"{}","objtune":"{}"}}')),
    "key twice in the record": stored(header_of(b'{"__metadata__":{"objtune":"{\\"a\\":1,\\"a\\":1}"}}')), "nan": stored(header_of(b'{"__metadata__":{"objtune":"{\\"a\\":NaN}"}}')),
    "infinity": stored(record_of(config={"lr": float("inf")})), "long number": stored(header_of(b'{"a":' + b"9" * 5000 + b"}")), "newer schema": stored(record_of(schema=99), code=6),
    "schema 0": stored(record_of(schema=0)), "schema text": stored(record_of(schema="2")), "no digest": stored(record_of(digest="")), "another name": stored(record_of(name="max")), "another kind": stored(record_of(kind="scene")),
    "name is a path": stored(record_of(name="../../etc/passwd")), "name is an escape": stored(record_of(name="\x1b[31m")), "inputs a list": stored(record_of(inputs=[])),
    "objects a text": stored(record_of(objects="dog")), "half a character": stored(record_of(config={"a": "\ud800"})),
    "tensor shape negative": tensor('"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}'), "tensor huge": tensor('"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}', bytes(4)),
    "tensor of no type": tensor('"a":{"dtype":"X9","shape":[1],"data_offsets":[0,1]}', b"0"), "tensor beyond the file": tensor('"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}', b"0"),
    "trailing bytes": tensor('"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', b"0123"), "overlap": tensor('"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}', b"012"),
    "tensor twice": tensor('"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'),
}  # fmt: skip


def line(text: str, code: int, make: Make = lambda folder: None) -> tuple[list[str], int, Make]:
    return text.split(" "), code, make


def named(name: str) -> tuple[list[str], int, Make]:
    return (
        ["segment", "toy.png", "--class", "dog", "--name", name],
        2,
        lambda folder: (folder / "toy.png").write_bytes(picture()),
    )


NAMES = {f"name {name!a}": named(name) for name in (
    "", ".", "..", "../up", "a/b", "a\\b", "Rex", "rex!", "con", "nul.txt", "com1", "rex.", "-rf", "\x1b[31m", "a" * 65, "é", "a\nb", "\u202ea", "a b", "\udcff", "犬",
)}  # fmt: skip

LINES: dict[str, tuple[list[str], int, Make]] = {text: line(text, code) for text, code in {
    "nonsense": 2, "--nonsense": 2, "list --kind mask": 2, "list masks": 2, "show": 2, "show a/b/c": 2, "show mask/": 2, "show mask/rex@x": 2, "show mask/rex@0000000000": 2,
    "show mask/rex": 4, "show rex": 4, "rm rex": 4, "rm": 2, "mv": 2, "mv rex max": 4, "gc --older-than never": 2, "gc --older-than -1d": 2, "export rex": 4, "export scene/x": 6,
    "evaluate mask/x": 6, "train": 2, "train none.jpg --class dog": 3, "train rex": 4, "train rex --class dog": 2, "train x.jpg --steps -1 --class dog": 2,
    "train x.jpg --class dog --max-time soon": 2, "segment": 2, "segment x.jpg": 2, "generate": 2, "generate <rex>": 4, "generate <Rex>": 3, "compose <rex> --place rex": 2,
    "compose <rex> --layout none.toml": 3, "list --project /nonexistent": 2, "list --json=yes": 2, "list --events /nonexistent/file": 7, "run none.toml": 3, "run": 2,
    "run none.toml --jobs 0": 2, "doctor now": 2, "init --project /dev/null": 2, "generate a --set train.x=1": 2, "generate a --set x": 2, "generate a --base nowhere/at/all": 2,
    "generate a --base sd15": 7, "fetch --base sd15": 7, "fetch --base nowhere": 2, "fetch sd15": 2, "generate a --device cuda:99": 7, "generate a --device abacus": 7, "generate a --precision fp8": 2,
}.items()}  # fmt: skip

CORPUS = {
    **{f"image: {k}": v for k, v in IMAGES.items()},
    **{f"file: {k}": v for k, v in FILES.items()},
    **NAMES,
    **{f"line: {k}": v for k, v in LINES.items()},
}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.lstat().st_size)
        for p in folder.rglob("*")
        if not p.is_dir()
    }


def test_f8_is_large_enough() -> None:
    assert len(CORPUS) >= 120, len(CORPUS)
    assert len(IMAGES) >= 45 and len(FILES) >= 35 and len(NAMES) >= 16 and len(LINES) >= 16


@pytest.mark.parametrize("case", CORPUS, ids=lambda c: c.encode("ascii", "backslashreplace").decode())
def test_f8_bad_inputs(case: str, cli: Cli, project: Path) -> None:
    """The contract's code, one `error:` and one `hint:`, no traceback, no escape, nothing written into the store, soon."""
    args, code, make = CORPUS[case]
    make(project)
    before = tree(project)
    started = time.monotonic()
    done = cli(*args)
    taken = time.monotonic() - started
    assert done.code == code, done.err
    assert done.out == ""
    lines = [said for said in done.err.splitlines() if said.startswith(("error:", "hint:"))]
    assert [said.split(":")[0] for said in lines] == ["error", "hint"], done.err
    assert "Traceback" not in done.err and "\x1b" not in done.err
    after = tree(project)
    assert {k: v for k, v in after.items() if not k.startswith(".objtune/rejected")} == before
    assert taken < 30, "an import of torch and of a model is allowed for, a hang is not"


class Canary:
    """A pickle that leaves a mark when it is loaded."""

    def __init__(self, form: str, mark: Path) -> None:
        self.form, self.mark = form, mark

    def __reduce__(self) -> Any:
        made = f"open({str(self.mark)!r}, 'w').close()"
        return {
            "eval": (eval, (f"__import__('builtins').exec({made!r})",)),
            "exec": (exec, (made,)),
            "system": (os.system, (f"touch '{self.mark}'",)),
            "open": (open, (str(self.mark), "w")),
        }[self.form]


def torch_zip(data: bytes) -> bytes:
    """The zip form of `torch.save` around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3")
        file.writestr("archive/byteorder", "little")
    return out.getvalue()


PLACES: dict[str, tuple[str, list[str]]] = {
    "checkpoint": ("sam.pth", ["segment", "toy.png", "--class", "dog", "--box", "20,20,60,60", "--sam-checkpoint", "sam.pth"]),
    "checkpoint of another name": ("sam.safetensors", ["segment", "toy.png", "--class", "dog", "--box", "20,20,60,60", "--sam-checkpoint", "sam.safetensors"]),
    "photo": ("evil.png", ["segment", "evil.png", "--class", "dog"]),
    "mask": ("evil.png", ["segment", "toy.png", "--class", "dog", "--mask", "evil.png"]),
    "artifact": ("artifacts/mask/rex/v001.safetensors", ["init-embedding", "mask/rex"]),
    "jobs": ("jobs.toml", ["run", "jobs.toml"]),
    "layout": ("layout.toml", ["compose", "<rex>", "--layout", "layout.toml"]),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["eval", "exec", "system", "open"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["zip", "plain"])
def test_f9_pickles_do_not_run(
    place: str, form: str, wrapped: bool, cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the environment asks torch to load whatever it is given."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    name, args = PLACES[place]
    mark = project.parent / "ran"
    data = pickle.dumps(Canary(form, mark))
    (project / "toy.png").write_bytes(picture())
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_bytes(torch_zip(data) if wrapped else data)
    done = cli(*args)
    assert done.code in (3, 5), done.err
    assert "Traceback" not in done.err
    assert not mark.exists(), "it ran"


def test_f9_the_canary_sings(project: Path) -> None:
    """Negative control: loaded as pickles are, each of them does run."""
    for form in ("eval", "exec", "system", "open"):
        mark = project.parent / "ran"
        pickle.loads(pickle.dumps(Canary(form, mark)))
        assert mark.exists()
        mark.unlink()


WORDS = ("CANARY-ALICE", "CANARY-COMMENT", "CANARY-MAKER", "CANARY-XMP", "52.5163")


def telling(folder: Path, form: str) -> Path:
    """A photo that says who took it, and where."""
    exif = Image.Exif()
    exif[0x010F], exif[0x013B], exif[0x9286] = "CANARY-MAKER", "CANARY-ALICE", "CANARY-COMMENT"
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (52.0, 30.0, 58.7)
    path = folder / f"CANARY-ALICE.{form}"
    image = Image.open(io.BytesIO(picture(size=(128, 128))))
    texts = PngImagePlugin.PngInfo()
    for key, word in zip(
        ("Author", "Comment", "XML:com.adobe.xmp", "GPS"), (WORDS[0], WORDS[1], WORDS[3], WORDS[4]), strict=True
    ):
        texts.add_text(key, word)
    options: dict[str, Any] = (
        {"pnginfo": texts} if form == "png" else {"comment": b"CANARY-COMMENT", "quality": 95, "xmp": b"CANARY-XMP"}
    )
    image.save(path, exif=exif, **options)
    assert b"CANARY-ALICE" in path.read_bytes() and b"CANARY-COMMENT" in path.read_bytes()
    return path


@pytest.mark.parametrize("form", ["jpg", "png"])
def test_f19_f21_offline_and_nothing_of_the_owner(
    form: str, cli: Cli, base: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole path, no socket to be had; afterwards nothing of the photo's metadata, name or place is in any file."""

    def blocked(*_args: Any, **_named: Any) -> Any:
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, blocked)
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    outside = tmp_path / "owner"
    outside.mkdir()
    settings = (
        "init-embedding.steps=2",
        "train.num_augmentations=2",
        "train.max_steps=2",
        "train.rank=1",
        "prior.num_class_images=2",
        "prior.num_predictions=2",
        "train.num_teacher_samples=2",
    )
    fast = [word for setting in settings for word in ("--set", setting)]
    line = ["train", telling(outside, form), "--class", "dog", "--name", "rex", "--box", "35,35,75,75"]
    done = cli(*line, *fast, *quick_runs.NO_GATE, "--set", "segment.segmenter=grabcut", "--base", base)
    assert done.code == 0, done.err
    assert cli("generate", "<rex> at night", "-n", 1, "--steps", 1, "--base", base).code == 0
    assert cli("compose", "<rex>", "-n", 1, "--steps", 1, "--base", base).code == 0
    assert cli("export", "rex", "--format", "kohya", "--out", "out").code == 0
    assert cli("verify").code == 0
    files = [p for p in project.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} >= {".png", ".safetensors"}
    told = [*WORDS, str(outside), str(Path.home()), "CANARY"]
    for path in files:
        data = path.read_bytes()
        assert not [word for word in told if word.encode() in data or word.encode("utf-16-le") in data], path
        assert not [word for word in told if word in path.name]
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert not image.getexif() and not [w for w in told if w in repr(image.info)]


def test_f19_missing_weights_name_what_brings_them(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: pytest.fail("a name was looked up"))
    done = cli("generate", "a dog", "--base", "sd15")
    assert done.code == 7
    assert "`objtune fetch --base sd15`" in done.err


def test_publish_refuses_no_record_of_a_hostile_word(project: Path) -> None:
    """A class word with quotes and escapes is data: it comes back as it was."""
    word = 'd"o\\g\x1b[31m\u202e'
    ref = Store.at(project).create(Record("mask", "rex", {"rex": word}, {}, {}, {}), {})

    assert Store.at(project).verify(ref)[0].objects == {"rex": word}
