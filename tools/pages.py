"""Draws the page of a study, and the page in the browser with a head, as pictures for the pages.

    python -m tools.pages --heads=FOLDER      20 heads in Chromium; three minutes on two CPU cores

FOLDER is a BIDS data set. Writes OUT and OUT_WEB.
"""

import tempfile
from pathlib import Path

from hippo.errors import require
from hippo.options import configure, run_script
from hippo.study.inputs import find_t1
from tools import web
from tools.cohort import launch, start_run

HEADS = "heads"  # BIDS folder of whole heads
OUT = "report.png"  # the page of a study
OUT_WEB = web.PICTURE  # the page in the browser

_SIZE, _SIZE_WEB = {"width": 1250, "height": 940}, {"width": 1280, "height": 1080}


def main():
    run(configure(globals()))


def run(cfg):
    """Segments the heads, one of them on the page in the browser too, and writes the pictures."""
    from playwright.sync_api import sync_playwright

    paths = [item.path for item in find_t1(cfg.heads) if not item.problem]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        folder, browser = Path(folder), launch(driver)
        require(start_run(Path(cfg.heads).resolve(), folder / "study").wait() == 0, f"predict.py {cfg.heads} failed")
        tab = browser.new_page(viewport=_SIZE)
        tab.goto((folder / "study" / "report.html").as_uri(), wait_until="load")
        tab.wait_for_timeout(2000)
        tab.screenshot(path=cfg.out)
        with web.running(folder) as (server, client, _):
            tab = browser.new_page(viewport=_SIZE_WEB)
            tab.goto(client.url)
            web.draw(tab, paths[1], cfg.out_web)
            server.terminate()
            server.wait()
    print(f"wrote {cfg.out} and {cfg.out_web}")


if __name__ == "__main__":
    run_script(main)
