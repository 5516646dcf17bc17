"""What every request passes before a handler sees it: the token, the size of its body and the time it may take; and where it is counted."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from reward_models.serving.metrics import Metrics

GONE = 499  # the client left before its answer: counted under the code that nginx has for it, sent to nobody
OPEN = ("/health",)  # without the token: whoever watches the server needs no scores

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Refused(Exception):
    def __init__(self, code: int, problem: str) -> None:
        self.code, self.problem = code, problem


class Door:
    """ASGI middleware. `token`: None lets everybody in; `paths`: those that are counted under their own name."""

    def __init__(
        self, app: Any, *, token: str | None, max_body: int, body_timeout_s: float, metrics: Metrics, paths: Collection[str]
    ) -> None:
        self.app, self.max_body, self.body_timeout_s = app, max_body, body_timeout_s
        self.metrics, self.paths = metrics, paths
        self._expected = f"Bearer {token}".encode() if token is not None else None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, code = time.monotonic(), GONE

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            body = await self._body(scope, receive)
            if body is not None:
                await self.app(scope, _again(body, receive), noted)
        except _Refused as refused:
            await _refuse(noted, refused)
        except Exception:
            code = 500 if code == GONE else code
            raise
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.request(path, code, time.monotonic() - began)

    async def _body(self, scope: dict[str, Any], receive: Receive) -> bytes | None:
        """The whole body; None where the client left. Raises _Refused."""
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self._expected is not None and scope["path"] not in OPEN and not hmac.compare_digest(given, self._expected):
            raise _Refused(401, "needs the server's token as `Authorization: Bearer TOKEN`")
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self.max_body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                return await self._read(receive)
        except TimeoutError:
            raise _Refused(408, f"the body did not arrive within {self.body_timeout_s:g} s") from None

    async def _read(self, receive: Receive) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the body is larger than {self.max_body} bytes; send fewer rows at once")


def _again(body: bytes, receive: Receive) -> Receive:
    """The body as one message; then what comes, which is the client's leaving."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def take() -> Message:
        return messages.pop() if messages else await receive()

    return take


async def _refuse(send: Send, refused: _Refused) -> None:
    body = json.dumps({"error": refused.problem}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
