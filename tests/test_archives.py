"""Archives with scans: what they may not be."""

import stat
import struct
import time
import zipfile

from hippo.errors import UserError
from hippo.study.archives import files_in
from hippo.study.dicom import read_zip

import pytest


@pytest.fixture
def archive(tmp_path):
    """Writes a .zip file of {name: bytes or ZipInfo's content} and returns its path."""

    def write(files, name="a.zip"):
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as target:
            for inner, content in files.items():
                target.writestr(inner, content)
        return tmp_path / name

    return write


@pytest.mark.promise("archives")
def test_archives_that_are_no_study(archive, tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    locked = archive({"a": b"x"}, "locked.zip")
    content = bytearray(locked.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    locked.write_bytes(content)
    inner = archive({"a": b"x"}, "inner.zip").read_bytes()
    (tmp_path / "text.zip").write_text("no archive")
    for path, words in (
        (archive({}), "an empty .zip file"),
        (tmp_path / "text.zip", "not a readable .zip file"),
        (locked, "an encrypted .zip file"),
        (archive({"b.zip": inner}, "nested.zip"), "a .zip file in a .zip file"),
        (archive({"../evil": b"x"}, "climb.zip"), "names that lead out of it"),
        (archive({"/evil": b"x"}, "root.zip"), "names that lead out of it"),
        (archive({link: b"/etc/passwd", "notes.txt": b"x"}, "link.zip"), "no MRI in it"),
    ):
        (disc,) = read_zip(path)
        assert words in disc.why_none and not disc.series, path
    with pytest.raises(UserError, match="expected up to 0 MB"):
        files_in(archive({"a": bytes(1000)}), most_bytes=100)


@pytest.mark.promise("archives")
def test_a_bomb_is_refused_at_once(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("a", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    content = path.read_bytes()
    entry = content.index(b"PK\1\2")
    lying = content[: entry + 24] + struct.pack("<I", 2**31) + content[entry + 28 :]  # 2 GiB by its directory
    path.write_bytes(lying)
    start = time.monotonic()
    (disc,) = read_zip(path)
    assert "2,147 MB unpacked" in disc.problem and time.monotonic() - start < 1
    assert list(tmp_path.iterdir()) == [path]
