"""NIfTI files: any that are honest are read, the others are refused in one line."""

import gzip
import tracemalloc

from hippo.data import nifti as module
from hippo.data.nifti import MAX_VOXELS, orientation_flags, read_nifti, save_labels
from hippo.data.spatial import resample
from hippo.errors import UserError

import nibabel as nib
import numpy as np
import pytest


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_reads_any_orientation_and_type(nifti, dtype):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(dtype)
    path = nifti("ras.nii.gz", array)
    expected, _ = read_nifti(path)
    assert np.array_equal(expected, array)
    stored = nib.load(path)
    for code in ("LPS", "PIR", "ASL"):
        turned = stored.as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.orientations.axcodes2ornt(code))
        )
        nib.save(turned, path.with_name("turned.nii.gz"))
        assert np.array_equal(read_nifti(path.with_name("turned.nii.gz"))[0], array)


def header_with(path, **values):
    """Rewrites fields of a .nii file's header in place."""
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in values.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(content[348:]))


VOLUME = np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8)


@pytest.mark.promise("hostile_files")
@pytest.mark.parametrize(
    "values, words",
    [
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, "30000 x 30000"),
        ({"dim": [3, -6, 7, 8, 1, 1, 1, 1]}, ""),
        ({"dim": [3, 0, 7, 8, 1, 1, 1, 1]}, ""),
        ({"pixdim": [1, 1, 1, np.nan, 1, 1, 1, 1], "sform_code": 0}, ""),
        ({"srow_x": [0, 0, 0, 0]}, "affine"),
        ({"srow_x": [np.nan, 0, 0, 0]}, ""),
        ({"datatype": 32, "bitpix": 64}, "complex"),
        ({"dim": [2, 6, 7, 1, 1, 1, 1, 1]}, "2D"),
        ({"vox_offset": 1e9}, ""),
    ],
)
def test_hostile_headers(nifti, values, words):
    path = nifti("hostile.nii", VOLUME)
    header_with(path, **values)
    with pytest.raises(UserError, match=f"hostile.nii.*{words}"):
        read_nifti(path)


def test_bad_files(nifti, tmp_path):
    whole = nifti("whole.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    (tmp_path / "cut.nii.gz").write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "text.nii.gz").write_text("not a volume")
    with gzip.open(tmp_path / "zipped_text.nii.gz", "wt") as file:
        file.write("not a volume" * 100)
    (tmp_path / "empty.nii.gz").touch()
    for name in ("cut", "text", "zipped_text", "empty", "absent"):
        with pytest.raises(UserError, match=f"{name}.nii.gz"):
            read_nifti(tmp_path / f"{name}.nii.gz")
    for value in (np.nan, np.inf, 1e300):
        with pytest.raises(UserError, match="1 voxels are NaN or infinite"):
            read_nifti(nifti("bad.nii.gz", np.where(np.arange(60).reshape(3, 4, 5) == 7, value, 1.0)))
    with pytest.raises(UserError, match="4D"):
        read_nifti(nifti("four.nii.gz", np.zeros((4, 4, 4, 2))))


def test_a_head_of_small_voxels_is_not_too_large(nifti, monkeypatch):
    """366 x 366 x 274 voxels of 0.7 mm are read; a header that promises more than its file can hold is not."""
    assert 366 * 366 * 274 < 512**3 <= MAX_VOXELS
    small = nifti("small.nii", VOLUME)
    monkeypatch.setattr(module, "MAX_VOXELS", VOLUME.size)
    assert read_nifti(small)[0].shape == VOLUME.shape
    monkeypatch.setattr(module, "MAX_VOXELS", VOLUME.size - 1)
    with pytest.raises(UserError, match="expected 1 to 335 voxels"):
        read_nifti(small)


@pytest.mark.promise("hostile_files")
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_shorter_than_its_header_says(nifti, tmp_path, ending):
    """Refused before memory is asked for: 800^3 voxels in a file of kilobytes."""
    path = nifti("liar.nii", VOLUME)
    header_with(path, dim=[3, 800, 800, 800, 1, 1, 1, 1])
    if ending == ".nii.gz":
        path = tmp_path / "liar.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "liar.nii").read_bytes()))
    tracemalloc.start()
    with pytest.raises(UserError, match="shorter than its header says"):
        read_nifti(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_a_trailing_axis_of_one_is_dropped(nifti):
    array, image = read_nifti(nifti("a.nii.gz", VOLUME[..., None], np.diag([-1, 1, 1, 1])))
    assert np.array_equal(array, VOLUME[::-1]) and image.shape == (6, 7, 8, 1)


def test_dicom_is_told_of_its_converter(tmp_path):
    path = tmp_path / "IM0001.dcm"
    path.write_bytes(bytes(128) + b"DICM" + bytes(100))
    with pytest.raises(UserError, match="IM0001.dcm: a DICOM file; give predict.py the folder"):
        read_nifti(path)


# ---- resampling


@pytest.mark.promise("half_a_voxel")
def test_resampling_keeps_places():
    """A ramp stays the same ramp: half a voxel off would fail."""
    n, m = 40, 23
    ramp = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None], (n, 5, 6))
    for size in (m, 2 * n, 3 * n):
        expected = (np.arange(size) + 0.5) * n / size - 0.5
        inner = (expected > 4) & (expected < n - 5)  # edges are replicated
        result = resample(ramp, (size, 5, 6))
        assert np.abs(result[inner, 2, 3] - expected[inner]).max() < 1e-3


