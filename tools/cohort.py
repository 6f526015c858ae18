"""Measures predict.py on studies: its time, whether it goes on where it was killed, shards, memory, and the page.

    python -m tools.cohort --heads=FOLDER      20 heads several times, and 1,000 links to them; an hour on two CPU cores

Memory is read from /proc, so this needs Linux; the page is opened in Chromium, where there is one. Writes OUT.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hippo.errors import require
from hippo.files import ROOT, save_json
from hippo.options import configure, run_script
from hippo.pictures import plots
from hippo.study.inputs import find_t1

HEADS = "heads"  # BIDS folder of whole heads
OUT = "cohort.json"  # file to write
PICTURE = "cohort_memory.png"  # memory over the many scans
SCANS = 1000  # of the large study
WORKERS = [1, 2]  # to compare

_EVERY = 25  # scans between two looks at the memory
_TIMES = re.compile(r'"seconds": "[\d.]+"|(?<=\t)[\d.]+(?=\t\w+\.pth)')  # in records and in the table


def main():
    run(configure(globals()))


def run(cfg):
    """Measures, and writes the JSON file and the picture."""
    heads, results = Path(cfg.heads).resolve(), {"cores": os.cpu_count()}
    count = len(find_t1(heads))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        results["heads"] = {"n": count, "seconds": {}}
        for workers in cfg.workers:
            seconds = timed(heads, folder / f"workers_{workers}", f"--workers={workers}")
            results["heads"]["seconds"][workers] = seconds
            results["heads"][f"equal_{workers}"] = equal(
                folder / f"workers_{cfg.workers[0]}", folder / f"workers_{workers}"
            )
        results["killed"] = killed(heads, folder, seconds) | {
            "equal": equal(folder / f"workers_{workers}", folder / "killed")
        }
        print(results, flush=True)
        start = time.perf_counter()
        shards = [start_run(heads, folder / "shards", f"--shard={i}/4", "--workers=1") for i in range(1, 5)]
        require(not any(process.wait() for process in shards), "a shard failed")
        start_run(None, folder / "shards", "--collect=True").wait()
        results["shards"] = {"n": 4, "seconds": time.perf_counter() - start}
        results["shards"]["equal"] = equal(folder / f"workers_{workers}", folder / "shards")
        print(results, flush=True)
        results["many"] = many(heads, folder, cfg.scans, max(cfg.workers), cfg.picture)
    save_json(cfg.out, results)
    print(f"wrote {cfg.out}")


def start_run(scans, out_dir, *options):
    """A process of predict.py."""
    command = [
        sys.executable,
        str(ROOT / "predict.py"),
        *([str(scans)] if scans else []),
        f"--out_dir={out_dir}",
        *options,
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def timed(scans, out_dir, *options):
    """Seconds of a run."""
    start = time.perf_counter()
    require(start_run(scans, out_dir, *options).wait() == 0, f"predict.py {' '.join(options)} failed")
    return time.perf_counter() - start


def killed(heads, folder, seconds):
    """Kills a run at three random moments, and lets it end at last."""
    moments = [random.uniform(0.1, 0.5) * seconds for _ in range(3)]
    for moment in moments:
        process = start_run(heads, folder / "killed")
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    timed(heads, folder / "killed")
    return {"after_seconds": moments}


def equal(one, other):
    """Whether two folders of results have the same files, byte for byte but for times."""

    def content(folder):
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return {k: _TIMES.sub("", v.decode()) if k.endswith((".json", ".tsv")) else v for k, v in files.items()}

    return content(one) == content(other)


def many(heads, folder, scans, workers, picture):
    """Memory, time and page of a study of many scans, which are links to the heads."""
    study, sources = folder / "many", find_t1(heads)
    for i in range(scans):
        path = study / f"sub-{i:04d}" / "anat" / f"sub-{i:04d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        path.symlink_to(sources[i % len(sources)].path)
    shutil.copy(heads / "dataset_description.json", study)
    out, series, start = folder / "many_out", [], time.perf_counter()
    process = start_run(study, out, f"--workers={workers}")
    while process.poll() is None:
        time.sleep(2)
        done = len(list((out / ".hippo" / "scans").glob("*/anat/*.json")))
        if not series or done >= series[-1][0] + _EVERY:
            series.append((done, memory(process.pid)))
            print(series[-1], flush=True)
    seconds = time.perf_counter() - start
    plots.memory(series, picture, f"{scans} heads, {workers} processes and the one that starts them")
    page = out / "report.html"
    again = timed(study, out, f"--workers={workers}")
    result = {"n": scans, "seconds": seconds, "memory_mib": series, "seconds_if_done": again}
    return result | {"page_mb": page.stat().st_size / 1e6, "page": open_page(page)}


def memory(group):
    """MiB of a group of processes; what they share counts once (PSS)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                total += int(re.search(r"^Pss:\s+(\d+)", (folder / "smaps_rollup").read_text(), re.M)[1])
        except (OSError, TypeError):  # it has ended
            continue
    return total / 1024


@cache
def browser():
    """The path of Chromium, the system's or the one that `playwright install chromium` got, or None."""
    if _installed() or not find_spec("playwright"):
        return _installed()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        own = driver.chromium.executable_path
    return own if Path(own).is_file() else None


def _installed():
    """The path of the system's Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def launch(driver):
    """Chromium, as playwright drives it; it draws WebGL without a GPU."""
    options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    return driver.chromium.launch(executable_path=_installed(), args=options)  # None: its own


def open_page(path):
    """Seconds until the page is there, and until its table is sorted, in Chromium; None where there is none."""
    if not browser() or not find_spec("playwright"):
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        tab, start = launch(driver).new_page(), time.perf_counter()
        tab.goto(path.as_uri(), wait_until="load")
        opened, start = time.perf_counter() - start, time.perf_counter()
        tab.click("th:has-text('scan') button")
        first = tab.locator("tbody tr").first.get_attribute("data-scan")
        return {"opened_seconds": opened, "sorted_seconds": time.perf_counter() - start, "first": first}


if __name__ == "__main__":
    run_script(main)
