import hashlib
import http.server
import io
import tarfile
import threading

import get_data
from hippo.data.cases import list_cases
from hippo.errors import UserError
from tools import truth

import nibabel as nib
import numpy as np
import pytest
from conftest import one_error_line


class Server(http.server.BaseHTTPRequestHandler):
    """Serves server.files; one under /cut/ breaks off half way the first time, one under /plain/ knows no ranges."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        content = self.server.files.get(name)
        self.server.requests.append((self.path, self.headers.get("Range")))
        if content is None:
            return self.send_error(404)
        start = 0
        if self.headers.get("Range") and not self.path.startswith("/plain/"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        first = self.path not in [path for path, _ in self.server.requests[:-1]]
        stop = len(content) // 2 if self.path.startswith("/cut/") and first else len(content)
        self.wfile.write(content[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.files, server.requests = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def archive(phantoms):
    """The phantoms as an archive like the official one, with macOS's ._ files and a test folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(phantoms.rglob("*")):
            if path.is_file():
                tar.add(path, f"Task04_Hippocampus/{path.relative_to(phantoms).as_posix()}")
        add(tar, "Task04_Hippocampus/imagesTr/._phantom_001.nii.gz", b"mac")
        add(tar, "._Task04_Hippocampus", b"mac")
        add(
            tar,
            "Task04_Hippocampus/imagesTs/phantom_100.nii.gz",
            (phantoms / "imagesTr" / "phantom_001.nii.gz").read_bytes(),
        )
    return buffer.getvalue()


def add(tar, name, content, kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def get(server, script, tmp_path):
    """Serves content under a name and runs get_data.py on it; returns (result, data folder)."""

    def run(content, folder="", md5=None, name="data.tar"):
        server.files[name] = content
        url = f"http://127.0.0.1:{server.server_port}/{folder}{name}"
        root = tmp_path / "my data" / "Task04_Hippocampus"
        return script(
            get_data,
            f"--url={url}",
            f"--data_root={root}",
            f"--md5={md5 or hashlib.md5(content).hexdigest()}",
            "--timeout_s=5",
        ), root

    return run


def test_downloads_unpacks_and_then_does_nothing(get, archive, server):
    (code, out, err), root = get(archive)
    assert code == 0 and "8 labelled cases" in out, err
    assert len(list_cases(root)[0]) == 8 and (root / "imagesTs" / "phantom_100.nii.gz").is_file()
    assert not list(root.rglob("._*")) and sorted(p.name for p in root.parent.iterdir()) == [root.name]
    asked = len(server.requests)
    (code, out, _), _ = get(archive)
    assert code == 0 and "nothing to do" in out and len(server.requests) == asked


@pytest.mark.parametrize("folder", ["cut/", "plain/"])
def test_a_broken_download_goes_on(get, archive, server, folder):
    root = None
    if folder == "cut/":
        result, root = get(archive, folder)
        one_error_line(result, "of", "bytes arrived", "again")
        assert not root.exists()
    else:
        _, root = get(archive[:1000], "cut/", name="other.tar")  # leaves a part behind that is not of this archive
    (code, _, err), root = get(archive, folder)
    assert code == 0, err
    assert server.requests[-1][1] is not None if folder == "cut/" else True
    assert len(list_cases(root)[0]) == 8


def test_a_damaged_part_is_downloaded_anew(get, archive, tmp_path):
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "Task04_Hippocampus.tar.part").write_bytes(b"\0" * 700)
    (code, out, err), root = get(archive)
    assert code == 0 and "damaged" in out and len(list_cases(root)[0]) == 8, err


def test_a_part_longer_than_the_file_is_downloaded_anew(get, archive, tmp_path):
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "Task04_Hippocampus.tar.part").write_bytes(archive + b"more")
    (code, _, err), root = get(archive)
    assert code == 0 and len(list_cases(root)[0]) == 8, err


def test_wrong_md5(get, archive):
    result, root = get(archive, md5="0" * 32)
    one_error_line(result, "MD5", hashlib.md5(archive).hexdigest())
    assert not root.exists() and not list(root.parent.iterdir())


def test_not_found(get, archive, server, script, tmp_path):
    result = script(get_data, f"--url=http://127.0.0.1:{server.server_port}/none.tar", f"--data_root={tmp_path / 'x'}")
    one_error_line(result, "404", "none.tar")
    assert not (tmp_path / "x").exists()


def test_no_network(script, tmp_path):
    one_error_line(
        script(get_data, "--url=http://127.0.0.1:9/data.tar", f"--data_root={tmp_path / 'x'}", "--timeout_s=2"),
        "no connection",
        "again",
    )
    one_error_line(script(get_data, "--url=nonsense", f"--data_root={tmp_path / 'x'}"), "not an address")
    assert not (tmp_path / "x").exists()


