"""Who may use the page: other origins, other names and requests without the token are refused."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.store.artifacts import Record
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.ui.security import MAX_BODY, Guard
from objtune_cli.ui.workspace import name_opened
from tests.support.hostile_names import HOSTILE, MARKUP, find_active

pytest.importorskip("nicegui", reason="the extra ui is not installed")

TOKEN = "a-token-of-this-test"
HOST = "127.0.0.1:8765"
ATTACK = "\x1b[31m\u202e</script><img src=x onerror=alert(1)>{{7*7}}`${alert(1)}`&\"'"


async def show_method(scope: Any, receive: Any, send: Any) -> None:
    """An application behind the guard."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["method"].encode()})


@pytest.fixture
def client() -> Any:
    from starlette.testclient import TestClient

    return TestClient(Guard(show_method, TOKEN), base_url=f"http://{HOST}", follow_redirects=False)


def enter(client: Any) -> None:
    """Exchange the token for the cookie."""
    assert client.get(f"/?token={TOKEN}").status_code == 303


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address(client: Any) -> None:
    assert client.get("/").status_code == 403
    assert client.get("/?token=wrong").status_code == 403
    done = client.get(f"/learn?photo=a%20b.jpg&token={TOKEN}")
    assert (done.status_code, done.headers["location"]) == (303, "/learn?photo=a+b.jpg")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(done.headers["set-cookie"].split("; "))
    again = client.get("/learn")
    assert (again.status_code, again.text) == (200, "GET")
    assert "frame-ancestors 'none'" in again.headers["content-security-policy"]
    assert again.headers["referrer-policy"] == "no-referrer"


def test_a_redirect_stays_on_this_server(client: Any) -> None:
    for path in ("//evil.example/", "/\\evil.example", "//evil.example:80/x"):
        location = client.get(f"http://{HOST}{path}", params={"token": TOKEN}).headers["location"]
        assert location.startswith("/") and not location.startswith(("//", "/\\")), location


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "https://localhost:1", "null", "x"])
def test_other_origins_are_refused_with_the_cookie(client: Any, origin: str) -> None:
    enter(client)
    for method in ("GET", "POST"):
        assert client.request(method, "/", headers={"origin": origin}).status_code == 403
    assert client.post("/", headers={"origin": f"http://{HOST}"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "127.0.0.1@evil", ""])
def test_other_names_of_this_machine_are_refused(client: Any, host: str) -> None:
    """A page of the attacker's name, which resolves to 127.0.0.1, has neither cookie nor the right name."""
    enter(client)
    assert client.get("/", headers={"host": host}).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"host": host}).status_code == 403
    assert client.get("/", headers={"host": "localhost:9000"}).status_code == 200  # a forwarded port


def test_a_websocket_needs_cookie_and_origin(client: Any) -> None:
    from starlette.websockets import WebSocketDisconnect

    def connects(**headers: str) -> bool:
        try:
            with client.websocket_connect(f"ws://{HOST}/", headers=headers):
                return True
        except WebSocketDisconnect as refused:
            assert refused.code == 1008
            return False

    assert not connects(origin=f"http://{HOST}")
    enter(client)
    assert not connects()
    assert not connects(origin="http://evil.example")
    assert connects(origin=f"http://{HOST}")


def test_bodies_have_a_length_and_a_limit(client: Any) -> None:
    enter(client)
    assert client.post("/", content=iter([b"x"])).status_code == 411
    assert client.post("/", headers={"content-length": str(MAX_BODY + 1)}).status_code == 413


def test_broken_cookies_are_no_cookies(client: Any) -> None:
    for cookie in ("\x01=\x02; a", "=" * 50, f"objtune-x={TOKEN}", ";;;"):
        assert client.get("/", headers={"cookie": cookie.encode("latin-1")}).status_code == 403


# The screens behind it.


@contextlib.contextmanager
def open_page(folder: Path) -> Iterator[Any]:
    """A client with the cookie, of the screens of an empty project; `workspace` is what they show."""
    from starlette.testclient import TestClient

    from objtune_cli import api
    from objtune_cli.ui import server
    from objtune_cli.ui.tasks import TaskQueue
    from objtune_cli.ui.workspace import Workspace

    queue = TaskQueue(folder / "tasks")
    workspace = Workspace(api.project(folder / "project"), folder / "project", queue)
    with TestClient(server.build(workspace, TOKEN), base_url=f"http://{HOST}") as client:
        client.workspace = workspace
        client.get(f"/?token={TOKEN}")
        yield client
    queue.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_page(tmp_path_factory.mktemp("page")) as client:
        yield client


