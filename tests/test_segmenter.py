"""The engine: its settings, its results, and that what it takes and gives is what predict.py takes and gives."""

import csv
from dataclasses import fields

import predict
from hippo.errors import UserError
from hippo.heads.flags import FLAGS
from hippo.heads.scan import read_scan
from hippo.options import constants
from hippo.segmenter import Segmenter, Settings

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope="module")
def segmenter(whole):
    """Of a small network of phantoms."""
    weights = str(whole["3d"] / "last.pth")
    return Segmenter.load(checkpoint=weights, partner="", any_contrast="", side="left", device="cpu")


def test_settings_are_the_constants_of_predict():
    known = {name.lower(): value for name, (value, _) in constants(vars(predict)).items()}
    for field in fields(Settings):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert default == known[field.name], field.name
    # weights have checksums, and the device has its precision
    weights = {"checkpoint", "partner", "any_contrast", "locate", "sampler", "device"}
    assert {field.name for field in fields(Settings)} - weights <= {*predict._SETTINGS} <= {*known}
    others = {"out_dir", "participant_label", "session_label", "series", "overwrite", "etiv", "prefer", "adjustment"}
    others |= {"workers", "shard", "collect"}  # no result depends on them
    assert {*known} == {field.name for field in fields(Settings)} | {*predict._SETTINGS} | others
    with pytest.raises(UserError, match="no argument .'colour'.; expected .*checkpoint"):
        Segmenter.load(colour="red")
    with pytest.raises(UserError, match="--contrast=t2: expected auto, t1 or any"):
        Segmenter.load(contrast="t2")


def test_a_result_is_what_predict_writes(segmenter, run_study, phantoms, tmp_path):
    path = phantoms / "imagesTr" / "phantom_001.nii.gz"
    result = segmenter(path)
    side = result.left
    assert result.right is None and result.sides == (side,) and result.etiv_mm3 is None and result.etiv_source == ""
    assert side.total_mm3 == side.anterior_mm3 + side.posterior_mm3 == np.count_nonzero(side.labels)
    assert set(side.flags) | set(result.flags) <= set(FLAGS.values()) and "low_quality" in map(str, side.flags)
    assert run_study(path)[0] == 0
    with open(tmp_path / "out" / "volumes.csv", newline="") as file:
        (theirs,) = csv.DictReader(file)
    (mine,) = result.rows()
    assert {name: theirs[name] for name in mine if name != "seconds"} == {
        k: v for k, v in mine.items() if k != "seconds"
    }
    names = ["phantom_001_hippocampus.png", "phantom_001_seg.nii.gz"]
    assert sorted(file.name for file in result.save(tmp_path / "mine")) == names
    for name in names:
        assert (tmp_path / "mine" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


def test_an_image_in_memory_gives_what_its_file_gives(segmenter, phantoms, tmp_path):
    path = phantoms / "imagesTr" / "phantom_002.nii.gz"
    image = nib.load(path)
    made = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    expected = segmenter(path).labels()
    for source in (image, made, read_scan(path)):
        assert np.array_equal(segmenter(source).labels(), expected)
    assert [file.name for file in segmenter(made).save(tmp_path)] == ["image_seg.nii.gz", "image_hippocampus.png"]
    assert [file.name for file in segmenter(made).save(tmp_path, "b")] == ["b_seg.nii.gz", "b_hippocampus.png"]
    with pytest.raises(UserError, match="image: expected a 3D volume"):
        segmenter(nib.Nifti1Image(np.zeros((20, 20, 20, 2), np.float32), np.eye(4)))


def test_a_head_gives_both_sides_and_its_etiv(segmenter, brain):
    result = segmenter(brain[1] / "whole.nii.gz", etiv_mm3=np.float32(1.5e6))  # a number of any kind
    assert [side.side for side in result.sides] == ["left", "right"] and result.etiv_source == "given"
    assert result.etiv_mm3 == 1.5e6 and {row["etiv_mm3"] for row in result.rows()} == {"1500000"}
    assert set(np.unique(result.labels())) <= {0, 1, 2, 3, 4}
    assert segmenter(brain[1] / "whole.nii.gz").etiv_source == "network"
    assert {*result.all_flags} == {*result.flags, *result.sides[0].flags, *result.sides[1].flags}
    for etiv in (1480, -5, "1480000"):
        with pytest.raises(UserError, match="etiv_mm3: .* is no intracranial volume"):
            segmenter(brain[1] / "whole.nii.gz", etiv_mm3=etiv)
    with pytest.raises(UserError, match="a folder; expected one scan"):
        segmenter(brain[1])