@pytest.mark.promise("archives")
@pytest.mark.parametrize(
    "name, kind, link",
    [
        ("../evil", tarfile.REGTYPE, ""),
        ("Task04_Hippocampus/../../evil", tarfile.REGTYPE, ""),
        ("/evil", tarfile.REGTYPE, ""),
        ("Task04_Hippocampus/a\\..\\..\\evil", tarfile.REGTYPE, ""),
        ("C:/evil", tarfile.REGTYPE, ""),
        ("Task04_Hippocampus/C:/evil", tarfile.REGTYPE, ""),
        ("Task04_Hippocampus/link", tarfile.SYMTYPE, "/etc"),
        ("Task04_Hippocampus/hard", tarfile.LNKTYPE, "../../evil"),
        ("Task04_Hippocampus/pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_hostile_archives(get, name, kind, link, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add(tar, "Task04_Hippocampus/dataset.json", b"{}")
        add(tar, name, b"evil" if kind == tarfile.REGTYPE else b"", kind, link)
    result, root = get(buffer.getvalue())
    one_error_line(result, "nothing was unpacked")
    assert not list(root.iterdir()) and not list(tmp_path.rglob("evil*"))


def test_not_an_archive(get):
    one_error_line(get(b"<html>a captive portal</html>")[0], "not a whole tar archive")


def test_a_damaged_data_folder_is_mended(get, archive):
    _, root = get(archive)
    (root / "README.md").write_text("mine")
    (root / "imagesTr" / "phantom_002.nii.gz").write_bytes(b"broken")
    (code, out, err), _ = get(archive)
    assert code == 0 and "not whole" in out and not get_data.find_problem(root), err
    assert (root / "README.md").read_text() == "mine" and (root / "imagesTr.previous-1").is_dir()


def test_anatomies_are_got_once_and_checked(server, tmp_path):
    server.files = {"a.nii.gz": b"first", "b.nii.gz": b"second"}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in server.files.items()}
    source = {"url": f"http://127.0.0.1:{server.server_port}/", "sha256": sums}
    assert get_data.get_anatomies(tmp_path, source, 5.0)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == server.files
    assert not get_data.get_anatomies(tmp_path, source, 5.0)
    (tmp_path / "b.nii.gz").write_bytes(b"broken")
    assert get_data.get_anatomies(tmp_path, source, 5.0) and (tmp_path / "b.nii.gz").read_bytes() == b"second"
    server.files["a.nii.gz"] = b"other"
    (tmp_path / "a.nii.gz").unlink()
    with pytest.raises(UserError, match="SHA256"):
        get_data.get_anatomies(tmp_path, source, 5.0)


def test_heads_labelled_by_hand_become_a_bids_folder(server, tmp_path, capsys):
    affine = np.diag([-1.0, 1, 1, 1])
    labels = np.zeros((6, 5, 4), np.int16)
    labels[0, 1, 2], labels[5, 1, 2:] = 48, 47
    for name, array in (("7_SS", labels * 3), ("7_glm", labels)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
        server.files[f"{name}.nii.gz"] = (tmp_path / f"{name}.nii.gz").read_bytes()
    sums = {
        key: hashlib.sha256(server.files[f"7_{n}.nii.gz"]).hexdigest() for key, n in (("scan", "SS"), ("labels", "glm"))
    }
    scan = {"participant": "sub-7", "session": "ses-1", "age": 30, "sex": "F"} | {
        f"{k}_sha256": v for k, v in sums.items()
    }
    source = {
        "url": f"http://127.0.0.1:{server.server_port}/",
        "source": "s",
        "licence": "CC BY-NC",
        "scans": {"7": scan},
    }
    folder = tmp_path / "manual"
    assert get_data.get_manual(folder, source, 5.0) and not get_data.get_manual(folder, source, 5.0)
    assert "CC BY-NC" in capsys.readouterr().out
    ((path, masks, *who),) = truth.find_scans(folder)
    assert who == ["sub-7", "ses-1", 30.0] and path.read_bytes() == server.files["7_SS.nii.gz"]
    drawn = {side: np.asarray(nib.load(mask).dataobj) for side, mask in masks.items()}
    assert np.array_equal(drawn["left"], labels == 48) and np.array_equal(drawn["right"], labels == 47)
    masks["left"].unlink()
    assert get_data.get_manual(folder, source, 5.0) and masks["left"].is_file()
    assert sorted(p.name for p in folder.rglob("*labels*")) == []
