"""What comes between the network and the application: who may ask, how much may be sent, and what a browser may do."""

import asyncio
import json
import re

from hippo.web.worker import where

from starlette.exceptions import HTTPException

_REQUESTS = 200  # at a time
_FORM_BYTES = 1 << 16  # that a form takes beside its file
_STALLED_SECONDS = 60  # without a byte of an upload
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Gate:
    """ASGI middleware.

    A request needs a Host of `hosts`, for another name may be one that a foreign page has bound to this machine. What
    changes something must not come from a foreign page. Of uploads, no more than `most_bytes` is read, and none begins
    while the queue is full. An error of the program is a line in the log without what the message says of a scan.
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
        """Raises HTTPException for a foreign request, and for one too many."""
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
        """Passes an upload on, with a place for it and up to its limit."""
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self.most_bytes + _FORM_BYTES:
            raise self._too_large()
        if not self.jobs.admit():
            await self._read(receive)  # else the answer may be lost
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
        """Reads what is sent and keeps nothing of it."""
        received = 0
        while (message := await self._receive(receive)).get("more_body") and received <= self.most_bytes:
            received += len(message["body"])

    async def _receive(self, receive):
        try:
            return await asyncio.wait_for(receive(), _STALLED_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, "the upload has stalled; send it again") from None


def _name(host):
    """The name of a Host header without its port; an address of IPv6 without its brackets; None where it is neither."""
    found = re.fullmatch(r"(?:\[([0-9a-f:]+)\]|([\w.-]+))(?::\d+)?", host)
    return found and (found[1] or found[2])


async def _answer(send, refused):
    body = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **(refused.headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
