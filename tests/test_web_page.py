"""The page of serve.py in Chromium: a phantom's head from the drop to its deletion."""

import gzip
import os
import signal
from importlib.util import find_spec

from tools.cohort import browser, launch
from tools.web import running

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

for _name in ("fastapi", "playwright"):
    if not find_spec(_name):
        pytest.skip(f"{_name} is not installed: pip install -r requirements-dev.txt", allow_module_level=True)
if not browser():
    pytest.skip("no Chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

COLOURS = {1: (0x56, 0xB4, 0xE9), 2: (0xE6, 0x9F, 0x00), 3: (0x00, 0x72, 0xB2), 4: (0xD5, 0x5E, 0x00)}
DROP = """async () => {
  const content = await (await fetch("/example.nii.gz")).blob(), data = new DataTransfer()
  data.items.add(new File([content], "phantom.nii.gz"))
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }))
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("serve")) as (_, client, _):
        yield client


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        yield launch(driver)


@pytest.fixture
def tab(chromium, server):
    """A page of the server; what it may not ask, or fails at, fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    tab, errors = context.new_page(), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: errors.append(request.url) if not own(request.url, server) else None)
    tab.goto(server.url)
    yield tab
    context.close()
    assert not [error for error in errors if "status of 4" not in error], errors


def own(url, server):
    return url.startswith((server.url, "data:", "blob:"))


def pixels(tab, path):
    """{label: pixels of its colour} on the canvas."""
    tab.locator("#canvas").screenshot(path=path)
    image = np.round(imread(path)[..., :3] * 255).astype(int)
    return {label: int((np.abs(image - colour).max(-1) <= 2).sum()) for label, colour in COLOURS.items()}


def set_opacity(tab, value):
    tab.locator("#opacity").fill(str(value))
    tab.wait_for_timeout(300)


def test_from_drop_to_deletion(tab, server, tmp_path):
    tab.evaluate(DROP)
    tab.wait_for_selector("#result:not([hidden])", timeout=60_000)
    tab.wait_for_function("viewer && viewer.volumes.length == 2")
    set_opacity(tab, 1)
    there = pixels(tab, tmp_path / "canvas.png")
    tab.locator("#left").click()
    left, here = tab.evaluate("viewer.frac2mm(viewer.scene.crosshairPos)[0]"), pixels(tab, tmp_path / "left.png")
    tab.locator("#right").click()
    right, over = tab.evaluate("viewer.frac2mm(viewer.scene.crosshairPos)[0]"), pixels(tab, tmp_path / "right.png")
    assert left < -10 and right > 10
    assert all(count > 50 for count in (here[1], here[2], over[3], over[4])), (there, here, over)
    tab.locator("body").press(" ")
    tab.wait_for_timeout(300)
    assert not any(pixels(tab, tmp_path / "none.png").values())
    tab.locator("body").press(" ")
    tab.locator("body").press("l")
    assert tab.evaluate("viewer.frac2mm(viewer.scene.crosshairPos)[0]") == pytest.approx(left)

    id = tab.evaluate("job.id")
    result = server.ask(f"/api/jobs/{id}")[2]["result"]
    shown = tab.locator("#rows tr").nth(2).inner_text().replace(",", "").split()
    assert shown == ["total", *(f"{side['total_mm3']:.0f}" for side in result["sides"])]
    assert tab.locator("#synthetic").is_visible() and "eTIV" in tab.locator("#whole").inner_text()
    for name, ending in (("labels", "_hippocampus.nii.gz"), ("volumes", ".csv"), ("picture", ".png"), ("all", ".zip")):
        with tab.expect_download() as download:
            tab.locator(f"#{name}").click()
        assert download.value.suggested_filename.startswith("phantom") and download.value.suggested_filename.endswith(
            ending
        )
        content = download.value.path().read_bytes()
        if name == "labels":
            labels = np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)
            assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    tab.locator("#delete").click()
    tab.wait_for_selector("#start:not([hidden])")
    tab.wait_for_timeout(300)
    assert server.ask(f"/api/jobs/{id}")[0] == 404


def test_every_view_shows_sides(tab, tmp_path):
    """Radiological: what is on the left of the picture comes to lie on the right."""
    tab.locator("#example").click()
    tab.wait_for_selector("#result:not([hidden])", timeout=60_000)
    tab.wait_for_function("viewer && viewer.volumes.length == 2")
    set_opacity(tab, 1)
    tab.locator("#slices").select_option("1")  # coronal
    where = []
    for _ in range(2):
        tab.wait_for_timeout(300)
        tab.locator("#canvas").screenshot(path=tmp_path / "coronal.png")
        image = np.round(imread(tmp_path / "coronal.png")[..., :3] * 255).astype(int)
        columns = [
            np.nonzero(np.abs(image - COLOURS[a]).max(-1) <= 2)[1].tolist()
            + np.nonzero(np.abs(image - COLOURS[b]).max(-1) <= 2)[1].tolist()
            for a, b in ((1, 2), (3, 4))
        ]
        where.append([np.mean(side) if side else np.nan for side in columns])
        tab.locator("#radiological").check()
    (left, right), (left_again, right_again) = where
    assert left < right and left_again > right_again


def test_mistakes_are_said_and_the_page_goes_on(tab, tmp_path):
    for name, content, words in (
        ("notes.txt", b"no scan", "notes.txt: expected a NIfTI file"),
        ("broken.nii.gz", b"no scan", "not a readable file"),
    ):
        tab.locator("#file").set_input_files({"name": name, "mimeType": "", "buffer": content})
        tab.wait_for_selector("#error:not([hidden])")
        assert words in tab.locator("#error").inner_text() and tab.locator("#start").is_visible()
    tab.evaluate("server.max_upload_mb = 0.001")
    tab.locator("#file").set_input_files({"name": "large.nii", "mimeType": "", "buffer": b"0" * 2000})
    tab.wait_for_function("document.getElementById('error').textContent.includes('large.nii')")
    assert "expected a file of up to" in tab.locator("#error").inner_text()


def test_a_browser_that_cannot_draw_still_gives_the_numbers(tab):
    tab.evaluate("HTMLCanvasElement.prototype.getContext = () => null")
    tab.locator("#example").click()
    tab.wait_for_selector("text=This browser cannot draw the scan", timeout=60_000)
    assert tab.locator("#rows tr").count() == 5


def test_on_a_phone_and_by_keyboard(chromium, server):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    tab = context.new_page()
    tab.goto(server.url)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "file"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#result:not([hidden])", timeout=60_000)
    tab.wait_for_function("viewer && viewer.volumes.length == 2")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator("#canvas").bounding_box()["width"] > 330
    context.close()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_server_that_is_started_anew(chromium, tmp_path):
    """The page says that it waits and, once the server is back, that the job is gone."""
    context = chromium.new_context()
    tab = context.new_page()
    with running(tmp_path) as (process, client, log):
        tab.goto(client.url)
        tab.locator("#example").click()
        tab.wait_for_function("job && job.id")
        process.send_signal(signal.SIGKILL)
        tab.wait_for_selector("text=The server does not answer", timeout=10_000)
    log.unlink()
    with running(tmp_path, f"--port={client.port}"):
        tab.wait_for_selector("#error:not([hidden])", timeout=10_000)
        assert "no such job" in tab.locator("#error").inner_text()
    context.close()


def test_the_page_of_the_api(tab, server):
    tab.goto(f"{server.url}/docs")
    tab.wait_for_selector("text=/api/jobs/{job_id}")
    tab.wait_for_selector("text=/api/health")