@pytest.fixture
def own_page(tmp_path: Path) -> Iterator[Any]:
    """The page of one test alone."""
    with open_page(tmp_path / "page") as client:
        yield client


def test_every_screen_opens_and_loads_nothing_from_elsewhere(page: Any) -> None:
    for address in ("/", "/learn", "/draw", "/compose", "/library"):
        shown = page.get(address)
        assert shown.status_code == 200 and "objtune" in shown.text
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//(?!127\.0\.0\.1)""", shown.text)


def test_hostile_words_are_text(page: Any) -> None:
    """Values of an address, class words and prompts never become elements, templates or commands."""
    adapter = Record("adapter", "rex", {"rex": ATTACK[5:]}, {}, {}, {})
    scene = Record("scene", "rex", {"rex": "dog"}, {}, {"prompt": ATTACK, "seed": 0, "num_images": 1}, {})
    for record in (adapter, scene):
        page.workspace.store.create(record, {})
    for address in ("/learn", "/draw", "/library", "/", "/compose"):
        text = page.get(address, params={"class": ATTACK, "name": ATTACK, "photo": ATTACK, "object": ATTACK}).text
        assert "</script><img" not in text and "<img src=x" not in text, address
        assert "\u202e" not in text and "\x1b" not in text, address
        assert "`${alert" not in text, address


def test_hostile_names_and_prompts_are_text_on_every_screen(own_page: Any, dog_photo: Path, tmp_path: Path) -> None:
    """As names of photos of the command line and of uploads, as prompts, class words, and in a stopped run."""
    workspace, data = own_page.workspace, dog_photo.read_bytes()
    names = [name.replace("/", "|") for name in (*HOSTILE, *MARKUP)]
    prompts = [name.encode("utf-8", "replace").decode() for name in names]
    for name, prompt in zip(names, prompts, strict=True):
        (tmp_path / name).write_bytes(data)
        uploaded = workspace.add_photo(name, data)
        assert uploaded.isascii() and "/" not in uploaded and uploaded == uploaded.strip()
        config = {"prompt": prompt, "seed": 0, "num_images": 1, "negative_prompt": prompt}
        workspace.store.create(Record("scene", "rex", {"rex": "dog"}, {}, config, {}), {})
    workspace.opened.update(name_opened([tmp_path / name for name in names]))
    command = {"words": ["train", *prompts], "folder": str(tmp_path)}
    run = Checkpoint(workspace.store, "a" * 64)
    run.about = {"runs": {"rex": {"step": 1, "total": 2, "inputs": ""}}, "config": {}, "base": {}, "computed": ""}
    run.about["command"] = command
    run.save({})
    queries = [{key: text for key in ("class", "name", "photo", "mask", "object")} for text in prompts]
    requests = [("/draw", {}), ("/compose", {}), ("/library", {}), *(("/learn", each) for each in queries)]
    for address, query in [("/", {}), ("/draw", {"scene": "scene/rex@4"}), *requests]:
        shown = own_page.get(address, params=query)
        assert (shown.status_code, find_active(shown.text)) == (200, []), (address, query)


@pytest.mark.parametrize(
    "address",
    [
        "/files/photo/..%2F..%2Fobjtune.toml",
        "/files/photo/%2Fetc%2Fpasswd",
        "/files/photo/.hidden.png",
        "/files/photo/none.png",
        "/files/artifact/adapter/..%2F..%2Fx/1/preview.png",
        "/files/artifact/adapter/rex/1/..%2F..%2F..%2Fobjtune.toml",
        "/files/artifact/nothing/rex/1/preview.png",
        "/files/task/1/samples.png",
        "/files/export/..%2F/objtune.toml",
        "/files/export/../../objtune.toml",
        "/files/export/%2e%2e/objtune.toml",
        "/files/export/rex/%2Fetc%2Fpasswd",
    ],
)
def test_no_address_leads_out_of_the_project(page: Any, address: str) -> None:
    (page.workspace.folder / "secret.txt").write_text("secret")
    assert page.get(address).status_code == 404


def test_links_out_of_the_project_are_not_followed(page: Any) -> None:
    workspace = page.workspace
    for folder, name in ((workspace.photos, "photo.png"), (workspace.folder / "exports" / "rex", "lora.safetensors")):
        folder.mkdir(parents=True)
        (folder / name).symlink_to("/etc/passwd")
    assert page.get("/files/photo/photo.png").status_code == 404
    assert page.get("/files/export/rex/lora.safetensors").status_code == 404
    assert workspace.list_photos() == []
