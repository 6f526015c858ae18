"""A page in the browser: drop a head, see both hippocampi. Everything stays on the machine that runs it.

    pip install -r requirements-web.txt
    python serve.py                  then open http://127.0.0.1:8000; Ctrl-C ends it

The page takes one scan at a time and segments it as predict.py does, in about 3 s on two cores: .nii, .nii.gz, .mgz, .mgh, or
DICOM (a folder, its files, or a .zip file). It shows the scan with its labels, volumes and flags, and gives the files to save.
The API behind it is described at /docs, which needs no network either, and in docs/web.md.

A scan is deleted once it is segmented; its results after KEEP_MINUTES, with "delete now", when serve.py ends, and, after a
crash, when it starts again at the same address. They lie in folders of WORK_DIR that only you can read. The log has no
word of what was sent.

There is no log-in. With another HOST than 127.0.0.1, everyone who reaches the port can use the page: see docs/web.md for
what to put before it. NOT FOR CLINICAL USE.
"""

import contextlib
import functools
import os
import re
import signal
import socket
import tempfile
import threading
from pathlib import Path

import phantom
import predict
from hippo.errors import UserError, require
from hippo.options import configure, run_script
from hippo.web.app import create_app
from hippo.web.jobs import Jobs

import numpy as np
import uvicorn

HOST = "127.0.0.1"  # address to listen at; 0.0.0.0: all of this machine's
PORT = 8000  # 0: any free one
ALLOWED_HOSTS = ""  # further names that the page is called by, as mri.example.org, behind a proxy for instance
MAX_UPLOAD_MB = 256  # of a file, or of all files of a folder, as they are sent
MAX_UNPACKED_MB = 512  # of its voxels, or of all that a .zip file holds
QUEUE = 8  # scans that may wait; one more gets the answer 503
JOB_SECONDS = 300  # for one scan, before it is given up
KEEP_MINUTES = 60.0  # how long results are kept
WORK_DIR = "serve_jobs"  # folder for uploads and results, each for a while
CHECKPOINT = "pretrained/heads_3d.pth"  # trained weights, see predict.py
PARTNER = "pretrained/heads_2d.pth"  # a second one, averaged with the first; empty: none
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps

_BACKLOG = 128  # connections that wait to be taken
_drawing = threading.Lock()
_LOCAL = ("127.0.0.1", "localhost", "::1")


def main():
    run(configure(globals()))


def run(cfg):
    """Serves the page until it is stopped."""
    for name in ("max_upload_mb", "max_unpacked_mb", "queue", "job_seconds", "keep_minutes"):
        require(getattr(cfg, name) > 0, f"--{name}={getattr(cfg, name)}: expected more than 0")
    require(0 <= cfg.port < 65536, f"--port={cfg.port}: expected a number up to 65535")
    with listen(cfg.host, cfg.port) as listener:
        port = listener.getsockname()[1]
        settings = configure(
            vars(predict), [], checkpoint=cfg.checkpoint, partner=cfg.partner, device=cfg.device, pictures=True
        )
        # a machine has one server at an address, so that what lies in its folder is of an earlier one
        folder = Path(cfg.work_dir) / f"{socket.gethostname()}-{cfg.host.replace(':', '_')}-{port}"
        jobs = Jobs(folder, settings, cfg.queue, cfg.job_seconds, cfg.keep_minutes, cfg.max_unpacked_mb)
        tempfile.tempdir = str(folder.resolve())  # for uploads on their way
        try:
            hosts = {*_LOCAL, cfg.host, *re.findall(r"[^\s,]+", cfg.allowed_hosts)}
            app = create_app(jobs, example, hosts, cfg.max_upload_mb)
            announce(cfg.host, port, jobs.device)
            serve(app, listener)
        finally:
            jobs.close()
    print("ended; uploads and results are deleted")


def listen(host, port):
    """Returns a socket that listens at an address. Raises UserError if the address is taken, or not one of this
    machine."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":  # a port of a moment ago; elsewhere, this would share one that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        return listener
    except OSError as error:
        raise UserError(f"--host={host} --port={port}: {error.strerror}; choose another --port") from None


def announce(host, port, device):
    """Prints the address of the page and, if others can reach it, a warning."""
    name = f"[{host}]" if ":" in host else host
    shown = "localhost" if host in ("0.0.0.0", "::") else name
    print(f"http://{shown}:{port} is ready, on {device}. Ctrl-C ends it. NOT FOR CLINICAL USE.", flush=True)
    if host not in _LOCAL:
        print(
            "There is no log-in: everyone who reaches this port can send scans. Put a proxy with TLS and passwords "
            "before it, as docs/web.md shows; name it with --allowed_hosts.",
            flush=True,
        )


def serve(app, listener):
    """Serves an application at a socket until a signal stops it."""
    hang_up = getattr(signal, "SIGHUP", None)  # the terminal was closed; Windows has no such signal
    if hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:  # as nohup sets it
        signal.signal(hang_up, lambda *_: signal.raise_signal(signal.SIGTERM))
    quiet = {"log_level": "error", "access_log": False, "server_header": False}
    config = uvicorn.Config(app, timeout_graceful_shutdown=3, **quiet)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def example():
    """Returns the .nii.gz bytes of a phantom's head, which is drawn once."""
    with _drawing:
        return _draw()


@functools.lru_cache(maxsize=1)
def _draw():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phantom_head.nii.gz"
        phantom.write_head(path, path.with_name("labels.nii.gz"), np.random.default_rng(0))
        return path.read_bytes()


if __name__ == "__main__":
    run_script(main)
