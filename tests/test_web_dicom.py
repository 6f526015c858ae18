"""DICOM on the page: .zip files by the API, folders in Chromium, and what is left of them."""

import base64
import gzip
import io
import json
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import phantom

import nibabel as nib
import numpy as np
import pytest
from conftest import left_in, wait_until
from dicoms import REAL, packed, real, save, secrets_in, slices_of
from test_fuzz import mutate

if not all(map(find_spec, ("fastapi", "pydicom", "dcm2niix"))):
    pytest.skip("the page is not installed: pip install -r requirements-dev.txt", allow_module_level=True)
from hippo.web import jobs as room
from tools.cohort import browser, launch
from tools.web import running


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(Client, log, folder of jobs)."""
    folder = tmp_path_factory.mktemp("serve")
    with running(folder, "--max_upload_mb=40", "--max_unpacked_mb=60") as (_, client, log):
        yield client, log, folder / "jobs"


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A folder with DICOM files of a phantom's head, 2 mm: series 4 and 5, T1-weighted, and 6, a T2 by its name."""
    folder = tmp_path_factory.mktemp("head")
    phantom.write_head(folder / "head.nii.gz", folder / "labels.nii.gz", np.random.default_rng(0))
    image = nib.as_closest_canonical(nib.load(folder / "head.nii.gz")).slicer[::2, ::2, ::2]
    array = np.clip(np.asarray(image.dataobj), 0, None)
    array = np.round(1000 * (array / array.max()))
    for number, words in ((4, "SECRET t1_mprage"), (5, "SECRET t1_mprage_norm"), (6, "SECRET t2_tse")):
        slices = slices_of(array, (2.0, 2.0, 2.0), number, SeriesDescription=words)
        save(slices, folder / "CD" / "SECRET" / str(number))
    return folder / "CD"


def uploads_in(folder):
    return [path for path in left_in(folder) if path.name.startswith("scan.") or ".half-" in str(path)]


def choosing(client, id):
    """The status of a job that waits for a choice."""
    wait_until(lambda: client.ask(f"/api/jobs/{id}")[2]["state"] == "choosing")
    return client.ask(f"/api/jobs/{id}")[2]


@pytest.mark.promise("dicom_web")
def test_one_of_several_series_is_chosen(server, head, tmp_path):
    client, log, folder = server
    content = packed(head, tmp_path / "cd.zip").read_bytes()
    status, _, job = client.send("SECRET_cd.zip", content)
    assert status == 202
    job = choosing(client, job["id"])
    assert [(one["name"], bool(one["why"])) for one in job["series"]] == [("S4_T1", 0), ("S5_T1", 0), ("S6_T2", 1)]
    assert job["series"][0]["grid"].endswith("voxels of 2 x 2 x 2 mm") and "SECRET" not in json.dumps(job)

    def choose(id):
        return client.ask(
            f"/api/jobs/{job['id']}/series", "POST", json.dumps({"id": id}), Content_Type="application/json"
        )[0]

    assert choose("none") == 409 and choose(job["series"][1]["id"]) == 202 and choose(job["series"][1]["id"]) == 409
    job = client.wait(job["id"])
    assert job["state"] == "done" and job["steps"][:3] == ["received", "converted", "found"], job
    assert job["result"]["converted"] and not uploads_in(folder)
    _, headers, body = client.ask(f"/api/jobs/{job['id']}/scan.nii.gz")
    assert headers["content-disposition"] == 'attachment; filename="S5_T1.nii.gz"'
    scan = nib.Nifti1Image.from_bytes(gzip.decompress(body))
    labels = client.ask(f"/api/jobs/{job['id']}/labels.nii.gz")[2]
    assert nib.Nifti1Image.from_bytes(gzip.decompress(labels)).shape == scan.shape
    with zipfile.ZipFile(io.BytesIO(client.ask(f"/api/jobs/{job['id']}/all.zip")[2])) as archive:
        archive.extractall(tmp_path / "all")
        assert len(archive.namelist()) == 4 and all(name.startswith("S5_T1") for name in archive.namelist())
    assert not secrets_in(tmp_path / "all") and not secrets_in(folder) and "SECRET" not in log.read_text()
    client.ask(f"/api/jobs/{job['id']}", "DELETE")


@pytest.mark.promise("dicom_web")
@real
def test_real_series_on_the_page(server):
    client, log, folder = server
    job = client.segment("cd.zip", (REAL / "cd.zip").read_bytes())
    assert job["state"] == "done" and all(side["total_mm3"] for side in job["result"]["sides"]), job
    assert client.ask(f"/api/jobs/{job['id']}/volumes.csv")[2].decode().splitlines()[1].startswith("S4_T1,left,")
    assert not secrets_in(folder) and not uploads_in(folder)
    client.ask(f"/api/jobs/{job['id']}", "DELETE")
    job = client.segment("thick.zip", (REAL / "thick_prone.zip").read_bytes())
    assert job["error"] == "no T1-weighted head in 3D (S2_T1: 2D, slices of 4.8 mm)"
    job = client.segment("highres.zip", (REAL / "highres.zip").read_bytes())
    assert "81 MB unpacked; expected up to 60 MB" in job["error"] and str(folder) not in job["error"]
    assert not left_in(folder) and "SECRET" not in log.read_text()


