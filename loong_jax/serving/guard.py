"""What every request passes before the API sees it: its size, its token, and the headers of every answer."""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BODY_TIMEOUT = 30.0  # seconds in which a request's body must be there
# The page loads its own three files and shows pictures and videos that it holds; nothing else, and inside nothing else.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Wraps an application: bodies are whole and bounded when it reads them."""

    def __init__(self, app: ASGIApp, token: str, max_body: int):
        """Wrap ``app``; an empty ``token`` asks for none, and bodies have at most ``max_body`` bytes."""
        self._app, self._max_body = app, max_body
        self._authorization = f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = message | {"headers": [*message.get("headers", ()), *own]}
            await send(message)

        if scope["path"].startswith("/api") and not self._is_allowed(headers.get(b"authorization", b"")):
            await _refuse(send_with_headers, 401, "This server asks for a token: send Authorization: Bearer TOKEN.")
            return
        try:
            async with asyncio.timeout(_BODY_TIMEOUT):
                body = await self._read(headers, receive)
        except TimeoutError:
            await _refuse(send_with_headers, 408, f"The request was not here after {_BODY_TIMEOUT:g} s.")
            return
        if body is None:
            most = f"{self._max_body / 2**20:g} MiB"
            await _refuse(send_with_headers, 413, f"The request is too large: send at most {most}, with its image.")
            return
        await self._app(scope, _replayed(body, receive), send_with_headers)

    def _is_allowed(self, authorization: bytes) -> bool:
        return not self._authorization or hmac.compare_digest(authorization, self._authorization)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body, or None where it is too large."""
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > self._max_body:
            return None
        parts, size, is_more = [], 0, True
        while is_more:
            message = await receive()
            if message["type"] != "http.request":  # the client is gone
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            is_more = message.get("more_body", False)
            if size > self._max_body:
                return None
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A ``receive`` that gives the body, then what comes after it: that the client is gone."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(send: Send, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": sentence}).encode()})
