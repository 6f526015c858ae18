"""serve.py: its API, and who may ask what of it."""

import csv
import gzip
import io
import os
import random
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import predict

import nibabel as nib
import numpy as np
import pytest
from conftest import left_in, wait_until
from test_fuzz import mutate

if not find_spec("fastapi"):
    pytest.skip("the page is not installed: pip install -r requirements-web.txt", allow_module_level=True)
from hippo.web.app import label_of
from tools.web import running


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """(process, Client, log, folder of jobs)."""
    folder = tmp_path_factory.mktemp("serve")
    with running(folder, *model, "--max_upload_mb=1", "--max_unpacked_mb=2") as (process, client, log):
        yield process, client, log, folder / "jobs"


@pytest.fixture
def client(server):
    return server[1]


def uploads_in(folder):
    return [path for path in left_in(folder) if path.name == "scan" or path.name.startswith("scan.")]


# ---- one scan


def test_a_job_gives_what_predict_gives(client, crops, phantoms, model, script, tmp_path):
    name = sorted(crops)[0]
    status, headers, job = client.send(name, crops[name])
    assert status == 202 and headers["location"] == f"/api/jobs/{job['id']}" and job["steps"] == ["received"]
    job = client.wait(job["id"])
    assert job["state"] == "done" and job["steps"] == ["received", "found", *job["steps"][2:-1], "done"], job
    side = job["result"]["sides"][0]
    of = f"/api/jobs/{job['id']}/"
    script(predict, phantoms / "imagesTr" / name, *model, f"--out_dir={tmp_path}")
    mine = list(csv.DictReader(io.StringIO((tmp_path / "volumes.csv").read_text())))
    _, headers, text = client.ask(of + "volumes.csv")
    theirs = list(csv.DictReader(io.StringIO(text.decode())))
    assert theirs[0].pop("scan") == name and mine[0].pop("scan").endswith(name)
    assert theirs[0].pop("seconds") and mine[0].pop("seconds") and theirs == mine
    assert f"{side['total_mm3']:.1f}" == mine[0]["total_mm3"] and f"{side['quality']:.3f}" == mine[0]["quality"]
    stem = name.removesuffix(".nii.gz")
    _, headers, labels = client.ask(of + "labels.nii.gz")
    assert labels == (tmp_path / f"{stem}_seg.nii.gz").read_bytes()
    assert headers["content-disposition"] == f'attachment; filename="{stem}_hippocampus.nii.gz"'
    image = nib.Nifti1Image.from_bytes(gzip.decompress(labels))
    voxel = np.round(np.linalg.inv(image.affine) @ [*side["middle_mm"], 1]).astype(int)[:3]
    assert np.asarray(image.dataobj)[tuple(voxel)], "the middle lies outside the labels"
    _, _, picture = client.ask(of + "picture.png")
    assert picture.startswith(b"\x89PNG")
    with zipfile.ZipFile(io.BytesIO(client.ask(of + "all.zip")[2])) as archive:
        assert archive.read(f"{stem}_hippocampus.nii.gz") == labels and len(archive.namelist()) == 3


def test_delete_removes_all(client, crops, server):
    job = client.segment("a.nii.gz", next(iter(crops.values())))
    there = left_in(server[3])
    assert client.ask(f"/api/jobs/{job['id']}", "DELETE")[0] == 204
    assert len(left_in(server[3])) < len(there)
    for suffix in ("", "/labels.nii.gz", "/all.zip"):
        status, _, body = client.ask(f"/api/jobs/{job['id']}{suffix}")
        assert status == 404 and "send the scan again" in body["detail"]


@pytest.mark.promise("web")
def test_a_scan_is_deleted_once_it_is_segmented(client, crops, server):
    client.segment("a.nii.gz", next(iter(crops.values())))
    assert not uploads_in(server[3])
    assert 0 < client.ask("/api/health")[2]["seconds"] < 100  # that it took


