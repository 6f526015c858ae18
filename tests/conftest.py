import contextlib
import io
import os
import shutil
import sys
import time
from pathlib import Path

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # before torch is loaded: threads share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import data_aug
import phantom
import predict
import train2d
import train_3d
from hippo.heads.locate import load_locator, locate
from hippo.heads.scan import read_scan
from hippo.options import configure, run_script

import nibabel as nib
import numpy as np
import pytest
import torch
from runs import SMALL_2D, SMALL_3D
from scipy.ndimage import binary_dilation

ROOT = Path(__file__).parent.parent
DATA = ROOT / "Task04_Hippocampus"


def pytest_collection_modifyitems(config, items):
    there = (DATA / "imagesTr").is_dir() and any((DATA / "imagesTr").glob("*.nii.gz"))
    for item in items:
        if "data" in item.keywords and not there:
            item.add_marker(
                pytest.mark.skip(reason="no real volumes in Task04_Hippocampus/imagesTr (python get_data.py)")
            )
        if "slow" in item.keywords and "slow" not in (config.option.markexpr or ""):
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A folder of eight phantoms; not to be changed by a test."""
    root = tmp_path_factory.mktemp("data") / "phantom set"  # with a space, on purpose
    phantom.run(configure(vars(phantom), [], out_dir=str(root), cases=8))
    return root


@pytest.fixture(scope="session")
def jobs(phantoms, tmp_path_factory):
    """{name: (training script, its options)} of a small 3D and a small 2D run."""
    slices = tmp_path_factory.mktemp("slices") / "dataset_2d"
    options = ["--size=32", "--slices_per_plane=2", f"--data_root={phantoms}", f"--out_dir={slices}"]
    data_aug.run(configure(vars(data_aug), [*options, "--num_workers=1"]))
    return {
        "3d": (train_3d, (*SMALL_3D, f"--data_root={phantoms}")),
        "2d": (train2d, (*SMALL_2D, f"--data_root={phantoms}", f"--data_dir={slices}")),
    }


@pytest.fixture(scope="session")
def whole(jobs, tmp_path_factory):
    """{name: folder of a run that was never interrupted}; not to be changed by a test."""
    folders = {}
    for name, (module, options) in jobs.items():
        folders[name] = tmp_path_factory.mktemp("whole") / name
        module.run(configure(vars(module), [*options, f"--out_dir={folders[name]}"]))
    return folders


@pytest.fixture
def script(monkeypatch):
    """Runs a script's main() as the shell would: script(module, "--epochs=1", ...) returns (exit code, stdout, stderr)."""

    def run(module, *argv):
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, argv)])
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run_script(module.main)
            except SystemExit as stop:
                code = stop.code or 0
        return code, out.getvalue(), err.getvalue()

    return run


@pytest.fixture
def study(phantoms, tmp_path):
    """A BIDS data set of crops: two participants, one with two sessions and two runs, and much that is no T1 of them."""
    root, sources = tmp_path / "study", sorted((phantoms / "imagesTr").iterdir())
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "Crops", "BIDSVersion": "1.8.0", "License": "CC0"}')
    names = [
        "sub-01/ses-1/anat/sub-01_ses-1_run-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_run-2_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-02/anat/sub-02_T1w.nii.gz",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/dwi/sub-02_T1w.nii.gz",
        "derivatives/other/sub-03/anat/sub-03_T1w.nii.gz",
        "sub-02/anat/._sub-02_T1w.nii.gz",
    ]
    for name, source in zip(names, sources):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / name)
    return root


@pytest.fixture
def run_study(script, whole, tmp_path):
    """Runs predict.py with a small model of phantoms into tmp_path/out."""
    model = whole["3d"] / "last.pth"
    fixed = (f"--checkpoint={model}", "--partner=", "--any_contrast=", f"--out_dir={tmp_path / 'out'}", "--side=left")
    return lambda *argv: script(predict, *fixed, *argv)


@pytest.fixture(scope="module")
def model(whole):
    """Options for a small network of phantoms, for serve.py."""
    return f"--checkpoint={whole['3d'] / 'last.pth'}", "--partner=", "--device=cpu"


@pytest.fixture(scope="module")
def crops(phantoms):
    """{name: bytes} of crops."""
    return {path.name: path.read_bytes() for path in sorted((phantoms / "imagesTr").iterdir())}


@pytest.fixture
def nifti(tmp_path):
    """Writes an array as a NIfTI file below tmp_path and returns its path."""

    def write(name, array, affine=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def scans(phantoms, tmp_path):
    """A folder with three crops of phantoms, which a test may change."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for source in sorted((phantoms / "imagesTr").iterdir())[:3]:
        shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="session")
def brain(tmp_path_factory):
    """(array (D, H, W) of a phantom's brain, zero outside, its folder)."""
    labels, shape = phantom.make_head(np.random.default_rng(3))
    array = phantom.scan_head(labels, shape, np.eye(3), np.random.default_rng(4))[0].astype(np.float32)
    folder = tmp_path_factory.mktemp("head")
    nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "whole.nii.gz")
    found = locate(load_locator(predict.LOCATE), read_scan(folder / "whole.nii.gz"), torch.device("cpu"), None)
    centre = found.window.to_mm(np.argwhere(found.inside > 0.5)) + (np.array(array.shape) - 1) / 2
    inside = np.zeros(array.shape, bool)
    inside[tuple(np.clip(np.round(centre).astype(int), 0, np.array(array.shape) - 1).T)] = True
    brain = binary_dilation(inside, iterations=4)
    return np.where(brain, np.maximum(array, 1), 0), folder


def left_in(folder):
    """Files in a folder and in those inside it, while others may be deleting them."""
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names]


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def one_error_line(result, *words):
    """Asserts that a script's result is one clear line on stderr with these words, and exit code 2."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2, err
    assert len(lines) == 1 and "Traceback" not in err, err
    for word in words:
        assert str(word) in lines[0], lines[0]
