"""The page of serve.py in Chromium: a phantom's head from the drop to its deletion."""

import base64
import gzip
import re
from importlib.util import find_spec

import phantom
from tools.cohort import browser, launch
from tools.web import running

import nibabel as nib
import numpy as np
import pytest
from conftest import wait_until
from matplotlib.image import imread

for _name in ("fastapi", "playwright"):
    if not find_spec(_name):
        pytest.skip(f"{_name} is not installed: pip install -r requirements-dev.txt", allow_module_level=True)
if not browser():
    pytest.skip("no Chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

COLOURS = {1: (0x56, 0xB4, 0xE9), 2: (0xE6, 0x9F, 0x00), 3: (0x00, 0x72, 0xB2), 4: (0xD5, 0x5E, 0x00)}
DROP = """content => {
  const data = new DataTransfer(), bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0))
  data.items.add(new File([bytes], "phantom.nii.gz"))
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }))
}"""
DRAWN = "viewer?.volumes.length == 2 && !document.getElementById('result').hidden"


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A phantom's head with voxels of 2 mm, a file."""
    folder = tmp_path_factory.mktemp("head")
    phantom.write_head(folder / "head.nii.gz", folder / "labels.nii.gz", np.random.default_rng(0))
    image = nib.load(folder / "head.nii.gz")
    nib.save(image.slicer[::2, ::2, ::2], folder / "phantom.nii.gz")
    return folder / "phantom.nii.gz"


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
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    tab, errors = context.new_page(), []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: errors.append(request.url) if not own(request.url, server) else None)
    tab.goto(server.url)
    yield tab
    context.close()
    assert not [error for error in errors if not re.search("status of 4|ERR_FAILED|niivue-error", error)], errors


def own(url, server):
    return url.startswith((server.url, "data:", "blob:"))


def pixels(tab, path):
    """{label: pixels of its colour} on the canvas."""
    tab.locator("#canvas").screenshot(path=path)
    image = np.round(imread(path)[..., :3] * 255).astype(int)
    return {label: int((np.abs(image - colour).max(-1) <= 2).sum()) for label, colour in COLOURS.items()}


def columns(tab, path, view):
    """["left", "right"] in the order in which their labels lie on the canvas, from the left to the right."""
    tab.locator("#slices").select_option(str(view))
    pixels(tab, path)
    image = np.round(imread(path)[..., :3] * 255).astype(int)
    near = {label: np.nonzero(np.abs(image - colour).max(-1) <= 2)[1] for label, colour in COLOURS.items()}
    middle = {"left": np.concatenate([near[1], near[2]]).mean(), "right": np.concatenate([near[3], near[4]]).mean()}
    return sorted(middle, key=middle.get)


def set_opacity(tab, value):
    tab.locator("#opacity").fill(str(value))
    wait_until(lambda: tab.evaluate("viewer.volumes[1].opacity") == value)


@pytest.mark.promise("web_page")
def test_from_drop_to_deletion(tab, server, head, tmp_path):
    tab.evaluate(DROP, base64.b64encode(head.read_bytes()).decode())
    wait_until(lambda: tab.evaluate(DRAWN))
    set_opacity(tab, 1)
    there = pixels(tab, tmp_path / "canvas.png")
    tab.locator("#left").click()
    left, here = tab.evaluate("viewer.frac2mm(viewer.scene.crosshairPos)[0]"), pixels(tab, tmp_path / "left.png")
    tab.locator("#right").click()
    right, over = tab.evaluate("viewer.frac2mm(viewer.scene.crosshairPos)[0]"), pixels(tab, tmp_path / "right.png")
    assert left < -10 and right > 10
    assert all(count > 50 for count in (here[1], here[2], over[3], over[4])), (there, here, over)
    tab.locator("body").press("h")
    wait_until(lambda: not any(pixels(tab, tmp_path / "none.png").values()))
    tab.locator("body").press("h")
    tab.locator("body").press("l")
    assert tab.evaluate("viewer.frac2mm(viewer.scene.crosshairPos)[0]") == pytest.approx(left)
    wait_until(lambda: columns(tab, tmp_path / "axial.png", 0) == ["left", "right"])
    tab.locator("#radiological").check()
    wait_until(lambda: columns(tab, tmp_path / "axial.png", 0) == ["right", "left"])

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
    flags = {
        f"{', '.join(side['side'] for side in result['sides'] if flag in side['flags'])}: {flag}"
        for flag in result["flags"]
    }
    problems = {side["side"] for side in result["sides"] if side["problem"]}
    assert set(tab.locator("#flags dt").all_inner_texts()) == flags | problems
    tab.locator("#delete").click()
    tab.wait_for_selector("#start:not([hidden])")
    wait_until(lambda: server.ask(f"/api/jobs/{id}")[0] == 404)


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
    wait_until(lambda: tab.evaluate("document.getElementById('error').textContent.includes('large.nii')"))
    assert "expected up to" in tab.locator("#error").inner_text()


def test_a_browser_that_cannot_draw_still_gives_the_numbers(tab, head):
    tab.evaluate("HTMLCanvasElement.prototype.getContext = () => null")
    tab.locator("#file").set_input_files(head)
    tab.wait_for_selector("text=This browser cannot draw the scan", timeout=60_000)
    assert tab.locator("#rows tr").count() == 5


def test_on_a_phone_and_by_keyboard(chromium, server):
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    tab = context.new_page()
    tab.goto(server.url)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "file"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "folder"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    wait_until(lambda: tab.evaluate(DRAWN))
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator("#canvas").bounding_box()["width"] > 330
    context.close()


def test_a_server_that_is_started_anew(tab, server, head):
    """The page says that it waits and, once a server that does not know the job is back, that it is gone."""
    tab.route("**/api/jobs/*", lambda route: route.abort())
    tab.locator("#file").set_input_files(head)
    tab.wait_for_selector("text=The server does not answer", timeout=10_000)
    server.ask(f"/api/jobs/{tab.evaluate('job.id')}", "DELETE")
    tab.unroute("**/api/jobs/*")
    tab.wait_for_selector("#error:not([hidden])", timeout=10_000)
    assert "no such job" in tab.locator("#error").inner_text()


def test_the_page_of_the_api(tab, server):
    tab.goto(f"{server.url}/docs")
    tab.locator("[data-path='/api/jobs/{job_id}']").first.wait_for()
    assert tab.locator(".opblock").count() == 10