def mask(shape):
    array = np.zeros(shape, np.uint8)
    array[5:20, 5:20, 5:20] = 1
    return nib.Nifti1Image(array, np.eye(4)).to_bytes()


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("notes.txt", b"no scan", "expected a NIfTI file"),
        ("a.nii.gz", b"no scan", "not a readable file"),
        ("a.nii", b"", "too short for a NIfTI file"),
        ("scan", b"\0" * 128 + b"DICM", "a DICOM file; give predict.py the folder"),
        ("short.nii", mask((40, 50, 40))[:-100], "copy or export it again"),
        ("mask.nii", mask((40, 50, 40)), "a mask or label map"),
        ("small.nii", mask((5, 50, 40)), "expected a head, or a crop"),
        ("large.nii.gz", gzip.compress(mask((150, 150, 150))), "14 MB unpacked; this page takes 2 MB"),
    ],
)
def test_what_is_no_scan_fails_in_the_words_of_predict(client, server, name, content, words):
    job = client.segment(name, content)
    assert job["state"] == "failed" and words in job["error"] and str(server[3]) not in job["error"], job["error"]
    assert client.ask(f"/api/jobs/{job['id']}/labels.nii.gz")[0] == 409
    assert not uploads_in(server[3])


def test_mutated_files(client, crops, server):
    rng = random.Random(0)
    source = next(iter(crops.values()))
    for _ in range(12):
        job = client.segment("a.nii.gz", mutate(source, rng))
        assert job["state"] in ("done", "failed") and "fault of the program" not in job["error"], job
        client.ask(f"/api/jobs/{job['id']}", "DELETE")
    assert not uploads_in(server[3])


# ---- many scans


@pytest.mark.promise("web")
def test_fifty_uploads_at_once(client, crops, server):
    """Each is done or told to come again; none is lost, and each result is of its own scan."""
    names = [sorted(crops)[i % 5] for i in range(50)]
    alone = {name: volume(client.segment(name, crops[name])) for name in names[:5]}
    assert len(set(alone.values())) == len(alone)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda name: client.send(name, crops[name]), names))
    statuses = [status for status, _, _ in answers]
    assert set(statuses) <= {202, 503} and statuses.count(202) >= 8 and 503 in statuses
    for name, (status, headers, job) in zip(names, answers):
        if status == 503:
            assert int(headers["retry-after"]) >= 1 and "queue is full" in job["detail"]
        else:
            assert volume(client.wait(job["id"])) == alone[name]


def volume(job):
    return job["result"]["sides"][0]["total_mm3"]


# ---- who may ask, and what


