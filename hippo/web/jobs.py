"""The scans uploaded to a server: a queue, one worker, and a folder for each scan, deleted with the server at the
latest."""

import contextlib
import secrets
import shutil
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from hippo.data.formats import ENDINGS
from hippo.errors import UserError, require
from hippo.web.worker import RESULTS, SCAN, start_worker, where

STATES = ("waiting", "running", "choosing", "done", "failed")
_CHOICE_SECONDS = 600  # time to choose a series, before its upload is deleted
_START_SECONDS = 120  # time for a worker to load its networks
_POLL_SECONDS = 0.1
_EXPIRY_SECONDS = 5  # time between two checks for expired results
_ENDED = "the process that segments ended, most likely for want of memory; try a smaller scan, or predict.py"


@dataclass
class Job:
    """A scan: its id, the name its user gave it, its folder, and its state. series: those to choose from; choice: the id
    of the chosen one."""

    id: str
    label: str
    folder: Path
    state: str = "waiting"
    steps: list = field(default_factory=lambda: ["received"])
    error: str = ""
    result: dict | None = None
    series: list = field(default_factory=list)
    choice: str = ""
    ended: float | None = None  # time.time(), which keeps running while a laptop sleeps
    deleted: bool = False


class Jobs:
    """Jobs in order of arrival. All methods may be called from any thread."""

    def __init__(self, folder, settings, queue, job_seconds, keep_minutes, unpacked_mb):
        """folder: for the files of the jobs, emptied first; settings: the configuration of predict.py; queue: maximum
        number of waiting jobs; job_seconds: time limit of one job; keep_minutes: how long results are kept. Raises
        UserError if the networks cannot be loaded."""
        self.queue, self.keep_minutes, self.device = queue, keep_minutes, ""
        self.seconds = None  # that the last scan took
        self._folder, self._job_seconds = Path(folder), job_seconds
        self._new_worker = lambda: start_worker(settings, unpacked_mb)
        self._jobs, self._waiting, self._uploads = {}, deque(), 0
        self._last_seconds, self._closed, self._changed = 3.0, False, threading.Condition()
        _remove(self._folder)
        self._made_parent = not self._folder.parent.exists()
        self._folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.mkdir(mode=0o700)
        self._process, self._connection, self._thread = None, None, None
        try:
            self._start_worker()
        except UserError:
            self.close()
            raise
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def admit(self):
        """Reserves a place for an upload. Returns False if none is free. Call leave() when the upload has ended."""
        with self._changed:
            choosing = sum(job.state == "choosing" for job in self._jobs.values())
            free = self._uploads + len(self._waiting) + choosing < self.queue and not self._closed
            self._uploads += free
            return free

    def leave(self):
        """Releases the place that admit reserved."""
        with self._changed:
            self._uploads -= 1

    @property
    def seconds_until_free(self):
        """Estimated number of seconds until the next try makes sense."""
        with self._changed:
            return max(1, round(self._last_seconds * min(2, len(self._waiting))))

    def add(self, file, label, ending):
        """Copies an open file and returns a new Job for it. label: the name its user gave it; ending: one of ENDINGS,
        .zip, or empty."""
        job = Job(secrets.token_urlsafe(16), label, self._folder / secrets.token_hex(8))
        job.folder.mkdir(mode=0o700)
        try:
            with open(job.folder / f"{SCAN}{ending}", "wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        except OSError:
            _remove(job.folder)
            raise
        with self._changed:
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def choose(self, job, id):
        """Lets a Job that is choosing go on with one of its series. Returns False if it is not choosing, or has no such
        series."""
        with self._changed:
            known = job.state == "choosing" and not job.deleted and id in [series["id"] for series in job.series]
            if known:
                job.state, job.choice, job.ended = "waiting", id, None
                self._waiting.append(job)
                self._changed.notify_all()
            return known

    def get(self, id):
        """Returns the Job with an id, or None if it does not exist or has expired."""
        self._forget()
        with self._changed:
            return self._jobs.get(id)

    def ahead_of(self, job):
        """Returns the number of jobs that come first."""
        with self._changed:
            running = any(other.state == "running" for other in self._jobs.values())
            return self._waiting.index(job) + running if job in self._waiting else 0

    def counts(self):
        """Returns {state: number of jobs}."""
        with self._changed:
            states = [job.state for job in self._jobs.values()]
            return {state: states.count(state) for state in STATES}

    def file(self, job, kind):
        """Returns the bytes of a result (labels, picture or volumes), or None if there is none."""
        with self._changed:
            paths = [] if job.deleted or job.state != "done" else job.folder.iterdir()
            return next((path.read_bytes() for path in paths if path.name.endswith(RESULTS[kind])), None)

    def delete(self, job):
        """Ends a job and removes all of its data."""
        with self._changed:
            self._jobs.pop(job.id, None)
            job.deleted = True
            if job in self._waiting:
                self._waiting.remove(job)
            _remove(job.folder)  # for a running job, again when its worker has ended

    def close(self):
        """Ends the worker and removes all data."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if process := self._process:
            process.kill()
        if self._thread:
            self._thread.join(_START_SECONDS)
        self._end_worker()
        _remove(self._folder)
        if self._made_parent:
            with contextlib.suppress(OSError):  # another server uses the folder
                self._folder.parent.rmdir()

    def _start_worker(self):
        self._process, self._connection = self._new_worker()
        with contextlib.suppress(EOFError, OSError):
            if self._connection.poll(_START_SECONDS):
                kind, text = self._connection.recv()
                require(kind == "ready", text)
                self.device = text
                return
        self._end_worker()
        raise UserError("the process that segments did not start; see above")

    def _end_worker(self):
        process, connection = self._process, self._connection
        self._process, self._connection = None, None
        if process:
            process.kill()
            process.join()
            connection.close()

    def _run(self):
        """Processes one job after the other, and removes expired ones."""
        while not self._closed:
            with self._changed:
                if not self._waiting:
                    self._changed.wait(_EXPIRY_SECONDS)
                job = self._waiting.popleft() if self._waiting and not self._closed else None
                if job:
                    job.state = "running"
            if job:
                self._do(job)
            self._forget()

    def _do(self, job):
        """Processes a job and records its result or error."""
        start = time.monotonic()
        try:
            kind, value = self._segment(job)
        except UserError as error:
            kind, value = "failed", str(error)
            self._end_worker()
        except Exception as error:  # most likely the worker died; the next job gets a new one
            kind, value = "failed", _ENDED
            self._end_worker()
            _log(f"error: {where(error)}")
        with self._changed:
            self._last_seconds = time.monotonic() - start
            job.ended = time.time()
            if kind == "done":
                self.seconds = self._last_seconds
            if kind == "choosing":
                job.series, job.ended = value, job.ended + _CHOICE_SECONDS - 60 * self.keep_minutes
            else:
                self._end(job, kind, value)
            if job.deleted or kind == "failed":
                _remove(job.folder)
            job.state = kind
        if not job.deleted:
            _log(f"{kind} in {self._last_seconds:.1f} s")

    def _end(self, job, kind, value):
        """Deletes the upload of a job that is done or failed, and records its result or error."""
        for path in [job.folder / f"{SCAN}{ending}" for ending in ("", ".zip", *ENDINGS)]:
            with contextlib.suppress(OSError):  # on Windows another program may be reading it
                path.unlink(missing_ok=True)
        if kind == "done":
            job.result, job.label = value, value.pop("label", job.label)
            job.steps.append("done")
        else:
            job.error = value

    def _segment(self, job):
        """Segments a job, which may be deleted in the meantime. Returns ("done", result), ("failed", reason) or
        ("choosing", list of series)."""
        if self._process is None or not self._process.is_alive():
            self._end_worker()
            self._start_worker()
        connection, end = self._connection, time.monotonic() + self._job_seconds
        connection.send((str(job.folder), job.label, job.choice))
        while True:
            if connection.poll(_POLL_SECONDS):
                kind, value = connection.recv()
                if kind != "step":
                    return kind, value
                if value not in job.steps:
                    job.steps.append(value)
            require(not (job.deleted or self._closed), "deleted")
            require(
                time.monotonic() < end, f"it took more than {self._job_seconds} s; try a smaller scan, or predict.py"
            )

    def _forget(self):
        oldest = time.time() - 60 * self.keep_minutes
        with self._changed:
            old = [job for job in self._jobs.values() if job.ended is not None and job.ended < oldest]
        for job in old:
            self.delete(job)


def _log(line):
    with contextlib.suppress(OSError):  # the terminal was closed
        print(line, flush=True)


def _remove(folder):
    """Removes a folder, again if a program of a killed worker writes into it meanwhile."""
    for wait_s in (0, 0.1, 0.3, 1):
        time.sleep(wait_s)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
