"""How a job of serve.py ends, and a server: by time, by its user, and by force."""

import io
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import predict
from tools.web import running

import pytest
from conftest import ROOT, left_in, one_error_line, wait_until

if not find_spec("fastapi"):
    pytest.skip("the page is not installed: pip install -r requirements-web.txt", allow_module_level=True)
import serve
from hippo.web import jobs as room

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.mark.promise("web")
def test_a_job_ends_by_time_or_by_its_user(monkeypatch, model, crops, tmp_path):
    monkeypatch.setattr(room, "_EXPIRY_SECONDS", 0.1)
    checkpoint, content = model[0].partition("=")[2], next(iter(crops.values()))
    settings = predict.configure(vars(predict), [], checkpoint=checkpoint, partner="", device="cpu")
    jobs = room.Jobs(tmp_path / "jobs", settings, 8, 0.05, 60, 512)
    try:
        first, second = (jobs.add(io.BytesIO(content), "a.nii.gz", ".nii.gz") for _ in range(2))
        wait_until(lambda: first.state == "failed")
        assert "it took more than 0.05 s" in first.error and not first.folder.exists()
        wait_until(lambda: second.state == "running")
        jobs.delete(second)
        jobs._job_seconds, jobs.keep_minutes = 60, 0.02
        wait_until(lambda: second.state == "failed" and not second.folder.exists())
        third = jobs.add(io.BytesIO(content), "a.nii.gz", ".nii.gz")
        wait_until(lambda: third.state == "done")
        assert jobs.file(third, "labels")
        wait_until(lambda: jobs.get(third.id) is None, 20)  # its time is over
        assert not third.folder.exists() and jobs.file(third, "labels") is None
    finally:
        jobs.close()
    assert tmp_path.is_dir() and not list(tmp_path.iterdir())


@pytest.mark.promise("web")
@posix
def test_a_worker_and_a_server_are_killed_in_the_middle_of_a_job(model, tmp_path, crops):
    """A worker costs its job alone. Of a server the worker ends too; the next one removes what is left, and says that the job
    is gone."""

    def begin(client):
        _, _, job = client.send("a.nii.gz", next(iter(crops.values())))
        wait_until(lambda: client.ask(f"/api/jobs/{job['id']}")[2]["state"] == "running")
        return job["id"]

    with running(tmp_path, *model) as (process, client, log):
        (worker,) = children_of(process.pid)
        os.kill(worker, signal.SIGSTOP)  # so that it is not done before
        id = begin(client)
        os.kill(worker, signal.SIGKILL)
        assert "want of memory" in client.wait(id)["error"]
        assert client.segment("a.nii.gz", next(iter(crops.values())))["state"] == "done"
        id = begin(client)
        process.kill()
        process.wait()
        wait_until(lambda: not group_is_alive(process.pid), 10)
    assert left_in(tmp_path / "jobs")
    log.unlink()
    with running(tmp_path, *model, f"--port={client.port}") as (process, client, log):
        assert not left_in(tmp_path / "jobs") and client.ask(f"/api/jobs/{id}")[0] == 404
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and "ended; uploads and results are deleted" in log.read_text()
    assert not list((tmp_path / "jobs").iterdir())


def group_is_alive(group):
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def children_of(pid):
    """Its children but for multiprocessing's tracker of resources."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
            if int(fields[1]) == pid and b"spawn_main" in (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_mistakes_are_one_line(script, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_error_line(script(serve, f"--port={port}", *model), f"--port={port}", "choose another --port")
    one_error_line(script(serve, "--queue=0"), "--queue=0", "more than 0")
    one_error_line(script(serve, "--port=0", "--checkpoint=none.pth"), "none.pth")
    one_error_line(script(serve, "--host=256.1.1.1"), "--host=256.1.1.1")


def test_another_host_is_warned_of(capsys):
    serve.announce("127.0.0.1", 8000, "cpu")
    assert "log-in" not in capsys.readouterr().out
    serve.announce("0.0.0.0", 8000, "cpu")
    assert "no log-in" in capsys.readouterr().out


def test_a_missing_extra_is_named():
    program = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'fastapi' else f(n, *a); import serve"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "fastapi not installed" in result.stderr and "pip install -r requirements-web.txt" in result.stderr
