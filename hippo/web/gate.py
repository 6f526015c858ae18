"""Middleware between network and application: checks who may ask and how much may be sent, and sets what a browser may
do."""

import asyncio
import json
import re

from hippo.web.worker import where

from starlette.exceptions import HTTPException

_REQUESTS = 200  # maximum number at a time
_FORM_BYTES = 1 << 16  # bytes that a form needs in addition to its file
_STALLED_SECONDS = 60  # time without a byte of an upload
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Gate:
    """ASGI middleware.

    A request needs a Host in `hosts`, because another name may have been bound to this machine by a foreign page.
    Requests that change something must not come from a foreign page. At most `most_bytes` of an upload are read, and
    no upload starts while the queue is full. A program error is logged as one line, without its message, which may
    contain data of a scan.
    """

    def __init__(self, app, jobs, hosts, most_bytes, policy):
        """policy: the Content-Security-Policy."""
        self.app, self.jobs, self.hosts, self.most_bytes = app, jobs, {host.lower() for host in hosts}, most_bytes
        self.requests = 0
        self.headers = [(k.encode(), v.encode()) for k, v in (_HEADERS | {"content-security-policy": policy}).items()]

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_on(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [] if scope["path"].startswith("/static/") else [(b"cache-control", b"no-store")]
                message = message | {"headers": [*message["headers"], *self.headers, *own]}
            await send(message)

        is_upload = scope["method"] == "POST" and scope["path"] == "/api/jobs"
        self.requests += 1
        try:
            self._check(scope)
            if is_upload:
                await self._upload(scope, receive, send_on)
            else:
                await self.app(scope, receive, send_on)
        except HTTPException as refused:
            await _answer(send_on, refused)
        except Exception as error:
            print(f"error: {scope['method']}: {where(error)}", flush=True)
            if not started:
                await _answer(send_on, HTTPException(500, "this is a fault of the program; please report it"))
        finally:
            self.requests -= 1

    def _check(self, scope):
        """Raises HTTPException for a foreign request, and if there are too many requests."""
        if self.requests > _REQUESTS:
            raise HTTPException(503, "too many requests at a time; try again in a moment", {"retry-after": "1"})
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if _name(host) not in self.hosts:
            raise HTTPException(403, "unknown Host; start serve.py with --allowed_hosts to have it taken")
        origin = headers.get(b"origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if scope["method"] not in ("GET", "HEAD") and foreign:
            raise HTTPException(403, "this comes from the page of another site")

    async def _upload(self, scope, receive, send):
        """Passes an upload on, if there is room in the queue, and enforces the size limit."""
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self.most_bytes + _FORM_BYTES:
            raise self._too_large()
        if not self.jobs.admit():
            await self._read(receive)  # otherwise the response may be lost
            again = str(self.jobs.seconds_until_free)
            raise HTTPException(503, "the queue is full; try again in a moment", {"retry-after": again})
        received = 0

        async def receive_some():
            nonlocal received
            message = await self._receive(receive)
            received += len(message.get("body", b""))
            if received > self.most_bytes + _FORM_BYTES:
                raise self._too_large()
            return message

        try:
            await self.app(scope, receive_some, send)
        finally:
            self.jobs.leave()

    def _too_large(self):
        return HTTPException(
            413, f"expected a file of up to {self.most_bytes / 1e6:,.0f} MB; crop the scan, or use predict.py"
        )

    async def _read(self, receive):
        """Reads the request body and discards it."""
        received = 0
        while (message := await self._receive(receive)).get("more_body") and received <= self.most_bytes:
            received += len(message["body"])

    async def _receive(self, receive):
        try:
            return await asyncio.wait_for(receive(), _STALLED_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, "the upload has stalled; send it again") from None


def _name(host):
    """Returns the name in a Host header without its port, an IPv6 address without its brackets, or None for anything
    else."""
    found = re.fullmatch(r"(?:\[([0-9a-f:]+)\]|([\w.-]+))(?::\d+)?", host)
    return found and (found[1] or found[2])


async def _answer(send, refused):
    body = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **(refused.headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
