"""How a job of serve.py ends, and a server: by time, by its user, and by force."""

import io
import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import phantom
import predict
from tools.web import running

import numpy as np
import pytest
from conftest import ROOT, left_in, one_error_line, wait_until

if not find_spec("fastapi"):
    pytest.skip("the page is not installed: pip install -r requirements-web.txt", allow_module_level=True)
import serve
from hippo.web import jobs as room

posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def test_results_are_forgotten(monkeypatch, model, crops, tmp_path):
    monkeypatch.setattr(room, "_EXPIRY_SECONDS", 0.1)
    jobs = make_jobs(tmp_path, model, keep_minutes=0.01)
    try:
        job = jobs.add(io.BytesIO(next(iter(crops.values()))), "a.nii.gz", ".nii.gz")
        wait_until(lambda: job.state == "done")
        wait_until(lambda: jobs.get(job.id) is None)
        assert not job.folder.exists() and jobs.file(job, "labels") is None
    finally:
        jobs.close()
    assert not list(tmp_path.iterdir())


def test_a_job_has_a_time_limit_and_may_be_cancelled(model, crops, tmp_path):
    jobs = make_jobs(tmp_path, model, job_seconds=0.05)
    try:
        first, second = (jobs.add(io.BytesIO(next(iter(crops.values()))), "a.nii.gz", ".nii.gz") for _ in range(2))
        wait_until(lambda: first.state == "failed")
        assert "it took more than 0.05 s" in first.error and not first.folder.exists()
        wait_until(lambda: second.state == "running")
        jobs.delete(second)
        wait_until(lambda: second.state == "failed" and not second.folder.exists())
        jobs._job_seconds = 60
        third = jobs.add(io.BytesIO(next(iter(crops.values()))), "a.nii.gz", ".nii.gz")
        wait_until(lambda: third.state == "done")
    finally:
        jobs.close()


def make_jobs(folder, model, job_seconds=60, keep_minutes=60):
    checkpoint = model[0].partition("=")[2]
    settings = predict.configure(vars(predict), [], checkpoint=checkpoint, partner="", device="cpu")
    return room.Jobs(folder / "jobs", settings, 8, job_seconds, keep_minutes, 512)


@posix
def test_killed_in_the_middle_of_a_job(model, tmp_path, phantoms):
    """Its worker ends too; the next server removes what is left, and says that the job is gone."""
    head = example_head(tmp_path)
    with running(tmp_path, *model) as (process, client, log):
        port = client.port
        _, _, job = client.send("head.nii.gz", head)
        wait_until(lambda: "found" in client.ask(f"/api/jobs/{job['id']}")[2]["steps"])
        process.kill()
        process.wait()
        wait_until(lambda: not group_is_alive(process.pid), 10)
    assert left_in(tmp_path / "jobs")
    log.unlink()
    with running(tmp_path, *model, f"--port={port}") as (process, client, log):
        assert not left_in(tmp_path / "jobs")
        assert client.ask(f"/api/jobs/{job['id']}")[0] == 404
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0 and "ended; uploads and results are deleted" in log.read_text()
    assert not (tmp_path / "jobs").exists()


@posix
def test_a_worker_that_dies_costs_its_job_alone(model, tmp_path, crops):
    with running(tmp_path, *model) as (process, client, log):
        _, _, job = client.send("head.nii.gz", example_head(tmp_path))
        wait_until(lambda: "found" in client.ask(f"/api/jobs/{job['id']}")[2]["steps"])
        for pid in children_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        assert "want of memory" in client.wait(job["id"])["error"]
        assert client.segment("a.nii.gz", next(iter(crops.values())))["state"] == "done"
        process.terminate()
        process.wait(20)
    assert not (tmp_path / "jobs").exists()


def example_head(folder):
    path = folder / "head.nii.gz"
    phantom.write_head(path, folder / "labels.nii.gz", np.random.default_rng(0))
    return path.read_bytes()


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
