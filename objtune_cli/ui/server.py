"""The server of the page: one application for all screens, behind the guard, on the loopback interface."""

import contextlib
import functools
import mimetypes
import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from objtune_cli.errors import ObjtuneError, ResourceError
from objtune_cli.ui.security import PARAMETER, Guard

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    from objtune_cli.ui.workspace import Workspace

PORT = 8765
"""Port that is tried first; if it is taken, the system chooses another."""
CLOSE_SECONDS = 2
"""How long an ending server waits for open connections."""
RECONNECT_SECONDS = 120.0
"""How long a page in a sleeping browser keeps its content."""


@dataclass(slots=True)
class Current:
    """The workspace that the screens show: NiceGUI has one application a process."""

    workspace: "Workspace | None" = None

    def get(self) -> "Workspace":
        assert self.workspace is not None, "no server runs"
        return self.workspace


CURRENT = Current()


def is_installed() -> bool:
    """Whether the extra `ui` is installed; nothing is imported."""
    from importlib.util import find_spec

    return find_spec("nicegui") is not None


def require_installed() -> None:
    """Refuse to go on without the extra.

    Raises:
        ResourceError: It is not installed.
    """
    if not is_installed():
        raise ResourceError("the page needs other packages", "`pip install 'objtune[ui]'`")


def build(workspace: "Workspace", token: str, hosts: tuple[str, ...] = ()) -> Guard:
    """The guarded application that shows a workspace.

    Raises:
        ResourceError: The extra `ui` is not installed.
    """
    require_installed()
    CURRENT.workspace = workspace
    return Guard(_application(), token, hosts)


@functools.cache
def _application() -> "FastAPI":
    """The application of all screens."""
    os.environ.setdefault("NICEGUI_STORAGE_PATH", str(Path(tempfile.gettempdir()) / "objtune-ui-unused"))
    from fastapi import FastAPI
    from nicegui import app, ui

    from objtune_cli.ui import compose, draw, find, learn, library

    screens: tuple[Callable[[Callable[[], Workspace]], None], ...] = (
        find.register, learn.register, draw.register, compose.register, library.register,
    )  # fmt: skip
    for register in screens:
        register(CURRENT.get)
    style = (resources.files("objtune_cli.ui") / "static" / "style.css").read_text(encoding="utf-8")
    ui.add_css(style, shared=True)
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _add_files(api)
    icon = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#1d4ed8"/><circle cx="16" cy="16" r="7" fill="none" stroke="#fff" stroke-width="4"/></svg>'
    ui.run_with(
        api,
        title="objtune",
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        favicon=icon,
        reconnect_timeout=RECONNECT_SECONDS,
    )
    app.on_exception(_report_exception)
    return api


def _report_exception(error: Exception) -> None:
    """A refusal of the library is for the user; anything else is a bug, and NiceGUI logs it."""
    if isinstance(error, ObjtuneError):
        from objtune_cli.ui.parts import explain

        with contextlib.suppress(RuntimeError):  # the page has been closed
            explain(error)


def _add_files(api: "FastAPI") -> None:
    """Addresses of pictures and exported files; every one names an artifact, a photo or a task, never a path."""
    from fastapi import HTTPException
    from fastapi.responses import FileResponse, Response

    from objtune_cli.store.refs import Ref

    def respond(find: Callable[[], Path]) -> "FileResponse":
        try:
            path = find()
        except ObjtuneError as error:
            raise HTTPException(404, error.message) from None
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return FileResponse(path, media_type=kind, headers={"cache-control": "no-cache"})

    @api.get("/files/artifact/{kind}/{name}/{version}/{image}")
    def artifact_image(kind: str, name: str, version: int, image: str) -> FileResponse:
        from objtune_cli.store import refs

        def find() -> Path:
            ref = refs.parse(f"{kind}/{name}@{version}")
            return CURRENT.get().find_image(Ref(ref.kind, ref.name, version), image)

        return respond(find)

    @api.get("/files/photo/{name}")
    def photo_image(name: str) -> Response:
        from objtune_cli.ui import photo_images

        try:
            return Response(photo_images.encode(CURRENT.get(), name), media_type="image/jpeg")
        except ObjtuneError as error:
            raise HTTPException(404, error.message) from None

    @api.get("/files/task/{number}/{image}")
    def task_image(number: int, image: str) -> FileResponse:
        task = CURRENT.get().queue.find(number)
        path = next((path for path in (task.live_images() if task else ()) if path.name == image), None)
        if path is None:
            raise HTTPException(404, "there are no samples")
        return respond(lambda: path)

    @api.get("/files/export/{folder}/{name}")
    def exported_file(folder: str, name: str) -> FileResponse:
        from objtune_cli.ui import library

        return respond(lambda: library.find_export(CURRENT.get(), folder, name))


@dataclass(frozen=True, slots=True)
class Server:
    """A server with its socket open.

    Attributes:
        address: With the token; whoever has it may use the page.
    """

    address: str
    _server: Any
    _socket: Any

    def run(self) -> None:
        """Serve until a signal, or `stop`."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `run` from another thread."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close the socket of a server that has not run."""
        self._socket.close()


def open_server(workspace: "Workspace", host: str, port: int | None, photos: tuple[str, ...] = ()) -> Server:
    """Open the socket of a server.

    Args:
        host: Address of the interface. port: None: `PORT`, or another one if it is taken.
        photos: Names of the photos that the first screen opens.

    Raises:
        ResourceError: The port is taken, or the extra is not installed.
    """
    token = secrets.token_urlsafe(24)
    guard = build(workspace, token, (f"[{host}]" if ":" in host else host,))
    import uvicorn

    def configure(number: int) -> tuple[Any, Any]:
        config = uvicorn.Config(
            guard,
            host=host,
            port=number,
            log_level="critical",
            access_log=False,
            server_header=False,
            ws_max_size=1 << 22,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
        socket = config.bind_socket()
        socket.listen(config.backlog)  # from here on no other server gets the port
        return config, socket

    try:
        config, socket = configure(PORT if port is None else port)
    except (SystemExit, OSError):
        if port is not None:
            raise ResourceError(f"port {port} of {host} is not free", "give another `--port`, or none") from None
        config, socket = configure(0)
    query = urlencode([("photo", name) for name in photos] + [(PARAMETER, token)])
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{socket.getsockname()[1]}/?{query}"
    return Server(address, uvicorn.Server(config), socket)
