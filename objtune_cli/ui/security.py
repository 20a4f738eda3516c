"""Who may use the page: requests with the server's token, from the page itself."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from objtune_cli.images import photo

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PARAMETER = "token"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY = photo.MAX_BYTES + (1 << 20)
"""Largest request body, bytes: a photo, and the form around it."""
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Headers of every response. Vue compiles templates in the browser, which needs `unsafe-eval`; texts are never templates."""
CLOSE_POLICY = 1008
"""Code of a websocket that is closed because of a rule of the server."""


class Guard:
    """An ASGI application that lets only the page's own requests through to another one.

    The first request has the token in its address and gets a cookie; later ones have the cookie. A web page of another
    origin has neither: the cookie is `SameSite=Strict`, `Origin` has to be this server, and so has `Host`, so that a
    name of the attacker that resolves to this machine does not help.
    """

    def __init__(self, app: Application, token: str, hosts: Iterable[str] = ()) -> None:
        """`hosts`: Names of this server besides those of the loopback interface."""
        self.app, self.token = app, token
        self.hosts = {*LOOPBACK, *hosts}
        self.cookie = f"objtune-{hashlib.sha256(token.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, reason = self._find_problem(scope, headers)
        if reason:
            return await _refuse(scope, send, status, reason)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["type"] == "http" and scope["method"] == "GET" and self._is_token(dict(query).get(PARAMETER, "")):
            return await self._exchange(scope, send, query)
        if not self._is_token(_read_cookies(headers).get(self.cookie, "")):
            return await _refuse(scope, send, 403, "open the address that `objtune ui` printed")
        return await self.app(scope, receive, _with_headers(send))

    def _find_problem(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str]:
        """Status and reason of a request that is refused whatever its token is; an empty reason for others."""
        host = headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name not in self.hosts:
            return 403, "this server does not have that name"
        origin = headers.get("origin", "")
        if (origin or scope["type"] == "websocket") and urlsplit(origin).netloc != host:
            return 403, "the request comes from another page"
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            length = headers.get("content-length", "")
            if not length.isdecimal():
                return 411, "the request does not say its length"
            if int(length) > MAX_BODY:
                return 413, f"at most {photo.MAX_BYTES >> 20} MiB are read"
        return 0, ""

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())

    async def _exchange(self, scope: Scope, send: Send, query: list[tuple[str, str]]) -> None:
        """Redirect to the same address without the token, and set the cookie."""
        rest = urlencode([(key, value) for key, value in query if key != PARAMETER])
        path = quote("/" + scope["path"].lstrip("/"))  # two slashes would begin another server's name
        location = path + (f"?{rest}" if rest else "")
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        await _respond(send, 303, "", {"location": location, "set-cookie": cookie, "cache-control": "no-store"})


def _read_cookies(headers: dict[str, str]) -> dict[str, str]:
    try:
        return {name: each.value for name, each in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": CLOSE_POLICY, "reason": reason})
    else:
        await _respond(send, status, f"{reason}\n", {})


async def _respond(send: Send, status: int, text: str, headers: dict[str, str]) -> None:
    fields = {"content-type": "text/plain; charset=utf-8", **HEADERS, **headers}
    lines = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": text.encode()})


def _with_headers(send: Send) -> Send:
    """Add `HEADERS` to a response."""

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await send(message)

    return send_with_headers