@pytest.mark.promise("web")
def test_only_the_page_and_this_machine_may_ask(client, crops):
    content = next(iter(crops.values()))
    for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1.evil.example", "", "[", "a@127.0.0.1:x"):
        assert client.ask("/api/health", Host=host)[0] in (400, 403), host
    for host in (f"localhost:{client.port}", f"127.0.0.1:{client.port}", f"[::1]:{client.port}", "LOCALHOST"):
        assert client.ask("/api/health", Host=host)[0] == 200, host
    for origin in ("https://evil.example", "null", "http://[", f"http://127.0.0.1:{client.port + 1}"):
        status, headers, _ = client.send("a.nii.gz", content, Origin=origin)
        assert status == 403 and "access-control-allow-origin" not in headers, origin
    status, headers, job = client.send("a.nii.gz", content, Origin=client.url)
    assert status == 202 and client.ask(f"/api/jobs/{job['id']}", "DELETE", Origin=client.url)[0] == 204
    status, headers, _ = client.ask("/api/jobs", "OPTIONS", Origin="https://evil.example")
    assert status == 403 and "access-control-allow-origin" not in headers


def test_headers_for_browsers(client):
    for path in ("/", "/docs", "/brain.png", "/api/health", "/api/jobs/none", "/static/niivue.umd.js"):
        _, headers, _ = client.ask(path)
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    assert client.ask("/api/health")[1]["cache-control"] == "no-store" and "server" not in client.ask("/")[1]


def test_names_are_no_paths(client, crops, server, tmp_path):
    content = next(iter(crops.values()))
    for name in (
        "../../evil.nii.gz",
        "/etc/evil.nii.gz",
        "..\\..\\evil.nii.gz",
        "a%00b.nii.gz",
        "x" * 3000 + ".nii.gz",
    ):
        job = client.segment(name, content)
        assert job["state"] == "done"
        assert set(os.listdir(server[3])) == {f"{socket.gethostname()}-127.0.0.1-{client.port}"} and not list(
            server[3].rglob("*evil*")
        )
        header = client.ask(f"/api/jobs/{job['id']}/labels.nii.gz")[1]["content-disposition"]
        assert header.count('"') == 2 and "/" not in header and ".." not in header and len(header) < 200
    assert label_of("a\r\nb.nii") == "a__b.nii" and label_of("") == "scan.nii.gz" and label_of("-=x.mgz") == "_x.mgz"
    for path in ("/api/jobs/../../etc/passwd", "/static/../app.py", "/static/..%2fapp.py", "/api/jobs/%2e%2e"):
        assert client.ask(path)[0] in (404, 405), path


@pytest.mark.promise("web")
def test_uploads_have_a_limit(client, server):
    large = b"\0" * 1_200_000
    assert client.send("a.nii", large)[0] == 413
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
    chunks = (f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in [head, *[b"\0" * 100_000] * 14])
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as link:
        link.sendall(b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n")
        link.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for chunk in chunks:
                link.sendall(chunk)
        except OSError:
            pass
        assert b" 413 " in link.recv(100)
    assert client.send("a.nii", b"", Content_Length="x")[0] == 400
    assert client.ask("/api/jobs", "POST", b"{}", Content_Type="application/json")[0] == 422
    assert not uploads_in(server[3]) and client.ask("/api/health")[2]["jobs"]["waiting"] == 0


def test_lost_uploads_leave_nothing(client, server):
    """More of them than the queue has places: each gives its place back."""
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", client.port)) as link:
            link.sendall(b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n")
            link.sendall(b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data;")
            link.sendall(b' name="file"; filename="a.nii"\r\n\r\n')
    wait_until(lambda: client.ask("/api/health")[2]["jobs"]["waiting"] == 0)
    wait_until(lambda: client.send("a.txt", b"x")[0] == 202, 10)
    wait_until(lambda: not uploads_in(server[3]), 10)


def test_a_form_holds_one_file(client):
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\nx\r\n'
    field = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    for body, status in ((part * 2, 400), (field * 2 + part, 400), (field, 422), (field + part, 202)):
        kind = "multipart/form-data; boundary=x"
        assert client.ask("/api/jobs", "POST", body + b"--x--\r\n", Content_Type=kind)[0] == status, body


def test_the_schema_and_its_page_need_no_network(client):
    schema = client.ask("/openapi.json")[2]
    assert set(schema["paths"]) == {
        "/api/health",
        "/api/jobs",
        "/api/jobs/{job_id}",
        "/api/jobs/{job_id}/series",
        *(
            f"/api/jobs/{{job_id}}/{name}"
            for name in ("labels.nii.gz", "volumes.csv", "picture.png", "scan.nii.gz", "all.zip")
        ),
    }
    assert (
        schema["components"]["schemas"]["Status"]["examples"]
        and "503" in schema["paths"]["/api/jobs"]["post"]["responses"]
    )
    for path in ("/", "/docs"):
        text = client.ask(path)[2].decode()
        assert "//" not in text.replace("// ", "").replace("http://www.w3.org", ""), path
    assert client.ask("/static/swagger-ui.css")[0] == 200


def test_the_log_has_no_word_of_a_scan(client, server):
    client.segment("Jane_Doe_1970.nii.gz", b"no scan of Jane_Doe")
    client.ask("/api/jobs/Jane_Doe")
    text = server[2].read_text()
    assert "Jane" not in text and "failed in" in text and "Traceback" not in text
