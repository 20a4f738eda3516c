"""`fetch`: against a hub on this machine, what is brought, what is not, and each way in which it can fail."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import pytest
import torch

from objtune_cli.interchange import hub as hub_module
from objtune_cli.models import hub_cache, needed_models, registry, segmenter_lookup
from objtune_cli.models.families import FAMILIES
from tests.support.json_schema import check

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]

SD15 = hub_cache.HUB_REPOSITORIES["sd15"]
COMMIT = hub_cache.REVISIONS[SD15]
(CLIP,) = next(family.clip_models for family in FAMILIES if "sd15" in family.hub)
SAM = segmenter_lookup.RECOMMENDED["sam2"]
DECOYS = {
    "README.md": b"a page", "v1-5-pruned.ckpt": b"a pickle", "unet/diffusion_pytorch_model.bin": b"a pickle",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"again", "unet/diffusion_pytorch_model.non_ema.safetensors": b"again",
    "safety_checker/model.safetensors": b"not opened",
}  # fmt: skip


class Hub:
    """A server with the parts of the hub's interface that a download asks for."""

    def __init__(self, folder: Path) -> None:
        self.files = {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        } | DECOYS
        self.repositories, self.gated = {SD15}, set[str]()
        self.others: dict[str, dict[str, bytes]] = {}
        self.damaged: str | None = None
        self.asked: list[str] = []
        self.sent: list[str] = []
        self.cut: str | None = None
        self.pause = 0.0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.split("?")[0].strip("/").removeprefix("api/models/")
        self.asked.append(path)
        repository = "/".join(path.split("/")[:2])
        if repository in self.gated:
            return send(request, 403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repository not in self.repositories | set(self.others):
            return send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = self.others.get(repository, self.files)
        verb, _, rest = path.removeprefix(repository + "/").partition("/")
        if verb == "revision":
            siblings = [
                {"rfilename": k, "size": len(v), "lfs": {"size": len(v), "sha256": sha256(v), "pointerSize": 130}}
                for k, v in files.items()
                if k.endswith(".safetensors")
            ]
            return send(request, 200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
        if verb == "tree":
            entries = [
                {"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
                for k, v in files.items()
            ]
            return send(request, 200, json.dumps(entries).encode())
        name = rest.partition("/")[2]
        data = files[name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if body:
            self.sent.append(name)
            time.sleep(self.pause)
            data = data[::-1] if name == self.damaged else data
        return send(request, 200, data, headers, body=body, cut=name == self.cut)

    def add_companions(self) -> None:
        """A CLIP, a segmenter and the models of `evaluate`, as far as `fetch` looks at them."""
        self.others = {
            name: {"config.json": b"{}", "model.safetensors": name.encode(), "README.md": b"a page"}
            for name in (CLIP, SAM, *needed_models.METRIC_MODELS.values())
        }
        self.others[SAM]["processor_config.json"] = b"{}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    data: bytes,
    headers: dict[str, str] | None = None,
    *,
    body: bool = True,
    cut: bool = False,
) -> None:
    request.send_response(status)
    for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
        request.send_header(key, value)
    request.end_headers()
    if body:
        request.wfile.write(data[: len(data) // 2] if cut else data)


@pytest.fixture
def hub(base: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(base)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield hub
    hub.close()


def objtune(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its settings when it is loaded."""
    command = [sys.executable, "-m", "objtune_cli", *args]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith(("error:", "hint:"))]


def test_what_is_needed_is_brought_once(hub: Hub, base: Path) -> None:
    done = objtune("fetch", "--base-only", "--base", "sd15", "--json", "--events", "events.ndjson")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check(document, "output", "fetch")
    events = [json.loads(line) for line in Path("events.ndjson").read_text().splitlines()]
    for event in events:
        check(event, "event")
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == sorted(steps) and steps[-1] == document["bytes"]
    folder = Path(document["folder"])
    brought = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert brought == {k: v for k, v in hub.files.items() if k not in DECOYS}
    assert (document["revision"], document["files"], document["reused"]) == (COMMIT, len(brought), False)
    assert document["bytes"] == sum(map(len, brought.values()))
    assert f"{SD15}/tree/{COMMIT}" in hub.asked
    assert [line for line in done.stderr.splitlines() if line.startswith("fetch ")][-1].startswith(
        f"fetch {document['bytes']}/"
    )
    asked = len(hub.asked)
    again = objtune("fetch", "--base-only", "--base", "sd15")
    assert (again.returncode, again.stdout) == (0, f"{folder}\n")
    assert objtune("bases").stdout.splitlines()[1].split("\t")[:2] == ["sd15", "here"]
    drawn = objtune("generate", "a dog", "-n", "1", "--steps", "1", "--base", "sd15", "--quiet")
    assert (drawn.returncode, drawn.stdout) == (0, "artifacts/scene/scene/v001/001.png\n")
    assert len(hub.asked) == asked, "what is here is not asked for"


def test_half_a_copy_is_none_and_only_the_rest_is_brought(hub: Hub) -> None:
    hub.cut = "vae/diffusion_pytorch_model.safetensors"
    done = objtune("fetch", "--base-only", "--base", "sd15")
    assert (done.returncode, done.stdout) == (7, "")
    assert "cannot be fetched from" in said(done)[0]
    lost = objtune("generate", "a dog", "--base", "sd15")
    assert lost.returncode == 7
    assert "`objtune fetch --base sd15` downloads them" in lost.stderr
    hub.cut = None
    document = json.loads(objtune("fetch", "--base-only", "--base", "sd15", "--json").stdout)
    assert (document["files"], document["reused"]) == (1, False)


def test_one_command_brings_all_that_photographs_need(hub: Hub, base: Path) -> None:
    """The base has a CLIP of its own in tests, which is taken away here."""
    hub.files = {name: data for name, data in hub.files.items() if not name.startswith("clip/")}
    hub.add_companions()
    done = objtune("fetch", "--base", "sd15", "--json", "--events", "events.ndjson")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    check(document, "output", "fetch")
    assert document["repository"] == SD15
    assert [(each["repository"], each["reused"]) for each in document["others"]] == [(CLIP, False), (SAM, False)]
    assert sorted(p.name for p in Path(document["others"][1]["folder"]).iterdir()) == [
        "config.json",
        "model.safetensors",
        "processor_config.json",
    ]
    notes = [line for line in done.stderr.splitlines() if " files, " in line or line.startswith("altogether")]
    assert [line.split(":")[0].split(" ")[0] for line in notes] == [SD15, CLIP, SAM, "altogether"]
    steps = [json.loads(line) for line in Path("events.ndjson").read_text().splitlines()]
    steps = [event["step"] for event in steps if event["event"] == "step"]
    total = document["bytes"] + sum(each["bytes"] for each in document["others"])
    assert steps == sorted(steps) and steps[-1] == total
    asked = len(hub.asked)
    again = json.loads(objtune("fetch", "--base", "sd15", "--json").stdout)
    assert all(each["reused"] for each in (again, *again["others"])) and len(hub.asked) == asked
    more = json.loads(objtune("fetch", "--base", "sd15", "--with-metrics", "--json").stdout)
    assert [each["repository"] for each in more["others"] if not each["reused"]] == list(
        needed_models.METRIC_MODELS.values()
    )


def test_a_hub_id_brings_what_its_family_needs(hub: Hub) -> None:
    hub.add_companions()
    hub.repositories.add("someone/model")
    document = json.loads(objtune("fetch", "--base", "someone/model", "--json").stdout)
    assert [(each["repository"], each["reused"]) for each in document["others"]] == [(CLIP, True), (SAM, False)]
    assert document["others"][0]["folder"].endswith("clip"), "its own CLIP is there already"


def test_a_companion_that_cannot_be_opened_is_left_out_with_a_note(hub: Hub) -> None:
    hub.files = {name: data for name, data in hub.files.items() if not name.startswith("clip/")}
    hub.add_companions()
    del hub.others[CLIP]["model.safetensors"]
    done = objtune("fetch", "--base", "sd15", "--json")
    assert done.returncode == 0
    assert [each["repository"] for each in json.loads(done.stdout)["others"]] == [SAM]
    assert f"{CLIP} contains no transformers model; it is skipped" in done.stderr


def test_weights_in_several_files_are_brought_and_opened(hub: Hub, base: Path) -> None:
    """As the second CLIP of SDXL has them; a cache without one of them is not complete."""
    shards = {f"model-0000{n}-of-00002.safetensors": name.encode() for n, name in ((1, "first"), (2, "second"))}
    index = {"weight_map": dict(zip(("a", "b"), shards, strict=True))}
    others = {"config.json": b"{}", "pytorch_model-00001-of-00002.bin": b"a pickle", "pytorch_model.bin": b"a pickle"}
    hub.others = {CLIP: {**others, **shards, "model.safetensors.index.json": json.dumps(index).encode()}}
    done = objtune("fetch", "--model", CLIP, "--json")
    assert done.returncode == 0, done.stderr
    folder = Path(json.loads(done.stdout)["folder"])
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", *shards, "model.safetensors.index.json"]
    assert json.loads(objtune("fetch", "--model", CLIP, "--json").stdout)["reused"]
    (folder / "model-00002-of-00002.safetensors").unlink()
    again = json.loads(objtune("fetch", "--model", CLIP, "--json").stdout)
    assert not again["reused"] and (folder / "model-00002-of-00002.safetensors").read_bytes() == b"second"
    hub.others[CLIP]["model.safetensors"] = b"whole"
    assert set(hub_module._check_feature_model_files(CLIP, [*hub.others[CLIP]])) == {
        *shards,
        "model.safetensors.index.json",
        "pytorch_model.bin",
    }


def test_a_clip_in_several_files_opens_as_one(base: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    from objtune_cli.models import clip, loading

    model = loading.load(base, torch.device("cpu"), torch.float32)
    whole = clip.load(base / "clip", model)
    CLIPModel.from_pretrained(base / "clip").save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    parts = clip.load(tmp_path / "parts", model)
    weights = parts.clip.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in whole.clip.state_dict().items())


def test_a_file_that_arrives_damaged_is_not_kept(hub: Hub) -> None:
    hub.damaged = "vae/diffusion_pytorch_model.safetensors"
    done = objtune("fetch", "--base-only", "--base", "sd15")
    assert done.returncode == 5
    assert said(done)[0].startswith(f"error: {hub.damaged} of {SD15} was damaged by the download")
    hub.damaged = None
    document = json.loads(objtune("fetch", "--base-only", "--base", "sd15", "--json").stdout)
    assert (document["files"], document["reused"]) == (1, False)


def test_what_cannot_be_combined_is_2(hub: Hub) -> None:
    for options in (["--base-only", "--with-metrics"], ["--model", DINO, "--base-only"]):
        assert objtune("fetch", *options).returncode == 2


DINO = "facebook/dino-vits16"


def test_a_model_that_measures_is_brought_with_the_weights_of_one_form(hub: Hub, base: Path) -> None:
    """Safetensors where the repository has them, else the pickle, which is opened as tensors alone."""
    files = {
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "README.md": b"a page",
        "tf_model.h5": b"again",
        "pytorch_model.bin": b"a pickle",
    }
    hub.repositories, hub.files = {DINO, "some/clip", "some/none"}, files | {"model.safetensors": b"weights"}
    done = objtune("fetch", "--model", DINO, "--json")
    document = json.loads(done.stdout)
    check(document, "output", "fetch")
    assert sorted(p.name for p in Path(document["folder"]).iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (document["repository"], document["files"], document["bytes"]) == (DINO, 3, len(b"{}{}weights"))
    again = json.loads(objtune("fetch", "--model", DINO, "--json").stdout)
    assert (again["folder"], again["reused"]) == (document["folder"], True)
    hub.files = files
    folder = Path(objtune("fetch", "--model", "some/clip").stdout.strip())
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "preprocessor_config.json", "pytorch_model.bin"]
    del hub.files["config.json"]
    assert objtune("fetch", "--model", "some/none").returncode == 3
    assert [objtune("fetch", "--model", *given).returncode for given in (["dino"], [DINO, "--base", "sd15"])] == [2, 2]


def test_a_hub_id_is_brought_as_its_main_is(hub: Hub) -> None:
    hub.repositories.add("someone/model")
    assert objtune("fetch", "--base-only", "--base", "someone/model").returncode == 0
    assert "someone/model/revision/main" in hub.asked
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from objtune_cli.models import registry; print(registry.resolve('someone/model').folder.name)",
        ],
        capture_output=True,
        text=True,
    )
    assert found.stdout == f"{COMMIT}\n"


def test_a_repository_without_safetensors_is_3(hub: Hub) -> None:
    for name in [name for name in hub.files if name.startswith("unet/") and name.endswith(".safetensors")]:
        del hub.files[name]
    done = objtune("fetch", "--base-only", "--base", "sd15")
    assert done.returncode == 3
    assert said(done)[0] == "error: sd15 contains no diffusers model in safetensors"


def test_what_the_hub_refuses_is_7(hub: Hub) -> None:
    hub.gated.add("some/gated")
    for name, words in {
        "some/gated": "some/gated requires an account",
        "some/none": f"{hub.url} has no some/none",
    }.items():
        done = objtune("fetch", "--base", name)
        assert done.returncode == 7
        assert said(done)[0] == f"error: {words}"
        assert said(done)[1].startswith("hint: ")


def test_no_connection_is_7_in_one_line(hub: Hub) -> None:
    hub.close()
    document = json.loads(objtune("fetch", "--base-only", "--base", "sd15", "--json").stdout)
    assert document["error"]["code"] == 7
    assert document["error"]["message"] == f"{SD15} cannot be fetched from {hub.url}"
    done = objtune("fetch", "--base-only", "--base", "sd15", HF_HUB_OFFLINE="1")
    assert (done.returncode, said(done)) == (
        7,
        [
            f"error: {SD15} cannot be fetched: HF_HUB_OFFLINE is set",
            "hint: unset HF_HUB_OFFLINE and run the same command",
        ],
    )


def test_what_needs_no_connection(hub: Hub, base: Path) -> None:
    assert objtune("fetch").stdout == f"{registry.TOYBOX_FOLDER}\n"
    assert objtune("fetch", "--base", str(base)).stdout == f"{base}\n"
    assert objtune("fetch", "--base", "nowhere").returncode == 2
    assert hub.asked == []


def test_a_disk_without_room_is_7_before_anything_is_brought(hub: Hub) -> None:
    code = "import shutil, sys; shutil.disk_usage = lambda _: type('U', (), {'free': 1000})\nfrom objtune_cli.cli.app import run\nsys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "fetch", "--base-only", "--base", "sd15"],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7
    assert "has 0.00 GB free" in said(done)[0]
    assert hub.sent == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_soon(number: signal.Signals, hub: Hub) -> None:
    hub.pause = 1.0
    command = [sys.executable, "-m", "objtune_cli", "fetch", "--base-only", "--base", "sd15"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not hub.sent:
        time.sleep(0.05)
    running.send_signal(number)
    started = time.monotonic()
    assert running.wait(timeout=30) == 128 + number
    assert time.monotonic() - started < 10
    hub.pause = 0.0
    assert objtune("fetch", "--base-only", "--base", "sd15").returncode == 0
