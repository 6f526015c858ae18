"""What the code promises, and the tests that show it."""

import ast
import re
from pathlib import Path

from hippo.errors import require
from hippo.scoring.tables import markdown_table

PROMISES = {
    "resume": (
        "A run that is killed at any moment and resumed ends with the history and weights of an uninterrupted run, "
        "bit for bit on one machine; in 2D and in grid searches too"
    ),
    "ctrl_c": "Ctrl-C saves the step it is in, and says how to go on",
    "seed": "The same seed gives the same history and weights on one machine; `config.json` holds what a repeat needs",
    "files": "A file is written whole or not at all, also on a full disk; an earlier result is never overwritten",
    "other_constants": (
        "A resumed run with other constants or data is refused; a constant that an older run lacks counts as its "
        "default"
    ),
    "clean": "What the scripts write by default leaves `git status` clean, and the published results as they are",
    "hostile_files": (
        "A checkpoint runs no code and takes no more memory than its file has weights; a NIfTI file with a false "
        "header is refused, within 1 GiB of memory"
    ),
    "archives": "An archive cannot write outside its folder",
    "not_finite": (
        "A step without a finite gradient is skipped and counted; a run of them stops, and says which checkpoint is "
        "good"
    ),
    "half_a_voxel": (
        "Half a voxel is noticed: in resampling, in 2D and 3D prediction, in augmentation, in the targets of deep "
        "supervision"
    ),
    "torchrun": (
        "`torchrun --nproc_per_node=2 train_3d.py` gives the history of one process, on CPU (gloo); the same code "
        "serves CUDA (nccl), where it was not run"
    ),
    "read_only": (
        "Data may be read-only, behind links, under names with spaces and letters of any language; nothing needs a "
        "display"
    ),
    "orientations": (
        "A head gives the same labels in all 48 orientations, voxel by voxel; sides come from the header; both "
        "forms of the header are kept, and doubts about it flagged"
    ),
    "volumes": "Volumes of a phantom head follow a known affine within 6 %; a shift, a neck, other voxels are found",
    "contrasts": (
        "Another contrast than T1 is segmented by the model for any contrast, and flagged; the models of T1 do not "
        "fail on it without a flag"
    ),
    "all_cases": (
        "`--fold=-2` trains on all cases, and says so in the checkpoint; a recipe gives way to the command line"
    ),
    "dropout": "Dropout is off outside training; the same seed gives the same samples of it",
    "misuse": (
        "Over thirty misuses give no number without a flag: another side, another contrast, noise, half a crop, an "
        "empty one, lying headers, heads upside down (most of them in the slow tests)"
    ),
    "quality": (
        "Less agreement never raises `quality`; the thresholds of `low_quality`, `asymmetric` and "
        "`implausible_volume` are constants of `predict.py`"
    ),
    "batch": (
        "A batch that is killed goes on where it stopped, and ends with the same files, byte for byte but for "
        "times; so do processes and shards"
    ),
    "dicom": "DICOM gives the labels of its NIfTI; what is no T1 in 3D, or not whole, is reported; no output names a person",
    "dicom_web": "The page takes DICOM as predict.py does, asks which series is meant, and leaves no upload",
    "settings": "Results of other settings are kept, and a folder in use is never renamed",
    "shared_folder": (
        "Runs that share a folder lose nothing, started together, killed, or on a drive without locks; scans of one "
        "name are told apart"
    ),
    "rows": "One scan's failure is a row, whatever it is; only a full disk or Ctrl-C ends a batch",
    "named": "What is not taken is named, and a person without a T1-weighted scan is a row",
    "headers": (
        "A file whose checksum fails is no scan; headers that contradict themselves are flagged or refused with advice"
    ),
    "fluid": "What lies in fluid is no hippocampus",
    "brain": (
        "`viz.py` draws the brain with its folds, with and without a skull; where it cannot, it draws the intracranial "
        "space and says so"
    ),
    "bids": "BIDS derivatives pass the official validator",
    "change": "Change between visits is that of `volumes.tsv`; visits of other voxels, scanners or networks are flagged",
    "profile": "Lengths and areas of known shapes come out right, in every orientation; areas add up to the volume",
    "report": "The page of a study needs no network, and opens with 1,000 scans within 3 s",
    "web": (
        "The page and its API take nothing from foreign pages, bound what is sent and what waits, keep no upload, "
        "and leave nothing when they end, or are killed and started again"
    ),
    "web_page": "The page shows each label on its side, in a real browser, and loads nothing from elsewhere",
    "splits": "Both sides and all sessions of a person stay on one side of a split",
    "formulas": "Attention is that of the papers' formulas, UNETR that of MONAI to 1e-4",
    "fine_tuning": "Fine-tuning keeps the body's weights, and a frozen encoder as it is",
    "no_hippocampus": "What holds no hippocampus is a failed row, and the others are done",
}  # {key: sentence}, in the order of the table


def promises(tests):
    """Each promise with the tests that show it, the slow ones last. tests: as marked_tests returns them."""
    for key, found in tests.items():
        names = ", ".join(name for name, _ in found)
        require(key in PROMISES, f"{names}: there is no promise {key!r}; expected one of {', '.join(PROMISES)}")
    rows = []
    for key, sentence in PROMISES.items():
        require(key in tests, f'no test shows the promise {key!r}; mark one with @pytest.mark.promise("{key}")')
        quick, slow = (", ".join(name for name, is_slow in tests[key] if is_slow == wanted) for wanted in (False, True))
        rows.append([sentence, "; ".join(filter(None, [quick, slow and f"slow: {slow}"]))])
    return markdown_table(["promise", "tests"], rows)


def marked_tests(folder):
    """{key of a promise: [(name of a test that is marked with it, in Markdown, whether it is slow), ...]}.

    The files are read and not imported.
    """
    found = {}
    for path in sorted(Path(folder).glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            is_slow = "pytest.mark.slow" in marks
            in_part = not is_slow and any("pytest.mark.slow" in mark for mark in marks)  # some parameters of the test
            test = f"`{node.name}`{' (in part slow)' * in_part}", is_slow
            for mark in marks:
                if key := re.fullmatch(r"pytest\.mark\.promise\((.*)\)", mark):
                    tests = found.setdefault(key[1].strip("'"), [])
                    tests += [test] * (test not in tests)  # two files may have a test of one name
    return found
