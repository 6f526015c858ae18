"""Measures the page of serve.py, in a real browser too.

    python -m tools.web --heads=FOLDER      20 heads, 50 at once, 200 one after the other, 2,000 requests; half an hour

FOLDER is a BIDS data set. The requests are of schemathesis, the browser is Chromium; memory is read from /proc, so this
needs Linux. Writes OUT and PICTURE.
"""

import contextlib
import gzip
import http.client
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hippo.errors import require
from hippo.files import ROOT, save_json
from hippo.options import configure, run_script
from hippo.study.inputs import find_t1
from tools.cohort import launch, memory

import nibabel as nib
import numpy as np
from nibabel.processing import resample_to_output

HEADS = "heads"  # BIDS folder of whole heads
OUT = "web.json"  # file to write
PICTURE = "web.png"  # the page with a head
AT_ONCE = 50  # uploads
IN_A_ROW = 200  # jobs, one after the other
REQUESTS = 2000  # of schemathesis
MUTATED = 200  # uploads of broken files

_EVERY = 20  # jobs between two looks at the memory
_CHECKS = [f"{what}_conformance" for what in ("status_code", "content_type", "response_schema", "response_headers")]
_CHECKS += ["not_a_server_error"]
_ON_THE_PAGE = 5  # heads that are timed on the page
_TIMED = """() => { window.seconds = new Promise(resolve => document.getElementById("file").addEventListener("change", () => {
  const start = performance.now()
  let table = 0
  const timer = setInterval(() => {
    if (!table && !document.getElementById("result").hidden) table = performance.now() - start
    if (!table || viewer?.volumes.length != 2) return
    clearInterval(timer)
    resolve([table / 1000, (performance.now() - start) / 1000])
  }, 20)
}, { once: true })) }"""  # what it measures cannot be asked for again and again from without: that takes the cores


def main():
    run(configure(globals()))


def run(cfg):
    """Measures, and writes the JSON file and the picture."""
    paths = [item.path for item in find_t1(cfg.heads) if not item.problem]
    heads = {path.name: path.read_bytes() for path in paths}
    results = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder, running(folder) as (server, client, log):
        volumes, seconds = {}, []
        for name, content in heads.items():
            start = time.perf_counter()
            volumes[name] = totals(client.segment(name, content))
            seconds.append(time.perf_counter() - start)
        results["heads"] = {"n": len(heads), "mean_seconds": np.mean(seconds), "worst_seconds": max(seconds)}
        results["page"] = page(client.url, paths, cfg.picture, Path(folder))
        print(results, flush=True)
        results["at_once"] = at_once(server, client, heads, volumes, cfg.at_once)
        print(results["at_once"], flush=True)
        results["in_a_row"] = in_a_row(server, client, heads, volumes, cfg.in_a_row)
        print(results["in_a_row"], flush=True)
        results["requests"] = requests(client.url, folder, cfg.requests)
        results["mutated"] = mutated(client, next(iter(heads.values())), cfg.mutated)
        results["left"] = len([path for path in Path(folder, "jobs").rglob("scan.*") if path.is_file()])
        results["lines_with_errors"] = sum(
            bool(re.search("error|traceback", line, re.I)) for line in log.read_text().splitlines()
        )
        server.terminate()
        server.wait()
        results["left_at_the_end"] = len(list(Path(folder).glob("jobs/**/*")))
    save_json(cfg.out, results)
    print(f"wrote {cfg.out}")


def totals(job):
    """The total volumes of a job that is done."""
    require(job["state"] == "done", f"a head failed: {job['error']}")
    return [side["total_mm3"] for side in job["result"]["sides"]]