def test_integers_are_not_truncated_when_they_shrink():
    array = np.random.default_rng(0).integers(0, 7, (20, 20, 20)).astype(np.uint8)
    result = resample(array, (9, 9, 9))
    assert result.dtype == np.float32 and np.allclose(result, resample(array.astype(np.float32), (9, 9, 9)))
    assert resample(array, array.shape).dtype == np.float32 and resample(array, (9, 9, 9), order=0).dtype == np.uint8


@pytest.mark.promise("orientations")
@pytest.mark.parametrize(
    "sform, qform, flags",
    [
        (1, 1, []),
        (2, 0, ["sform_only"]),
        (0, 1, ["qform_only"]),
        (0, 0, ["no_orientation"]),
        ("moved", 1, ["sform_qform_disagree"]),
        ("mirrored", 1, ["sform_qform_disagree", "sform_qform_sides_differ"]),
    ],
)
def test_doubts_about_the_header_are_flags_and_both_forms_are_kept(tmp_path, sform, qform, flags):
    affine = nib.affines.from_matvec(np.diag([1.0, 1.2, 1.5]), [3, 4, 5])
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), affine)
    image.set_qform(affine, code=qform)
    other = {"moved": affine + np.eye(4)[:, [3, 1, 2, 0]] * 0 + np.outer([5, 0, 0, 0], [0, 0, 0, 1])}
    other["mirrored"] = affine @ np.diag([-1.0, 1, 1, 1])
    image.set_sform(other.get(sform, affine), code=2 if isinstance(sform, str) else sform)
    nib.save(image, tmp_path / "in.nii.gz")
    array, stored = read_nifti(tmp_path / "in.nii.gz")
    assert orientation_flags(stored) == flags
    save_labels(tmp_path / "out.nii.gz", np.zeros((4, 5, 6), np.uint8), stored, "labels")
    result = nib.load(tmp_path / "out.nii.gz")
    for form in ("get_sform", "get_qform"):
        (ours, our_code), (theirs, code) = (getattr(i, form)(coded=True) for i in (result, stored))
        assert our_code == code and (code == 0 or np.allclose(ours, theirs, atol=1e-5))
    assert np.allclose(result.affine, stored.affine)


def test_mgz_in_nifti_out(tmp_path):
    array = np.random.default_rng(0).integers(0, 200, (20, 24, 28)).astype(np.uint8)
    affine = nib.affines.from_matvec([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], [10, -12, 14])  # FreeSurfer's LIA
    nib.save(nib.MGHImage(array, affine), tmp_path / "in.mgz")
    read, image = read_nifti(tmp_path / "in.mgz")
    assert orientation_flags(image) == []
    expected = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    assert np.array_equal(read, np.asarray(expected.dataobj))
    save_labels(tmp_path / "out.nii.gz", (array > 100).astype(np.uint8), image, "labels")
    result = nib.load(tmp_path / "out.nii.gz")
    assert np.allclose(result.affine, affine) and result.header["sform_code"] == result.header["qform_code"] == 1
    (tmp_path / "cut.mgz").write_bytes((tmp_path / "in.mgz").read_bytes()[:900])
    with pytest.raises(UserError, match="cut.mgz"):
        read_nifti(tmp_path / "cut.mgz")
