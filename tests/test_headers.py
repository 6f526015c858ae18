"""What headers and intensities say that is not so, each after somebody's public report: it is mended, flagged or refused."""

import gzip
import io
import os
from pathlib import Path

import predict
from hippo.data.nifti import orientation_flags, read_nifti, save_labels
from hippo.errors import UserError
from hippo.heads.locate import load_locator, locate
from hippo.heads.scan import _is_label_map, read_scan
from hippo.heads.segment import segment
from hippo.options import configure
from hippo.study.inputs import find_items

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.ndimage import binary_dilation
from test_sharing import table

CPU = torch.device("cpu")
CROP = ROOT / "Task04_Hippocampus/imagesTr/hippocampus_338.nii.gz"


# ---- headers


def rewritten(path, target, **fields):
    """A copy of a NIfTI file, uncompressed, some fields of its header replaced."""
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    header = nib.Nifti1Header(content[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    target.write_bytes(header.binaryblock + content[348:])
    return target


@pytest.mark.promise("headers")
@pytest.mark.parametrize("ending", [".mgz", ".mgh"])
def test_an_mgz_without_an_orientation_has_freesurfers_and_a_flag(tmp_path, ending):
    """nibabel mends the flag when it reads, and turns the axes otherwise than FreeSurfer, whose default is LIA at 1 mm."""
    affine = nib.affines.from_matvec(np.diag([2.0, 2, 2]), [1, 2, 3])
    nib.save(
        nib.MGHImage(np.arange(24 * 20 * 16, dtype=np.float32).reshape(24, 20, 16), affine), tmp_path / f"a{ending}"
    )
    assert orientation_flags(read_nifti(tmp_path / f"a{ending}")[1]) == []
    content = (tmp_path / f"a{ending}").read_bytes()
    content = bytearray(gzip.decompress(content) if ending == ".mgz" else content)
    content[28:30] = b"\0\0"
    (tmp_path / f"a{ending}").write_bytes(gzip.compress(content) if ending == ".mgz" else content)
    _, image = read_nifti(tmp_path / f"a{ending}")
    assert orientation_flags(image) == ["no_orientation"]
    assert nib.aff2axcodes(image.affine) == ("L", "I", "A") and np.allclose(image.affine[:3, 3], [12, -8, 10])
    assert np.allclose(nib.affines.voxel_sizes(image.affine), 1)


@pytest.mark.parametrize("sform_code", [0, 1])
def test_a_quaternion_a_little_too_long_is_a_rotation(run_study, scans, tmp_path, sform_code):
    """Rounded to float32 by a converter; a valid sform beside it, or not."""
    source = scans / "phantom_001.nii.gz"
    fields = {"qform_code": 1, "sform_code": sform_code, "quatern_b": 0, "quatern_c": 1.0000005, "quatern_d": 0}
    path = rewritten(source, tmp_path / "long.nii", **fields)
    _, image = read_nifti(path)
    assert "no_orientation" not in orientation_flags(image)
    save_labels(tmp_path / "labels.nii.gz", np.zeros(image.shape, np.uint8), image, "labels")
    result = nib.load(tmp_path / "labels.nii.gz")  # which another program can read
    assert np.allclose(result.affine, image.affine) and np.allclose(result.get_qform(), image.get_qform(), atol=1e-5)
    assert run_study(path, "--pictures=False")[0] == 0
    broken = rewritten(source, tmp_path / "broken.nii", **{**fields, "quatern_c": 1.5})
    if sform_code:
        assert "sform_only" in orientation_flags(read_nifti(broken)[1])
    else:
        with pytest.raises(UserError, match="broken.nii"):
            read_nifti(broken)


@pytest.mark.promise("headers")
def test_two_voxel_sizes_are_a_flag(scans, tmp_path):
    image = nib.load(scans / "phantom_001.nii.gz")
    affine = image.affine.copy()
    affine[:3, :3] *= 1.08
    rows = {f"srow_{axis}": affine[i] for i, axis in enumerate("xyz")}
    path = rewritten(scans / "phantom_001.nii.gz", tmp_path / "a.nii", **rows, sform_code=1, qform_code=0)
    assert "spacing_differs" in orientation_flags(read_nifti(path)[1])
    assert "spacing_differs" not in orientation_flags(image)


@pytest.mark.promise("headers")
def test_a_checksum_that_fails_is_no_scan(nifti, tmp_path):
    """Flipped bits in what is unpacked without an error."""
    whole = bytearray(
        nifti("whole.nii.gz", np.random.default_rng(0).random((30, 30, 30)).astype(np.float32)).read_bytes()
    )
    rng, refused = np.random.default_rng(1), 0
    for _ in range(24):
        content = bytearray(whole)
        content[rng.integers(len(whole) // 10, len(whole) - 8)] ^= 4
        (tmp_path / "flipped.nii.gz").write_bytes(content)
        with pytest.raises(UserError, match="flipped.nii.gz: not a readable file.*copy or export it again"):
            read_nifti(tmp_path / "flipped.nii.gz")
        refused += 1
    assert refused == 24 and read_nifti(tmp_path / "whole.nii.gz")


@pytest.mark.promise("headers")
def test_names_and_contents_that_do_not_fit_have_the_right_advice(scans, tmp_path):
    packed = (scans / "phantom_001.nii.gz").read_bytes()
    mgh = io.BytesIO()
    nib.MGHImage(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_file_map({"image": nib.FileHolder(fileobj=mgh)})
    cases = {
        "a.nii.gz": (gzip.decompress(packed), "not gzipped.*rename it to a.nii$"),
        "b.nii": (packed, "gzipped.*rename it to b.nii.gz$"),
        "c.mgz": (mgh.getvalue(), "not gzipped.*rename it to c.mgh$"),
        "d.nii.gz": (b"/annex/objects/MD5E-s600--01.nii.gz", "pointer.*datalad get"),
        "e.nii.gz": (b"../../.git/annex/objects/xx/yy/MD5E-s123--abc.nii.gz", "pointer.*datalad get"),
        "f.nii.gz": (b"version https://git-lfs.github.com/spec/v1\n", "pointer"),
        "g.nii.gz": (b"", "copy or export it again"),
    }
    for name, (content, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: .*{words}"):
            read_nifti(tmp_path / name)
    if hasattr(os, "symlink"):
        for target, words in (
            (".git/annex/objects/x.nii.gz", "git-annex link.*datalad get"),
            ("none", "a link to none"),
        ):
            (tmp_path / "link.nii.gz").unlink(missing_ok=True)
            (tmp_path / "link.nii.gz").symlink_to(target)
            with pytest.raises(UserError, match=words):
                read_nifti(tmp_path / "link.nii.gz")
            assert [item.path.name for item in find_items([tmp_path], tmp_path / "out") if "link" in item.name]


@pytest.mark.parametrize("unit, factor", [(1, 1e-3), (3, 1e3)])
def test_metres_and_microns_are_named(scans, tmp_path, unit, factor):
    image = nib.load(scans / "phantom_001.nii.gz")
    affine = image.affine.copy()
    affine[:3] *= factor
    scaled = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    scaled.header["xyzt_units"] = unit
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    with pytest.raises(
        UserError, match="voxels of .* (meter|micron) by the header; write its affine and its unit in mm"
    ):
        read_scan(tmp_path / "scaled.nii.gz")
    path = rewritten(scans / "phantom_001.nii.gz", tmp_path / "a.nii", xyzt_units=unit)
    assert "units_not_mm" in read_scan(path).flags


# ---- intensities


def test_a_brain_standardised_inside_its_mask_keeps_its_etiv(brain):
    """Zeros around, and half of the brain below them: the background is not the darkest value."""
    array, folder = brain
    inside, locator, etivs = array > 0, load_locator(predict.LOCATE), {}
    standardised = np.where(inside, (array - array[inside].mean()) / array[inside].std(), 0).astype(np.float32)
    for name, values in {"plain": array, "standardised": standardised, "bright": np.where(inside, array, 5000)}.items():
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), folder / f"{name}.nii.gz")
        etivs[name] = locate(locator, read_scan(folder / f"{name}.nii.gz"), CPU, None).etiv_mm3
    assert etivs["plain"] > 5e5
    assert etivs["standardised"] == pytest.approx(etivs["plain"], rel=0.02), etivs
    assert etivs["bright"] == pytest.approx(etivs["plain"], rel=0.02), etivs


@pytest.mark.data
def test_scans_of_few_grey_levels_or_doubled_slices_are_no_label_maps():
    array = np.asarray(nib.load(CROP).dataobj).astype(np.float32)
    label = np.asarray(nib.load(CROP.parents[1] / "labelsTr" / CROP.name).dataobj)
    for axis in range(3):
        doubled = np.repeat(array, 2, axis)
        for scan in (doubled, np.delete(doubled, 0, axis), np.repeat(array, 3, axis)):  # one voxel off, too
            assert not _is_label_map(scan)
    assert not _is_label_map(np.round(array / array.max() * 16))
    assert not _is_label_map(array.astype(np.uint8)[..., ::-1])
    for labels in (
        label,
        label.astype(np.float32),
        np.repeat(label, 2, 0),
        1.0 * (label > 0),
        1.0 * (array > np.median(array)),
    ):
        assert _is_label_map(labels)
        changed = np.array(labels)
        changed[5, 5, 5] += 1  # one voxel off
        assert _is_label_map(changed)


# ---- what is no hippocampus


@pytest.mark.promise("fluid")
@pytest.mark.data
def test_a_hippocampus_in_fluid_is_none(tmp_path):
    """Cut out, with 2 mm around it, and fluid in its place: the networks draw one, and are sure of it."""
    image = nib.load(CROP)
    array = np.asarray(image.dataobj).astype(np.float32)
    label = np.asarray(nib.load(CROP.parents[1] / "labelsTr" / CROP.name).dataobj)
    rng = np.random.default_rng(0)
    fluid = np.percentile(array, 3) + rng.normal(0, array.std() * 0.05, array.shape)
    anterior = label == 1
    for name, gone in {"all": label > 0, "half": anterior}.items():
        cut = np.where(binary_dilation(gone, iterations=2), fluid, array).astype(np.float32)
        nib.save(nib.Nifti1Image(cut, image.affine), tmp_path / f"{name}.nii.gz")
    cfg = configure(vars(predict), [str(tmp_path)], "scans", out_dir=str(tmp_path / "out"), pictures=False, side="left")
    predict.run(cfg)
    rows = {Path(row["scan"]).stem[:4].rstrip("."): row for row in table(tmp_path / "out" / "volumes.csv")}
    assert "lies in fluid" in rows["all"]["flags"] and not rows["all"]["total_mm3"]
    assert "in_fluid" in rows["half"]["flags"]


def test_a_whole_brain_below_100_mm_is_told_of_its_voxel_size(brain):
    array, folder = brain
    voxels = np.argwhere(array > 0)
    cut = array[tuple(map(slice, voxels.min(0), voxels.max(0) + 1))]
    nib.save(nib.Nifti1Image(cut, np.diag([0.5, 0.5, 0.5, 1])), folder / "small.nii.gz")
    scan = read_scan(folder / "small.nii.gz")
    assert scan.is_crop
    (side,), _ = segment([], load_locator(predict.LOCATE), scan, CPU, None)
    assert "no hippocampus found in this crop" in side.problem and "wrong voxel size" in side.problem