@pytest.mark.promise("dicom_web")
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_mutated_archives_and_many_at_once_leave_nothing(server, head, tmp_path, count):
    """No answer is a fault but 503; what fails and what is deleted is gone from the disk."""
    client, log, folder = server
    small, rng = packed(head / "SECRET" / "6", tmp_path / "small.zip").read_bytes(), random.Random(0)
    for _ in range(count):
        status, headers, job = client.send("a.zip", mutate(small, rng))
        if status == 503:
            continue
        assert status == 202, job
        wait_until(lambda id=job["id"]: client.ask(f"/api/jobs/{id}")[2]["state"] not in ("waiting", "running"))
        assert "fault of the program" not in client.ask(f"/api/jobs/{job['id']}")[2]["error"]
        client.ask(f"/api/jobs/{job['id']}", "DELETE")
    several = packed(head, tmp_path / "cd.zip").read_bytes()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: client.send("a.zip", several), range(50)))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) <= {202, 503} and 503 in statuses and statuses.count(202) <= 9
    for status, _, job in answers:
        if status == 202:
            choosing(client, job["id"])
    assert client.send("a.zip", several)[0] == 503  # those who choose hold their places
    for status, _, job in answers:
        if status == 202:
            client.ask(f"/api/jobs/{job['id']}", "DELETE")
    wait_until(lambda: not left_in(folder), 10)
    assert "fault" not in log.read_text() and "error in a job" not in log.read_text()


def test_a_choice_has_its_time(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "start_worker", lambda *_: (None, None))
    monkeypatch.setattr(room.Jobs, "_start_worker", lambda self: None)
    monkeypatch.setattr(room.Jobs, "_segment", lambda self, job: ("choosing", [{"id": "a"}]))
    monkeypatch.setattr(room, "_CHOICE_SECONDS", 0.3)
    jobs = room.Jobs(tmp_path / "jobs", None, 1, 60, 60, 512)
    try:
        job = jobs.add(io.BytesIO(b"x"), "a.zip", ".zip")
        wait_until(lambda: job.state == "choosing")
        assert not jobs.admit() and left_in(job.folder)
        wait_until(lambda: jobs.get(job.id) is None, 10)
        assert jobs.admit() and not job.folder.exists() and not jobs.choose(job, "a")
    finally:
        jobs.close()


# ---- the page

playwright = pytest.importorskip("playwright.sync_api") if browser() else None
in_chromium = pytest.mark.skipif(not browser(), reason="no Chromium")
DRAWN = "viewer?.volumes.length == 2 && !document.getElementById('result').hidden"
DROP = """entries => {
  const folder = (name, inner) => {
    let told = false
    const readEntries = done => { done(told ? [] : inner); told = true }
    return { isDirectory: true, name, createReader: () => ({ readEntries }) }
  }
  const files = entries.map(([name, content]) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0))
    return { isFile: true, name, file: done => done(new File([bytes], name)) }
  })
  const event = new Event("drop", { bubbles: true, cancelable: true })
  event.dataTransfer = { files: [1], items: [{ webkitGetAsEntry: () => folder("CD", [folder("inner", files)]) }] }
  document.getElementById("drop").dispatchEvent(event)
}"""


@pytest.fixture
def tab(server):
    """A page of the server, in Chromium; an error of its script fails the test."""
    with playwright.sync_playwright() as driver:
        tab, errors = launch(driver).new_page(viewport={"width": 1280, "height": 800}), []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(server[0].url)
        yield tab
        assert not errors


@pytest.mark.promise("dicom_web")
@in_chromium
def test_a_folder_is_chosen_and_one_of_its_series(tab, server, head, tmp_path):
    tab.locator("#folder").set_input_files(head)
    tab.wait_for_selector("#choice button", timeout=20_000)
    texts = tab.locator("#choice > div").all_inner_texts()
    assert (
        texts[0].startswith("Series 4, T1: ") and "voxels of 2 x 2 x 2 mm" in texts[0] and "not T1-weighted" in texts[2]
    )
    tab.screenshot(path=tmp_path / "choice.png")
    tab.locator("#choice button").nth(0).click()
    wait_until(lambda: tab.evaluate(DRAWN))
    assert tab.locator("#name").inner_text() == "CD.zip" and tab.locator("#scan").is_visible()
    assert server[0].ask(f"/api/jobs/{tab.evaluate('job.id')}/scan.nii.gz")[0] == 200
    tab.locator("#delete").click()
    tab.wait_for_selector("#start:not([hidden])")


@pytest.mark.promise("dicom_web")
@in_chromium
def test_a_folder_is_dropped_and_files_are_chosen(tab, head):
    files = sorted((head / "SECRET" / "4").iterdir())
    entries = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in files]
    tab.evaluate(DROP, entries)
    wait_until(lambda: tab.evaluate(DRAWN))
    tab.locator("#another").click()
    tab.locator("#file").set_input_files(files)
    tab.wait_for_selector("#steps li:text('converted')")
    wait_until(lambda: tab.evaluate(DRAWN))
    tab.locator("#another").click()
    tab.evaluate("greet()")  # the page has asked the server for its limits by then
    tab.evaluate("server.max_upload_mb = 0.01")
    tab.locator("#file").set_input_files(files)
    tab.wait_for_selector("#error:not([hidden])")
    assert "expected up to 0.01 MB" in tab.locator("#error").inner_text()


@in_chromium
@real
def test_a_real_cd_on_the_page(tab, tmp_path):
    tab.locator("#file").set_input_files(REAL / "cd.zip")
    wait_until(lambda: tab.evaluate(DRAWN), 120)
    assert tab.locator("#error").is_hidden() and tab.evaluate("viewer.volumes[0].dims[1]") == 176
