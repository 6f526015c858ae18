"""DICOM in: which series are found, which are taken, and what is refused."""

import io
import os
import random
import shutil
import sys
import time

from hippo.data.dicom import read_header
from hippo.errors import UserError
from hippo.study import convert
from hippo.study.convert import fetch
from hippo.study.dicom import choose, find_discs, listing, read_folder
from hippo.study.inputs import find_items, left_out

import nibabel as nib
import numpy as np
import pytest
from dicoms import CT, packed, save, slices_of

pytest.importorskip("pydicom")
HEAD = (2.0, 2.0, 1.25)  # voxels in mm


@pytest.fixture(scope="module")
def array():
    """A ball, (D, H, W), in a field of view as large as a head's."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 70, 90)), indexing="ij"))
    return (np.linalg.norm(places, axis=0) < 0.7) * 300 + np.random.default_rng(0).integers(0, 40, (60, 70, 90))


def one_series(folder):
    """The one Series of a folder."""
    (disc,) = read_folder(folder, [path for path in folder.rglob("*") if path.is_file()])
    (series,) = disc.series
    return series


# ---- what is found


@pytest.mark.parametrize("name", ["IM{:04d}", "{:d}.dcm", "x{:d}.txt", "{:d}.IMA", "{:d}.img"])
@pytest.mark.parametrize("kind", ["explicit", "implicit", "raw", "no preamble"])
def test_dicom_is_known_by_its_content(array, tmp_path, name, kind):
    syntax = "1.2.840.10008.1.2" if kind == "implicit" else "1.2.840.10008.1.2.1"
    folder = save(slices_of(array, HEAD), tmp_path / "a", name, kind != "raw", syntax)
    if kind == "no preamble":
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[132:])
    (folder / "AUTORUN.INF").write_text("stray")
    (folder / "empty").touch()
    series = one_series(folder)
    assert (series.name, series.size, series.voxel_mm) == ("S4_T1", (60, 70, 90), HEAD)
    assert not series.why and not series.problem and len(series.files) == 90


def test_what_holds_no_image_is_no_series(array, tmp_path):
    """A DICOMDIR and a report are passed over, and a file that is there twice counts once."""
    slices = slices_of(array, HEAD)
    save(slices, tmp_path)
    save(slices[:10], tmp_path / "copy")
    directory = slices_of(array[..., :1], HEAD, SOPClassUID="1.2.840.10008.1.3.10")
    save(directory, tmp_path, "DICOMDIR")
    report = slices_of(array[..., :1], HEAD, Modality="SR")[0]
    del report.Rows, report.Columns, report.PixelData
    save([report], tmp_path, "report")
    assert one_series(tmp_path).size == (60, 70, 90)


def test_a_file_of_many_frames(array, tmp_path):
    """Enhanced DICOM: the values of each frame stand in sequences."""
    from pydicom import Dataset, Sequence

    slices = slices_of(array, HEAD)
    one = slices_of(array[..., :1], HEAD, SliceThickness=None, PixelSpacing=None, ImagePositionPatient=None)[0]
    one.SOPClassUID, one.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.4.1", len(slices)
    del one.ImageOrientationPatient
    measures, shared, orientation, frames = Dataset(), Dataset(), Dataset(), []
    measures.PixelSpacing, measures.SliceThickness = [2, 2], 1.25
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    for dataset in slices:
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = dataset.ImagePositionPatient
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    one.SharedFunctionalGroupsSequence, one.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
    one.PixelData = b"".join(dataset.PixelData for dataset in slices)
    series = one_series(save([one], tmp_path))
    assert (series.size, series.voxel_mm, series.why, series.problem) == ((60, 70, 90), HEAD, "", "")


@pytest.mark.promise("dicom")
@pytest.mark.parametrize(
    "tags, reason",
    [
        ({}, ""),
        ({"SeriesDescription": "SECRET", "ScanningSequence": "GR", "InversionTime": None}, ""),
        ({name: None for name in ("SeriesDescription", "ScanningSequence", "MRAcquisitionType", "EchoTime")}, ""),
        ({"SeriesDescription": "t1_space_sag", "ScanningSequence": "SE", "EchoTime": 20}, ""),
        ({"MRAcquisitionType": "2D"}, "2D, slices of 1.2 mm"),
        ({"SeriesDescription": "t2_space_dark-fluid_sag"}, "FLAIR, not T1-weighted"),
        ({"SeriesDescription": "T2 SPACE"}, "T2, not T1-weighted"),
        ({"SeriesDescription": "AAHead_Scout"}, "localizer, not T1-weighted"),
        ({"SeriesDescription": "tof_fl3d"}, "angiography, not T1-weighted"),
        ({"SeriesDescription": "mp2rage_INV2"}, "part, not T1-weighted"),
        ({"SeriesDescription": "SECRET", "ProtocolName": "SWI"}, "SWI, not T1-weighted"),
        ({"SeriesDescription": "SECRET", "EchoTime": 20}, "an echo time of 20 ms"),
        ({"SeriesDescription": "SECRET", "InversionTime": 2400}, "an inversion time of 2400 ms"),
        ({"SeriesDescription": "SECRET", "ScanningSequence": "EP"}, "echo-planar"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "a reformatted series"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P"]}, "phase"),
        ({"Modality": "CT", "SOPClassUID": CT}, "CT, no MRI"),
    ],
)
def test_series_are_chosen_by_their_tags(array, tmp_path, tags, reason):
    series = one_series(save(slices_of(array, HEAD, **tags), tmp_path))
    assert series.why == reason and not series.problem
    assert "SECRET" not in series.name


def test_series_are_chosen_by_their_voxels(array, tmp_path):
    for name, voxels, planes, reason in (
        ("thick", (2.0, 2.0, 4.8), 30, "slices of 4.8 mm"),
        ("slab", HEAD, 40, "covers 50 mm, not a head"),
        ("slice", HEAD, 1, "one slice"),
    ):
        folder = save(slices_of(array[..., :planes], voxels), tmp_path / name)
        assert one_series(folder).why == reason, name


@pytest.mark.promise("dicom")
def test_what_is_no_single_volume_is_said(array, tmp_path):
    slices = slices_of(array, HEAD)
    echoes = slices + slices_of(array, HEAD, EchoTime=6, SOPInstanceUID=lambda k: f"1.2.3.9.{k + 1}")
    volumes = slices + slices_of(array, HEAD, SOPInstanceUID=lambda k: f"1.2.3.9.{k + 1}")
    turned = slices_of(
        array, HEAD, ImageOrientationPatient=lambda k: [1, 0, 0, 0, 1, 0] if k < 50 else [0, 1, 0, 0, 0, -1]
    )
    uneven = slices_of(array, HEAD, ImagePositionPatient=lambda k: [0, 0, 1.25 * k + 0.4 * (k > 50)])
    for name, some, problem in (
        ("missing", [s for k, s in enumerate(slices) if k not in (30, 31, 70)], "3 of 90 slices missing"),
        ("echoes", echoes, "2 echoes in one series"),
        ("volumes", volumes, "2 volumes in one series"),
        ("turned", turned, "slices of two orientations in one series"),
        ("uneven", uneven, "slices at uneven distances"),
    ):
        series = one_series(save(some, tmp_path / name))
        assert not series.why and series.problem.startswith(problem), (name, series.problem)
    path = save(slices, tmp_path / "cut") / "IM0040"
    path.write_bytes(path.read_bytes()[:-100])
    assert one_series(tmp_path / "cut").problem.startswith("1 of its 90 slices cut off")


def test_cds_and_persons_are_told_apart_by_folder(array, tmp_path):
    """Of a folder of CDs each is one; series of one study in several folders are of one CD; copies are two."""
    for name, uid in (("CD1/DICOM/A", "1.2.3"), ("CD2/DICOM/A", "1.2.4"), ("CD3/DICOM/A", "1.2.4")):
        save(slices_of(array, HEAD, uid=uid), tmp_path / name)
    save(slices_of(array, HEAD, number=5, uid="1.2.3", SeriesDescription="T2"), tmp_path / "CD1/DICOM/B")
    packed(tmp_path / "CD1", tmp_path / "CD4.zip")
    chosen = choose(find_discs([tmp_path], tmp_path / "out"))
    items = find_items([tmp_path], tmp_path / "out", chosen)
    assert [item.name for item in items] == [f"CD{k}/S4_T1" for k in (1, 2, 3, 4)]
    assert [
        item.name for item in find_items([tmp_path / "CD1"], tmp_path, choose(find_discs([tmp_path / "CD1"], "")))
    ] == ["S4_T1"]
    assert set(left_out([tmp_path], tmp_path / "out", chosen).values()) == {"T2, not T1-weighted"}
    text = listing(chosen)
    assert text.count("taken: S4_T1") == 4 and "SECRET" not in text
    several = choose(find_discs([tmp_path], tmp_path / "out"), "[5]")
    assert [item.series.number for item in find_items([tmp_path], "", several) if item.series] == [5, 5]
    for text, words in (("7", "no series 7; there are 4, 5"), ("T1", "expected all, or numbers")):
        with pytest.raises(UserError, match=words):
            choose(find_discs([tmp_path], ""), text)


def test_single_files_count_for_their_folder(array, tmp_path):
    files = sorted(save(slices_of(array, HEAD), tmp_path / "a").iterdir())
    (item,) = find_items(files, "", choose(find_discs(files, "")))
    assert item.name == "S4_T1" and len(item.series.files) == 90
    (item,) = find_items(files[:1], "", choose(find_discs(files[:1], "")))
    assert "S4_T1: one slice" in item.problem


# ---- headers that lie


def test_broken_headers_end_in_nothing(array, tmp_path):
    """2,000 mutations: each is read, or is no DICOM file, in a moment."""
    content = next(save(slices_of(array[..., :1], HEAD), tmp_path).iterdir()).read_bytes()
    header, rng, start = content[:1200], random.Random(0), time.monotonic()
    for _ in range(2000):
        broken = bytearray(header + content[-100:])
        for _ in range(rng.choice([1, 3, 20])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        del broken[rng.randrange(len(broken)) :]
        read_header(io.BytesIO(broken), len(broken))
    nested = (
        bytes(128) + b"DICM" + b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\0\xe0\xff\xff\xff\xff" * 100_000
    )
    assert not read_header(io.BytesIO(nested), len(nested)).is_image
    assert time.monotonic() - start < 20


# ---- conversion

needs_dcm2niix = pytest.mark.skipif(
    not shutil.which("dcm2niix") and not convert.importlib.util.find_spec("dcm2niix"), reason="no dcm2niix"
)


@needs_dcm2niix
@pytest.mark.parametrize("kind", ["explicit", "raw", "no preamble", "rle"])
def test_a_series_becomes_the_array_it_was(array, tmp_path, kind):
    slices = slices_of(array, HEAD)
    folder = save(slices, tmp_path / "in", preamble=kind != "raw")
    if kind == "no preamble":
        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[132:])
    if kind == "rle":
        import pydicom

        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
            dataset.save_as(path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "work").mkdir()
    image = nib.as_closest_canonical(nib.load(fetch(one_series(folder), tmp_path / "work")))
    assert np.array_equal(np.asarray(image.dataobj), array)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@needs_dcm2niix
def test_dcm2niix_has_limits_and_its_end_is_said(array, tmp_path, monkeypatch):
    series = one_series(save(slices_of(array, HEAD), tmp_path / "in"))

    def fails(words, number):
        (tmp_path / f"work{number}").mkdir()
        with pytest.raises(UserError, match=words):
            fetch(series, tmp_path / f"work{number}")

    monkeypatch.setattr(convert, "_MOST_BYTES", 10)
    monkeypatch.setattr(convert, "_POLL_SECONDS", 0.001)
    fails("wrote more than", 1)
    monkeypatch.setattr(convert, "_MOST_BYTES", 2**30)
    monkeypatch.setattr(convert, "_SECONDS", 0)
    fails("took more than 0 s", 2)
    monkeypatch.setattr(convert, "_SECONDS", 60)
    cut = sorted((tmp_path / "in").iterdir())[40]
    cut.write_bytes(cut.read_bytes()[:-1000])  # since it was looked at
    fails("a slice is cut off, says dcm2niix", 3)
    monkeypatch.setattr(convert, "find_dcm2niix", lambda: sys.executable)  # which knows no such options
    fails("could not convert it", 4)


@pytest.mark.skipif(os.name != "posix", reason="a script as a program")
def test_dcm2niix_killed_or_missing(array, tmp_path, monkeypatch):
    series = one_series(save(slices_of(array, HEAD), tmp_path / "in"))
    program = tmp_path / "dcm2niix"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match=r"could not convert it \(code -9\)"):
        fetch(series, tmp_path / "work")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(UserError, match="missing; pip install -r requirements-dicom.txt"):
        fetch(series, tmp_path / "other")


def test_other_warnings_are_told_and_never_quoted(array, tmp_path):
    for text, words in (("Warning: Weird name SECRET\n", True), ("Warning: Patient Position (0018,5100)\n", False)):
        assert convert.has_other_warnings(f"Convert 3\n{text}") == words
    slices = slices_of(array, HEAD)
    save(slices[3:], tmp_path / "late")
    assert "slices 1 to 3 may be missing at one end" in listing(choose(find_discs([tmp_path / "late"], "")))
    save(slices_of(array, HEAD, InstanceNumber=lambda k: k + 91), tmp_path / "behind")
    assert not one_series(tmp_path / "behind").note
