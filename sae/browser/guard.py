"""Checks of every request before it reaches a route, and the headers of every answer.

The page is served on 127.0.0.1 only, but other pages in the same browser can send requests there. So the Host header
must name this machine (against DNS rebinding), a random token in the printed address is exchanged for a cookie, a
request that changes something must come from the page's origin, and bodies must be small.
"""

from __future__ import annotations

import hashlib
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ["127.0.0.1", "localhost"]
LARGEST_BODY = 64 * 1024
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
CACHE = "no-store"
"""Unless a route says that its answer never changes."""


class Guard:
    """ASGI middleware: token, origin, size of the body, and the headers of every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token
        # cookies are shared by all ports: two servers on one machine must not overwrite each other's
        self.cookie = f"sparsight-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        brings_token = scope["path"] == "/" and self._is_token(_query(scope).get("token", ""))

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                # the answer owns the list, and may be sent again
                message = {**message, "headers": list(message.get("headers", ()))}
                added = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    added[name] = value
                added.setdefault("Cache-Control", CACHE)
                if brings_token:
                    added["Set-Cookie"] = f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"
            await send(message)

        refusal = None if brings_token else self._check_cookie(headers)
        refusal = refusal or _check_origin(scope["method"], headers)
        body = b""
        if refusal is None:
            body = await _read_body(headers, receive)
            refusal = _refuse(413, f"request too large: at most {LARGEST_BODY:,} bytes") if body is None else None
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        await self.app(scope, _replayed(body or b"", receive), send_guarded)

    def _check_cookie(self, headers: Headers) -> Response | None:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            cookie = None
        if cookie is not None and self._is_token(cookie.value):
            return None
        return _refuse(403, "open the address that `sae browse` printed: it carries the token that lets you in")

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())


def _check_origin(method: str, headers: Headers) -> Response | None:
    if method in ("GET", "HEAD"):
        return None
    # Host has been checked against HOSTS, so this is this machine and port
    if headers.get("origin") != f"http://{headers.get('host')}":
        return _refuse(403, "a change must come from the page itself (the Origin header is another)")
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return _refuse(415, "a change must be application/json")
    return None


async def _read_body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body, or None where it is too large."""
    declared = headers.get("content-length", "0")
    if not declared.isdigit() or int(declared[:9]) > LARGEST_BODY:
        return None
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        body += message.get("body", b"")
        if len(body) > LARGEST_BODY:
            return None
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _query(scope: Scope) -> dict[str, str]:
    pairs = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=50)
    return {name: values[0] for name, values in pairs.items()}


def _refuse(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)