def page(url, paths, picture, folder):
    """Seconds from the choice of a head, on a grid of 1 mm, to its table and to its labels on the page's canvas, in Chromium,
    which draws them without a GPU."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        tab, seconds = launch(driver).new_page(viewport={"width": 1280, "height": 1080}), []
        tab.goto(url)
        for path in paths[:_ON_THE_PAGE]:
            image = resample_to_output(nib.load(path), (1, 1, 1), order=1)
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.int16), image.affine), folder / "1mm.nii.gz")
            tab.evaluate(_TIMED)
            tab.locator("#file").set_input_files(folder / "1mm.nii.gz")
            seconds.append(tab.evaluate("seconds"))
            tab.evaluate("viewer.volumes.length = 0; restart(true)")
            time.sleep(5)  # while the last one is drawn
        draw(tab, paths[1], picture)
    table, drawn = np.array(seconds).T
    return {"n": len(seconds), "table_seconds": table.tolist(), "labels_seconds": drawn.tolist()}


def draw(tab, path, picture):
    """Draws the page with a head and its labels."""
    tab.evaluate(_TIMED)
    tab.locator("#file").set_input_files(path)
    tab.evaluate("seconds")
    tab.wait_for_timeout(3000)
    tab.screenshot(path=picture)


def at_once(server, client, heads, volumes, count):
    """What becomes of many uploads at once: each is done, with the volumes of its own head, or is told to come again."""
    names = [list(heads)[i % len(heads)] for i in range(count)]
    peak, ended = [0.0], threading.Event()

    def watch():
        while not ended.wait(0.5):
            peak[0] = max(peak[0], memory(server.pid))

    threading.Thread(target=watch, daemon=True).start()
    with ThreadPoolExecutor(count) as pool:
        answers = list(pool.map(lambda name: client.send(name, heads[name]), names))
    statuses = Counter(status for status, _, _ in answers)
    jobs = {job["id"]: name for name, (status, _, job) in zip(names, answers) if status == 202}
    mixed_up = sum(totals(client.wait(id)) != volumes[name] for id, name in jobs.items())
    ended.set()
    return {"n": count, "statuses": statuses, "mixed_up": mixed_up, "peak_mib": peak[0]}


def in_a_row(server, client, heads, volumes, count):
    """Memory over many jobs, one after the other."""
    series, mixed_up = [(0, memory(server.pid))], 0
    for i in range(1, count + 1):
        name = list(heads)[i % len(heads)]
        mixed_up += totals(client.segment(name, heads[name])) != volumes[name]
        if i % _EVERY == 0:
            series.append((i, memory(server.pid)))
    return {"n": count, "mixed_up": mixed_up, "memory_mib": series}


def requests(url, folder, count):
    """What schemathesis finds in the answers to at least so many requests that it makes of the API's description."""
    report, examples, statuses = Path(folder) / "requests.har", count // 4, Counter()
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", f"--max-examples={examples}"]
    command += [
        f"--checks={','.join(_CHECKS)}",
        "--seed=0",
        "--continue-on-failure",
        "--report=har",
        f"--report-har-path={report}",
    ]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    require(report.is_file(), f"schemathesis failed: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    print(result.stdout[-3000:], flush=True)
    entries = json.loads(report.read_text())["log"]["entries"]
    statuses.update(entry["response"]["status"] for entry in entries)
    traces = sum("Traceback" in entry["response"]["content"].get("text", "") for entry in entries)
    return {"n": len(entries), "statuses": statuses, "tracebacks": traces, "failed": result.returncode}


def mutated(client, content, count):
    """{state: number} of uploads of a head that was broken in a few places, packed or not."""
    rng, states, plain = random.Random(0), Counter(), gzip.decompress(content)
    for i in range(count):
        broken = bytearray(plain if i % 2 else content)
        for _ in range(rng.choice([1, 2, 8])):
            broken[rng.randrange(400 if rng.random() < 0.7 else len(broken))] = rng.randrange(256)
        if rng.random() < 0.2:
            del broken[rng.randrange(len(broken)) :]
        job = client.segment("scan.nii.gz" if i % 2 == 0 else "scan.nii", bytes(broken))
        states[job["state"]] += 1
        states["fault of the program"] += "fault of the program" in job["error"]
        client.ask(f"/api/jobs/{job['id']}", "DELETE")
    return {"n": count, "states": states}


class Client:
    """Requests to a server at a port of this machine."""

    def __init__(self, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def ask(self, path, method="GET", body=None, **headers):
        """(status, headers, body) of an answer; JSON is read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        with contextlib.closing(connection):
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            if content and answer.getheader("content-type") == "application/json":
                content = json.loads(content)
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def send(self, name, content, **headers):
        """The answer to an upload."""
        start = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body, kind = start.encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
        return self.ask("/api/jobs", "POST", body, Content_Type=kind, **headers)

    def wait(self, id, seconds=300):
        """The status of a job that has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status, _, job = self.ask(f"/api/jobs/{id}")
            require(status == 200, f"job {id}: {job}")
            if job["state"] in ("done", "failed"):
                return job
            time.sleep(0.05)
        raise TimeoutError(id)

    def segment(self, name, content):
        """The status of an upload that has ended; it is sent again while the queue is full."""
        while True:
            status, headers, job = self.send(name, content)
            if status == 202:
                return self.wait(job["id"])
            require(status == 503, f"{name}: {job}")
            time.sleep(float(headers["retry-after"]))


@contextlib.contextmanager
def running(folder, *options):
    """(process, Client, path of the log) of a serve.py that keeps its jobs in a folder."""
    log = Path(folder) / "serve.log"
    command = [sys.executable, str(ROOT / "serve.py"), "--port=0", f"--work_dir={folder}/jobs", *options]
    with open(log, "a") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while "is ready" not in (text := log.read_text()):
            require(process.poll() is None and time.monotonic() < end, f"serve.py did not start: {text}")
            time.sleep(0.05)
        yield process, Client(int(text.rpartition(" is ready")[0].rpartition(":")[2])), log
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    run_script(main)
