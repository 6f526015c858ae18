"""Writes the numbers and tables of the pages from the published results, so that they cannot disagree.

    python -m tools.report        rewrites what stands between <!-- name --> and <!-- /name --> in each page

Reads RESULTS (see tools.publish), references/ for what others published, and tests/ for what the code promises.
Conclusions are written by a person, beside the tables.
"""

import ast
import csv
import io
import re
from pathlib import Path

from hippo.errors import require
from hippo.files import load_json, save_text
from hippo.heads.flags import FLAGS
from hippo.options import configure, run_script
from hippo.scoring.tables import markdown_table, with_interval
from tools import tables_heads, tables_pages, tables_training, tables_truth
from tools.tables_training import DEFAULT_SEEDS, mean_dice

import numpy as np

PAGES = [
    "README.md",
    "docs/DEVELOPING.md",
    "docs/RESULTS.md",
    "docs/troubleshooting.md",
    "docs/cluster.md",
    "docs/web.md",
    "docs/your_own_data.md",
    "MODEL_IMPROVEMENTS.md",
    "pretrained/README.md",
]  # files to rewrite
RESULTS = "results"  # folder of the published results


def main():
    cfg = configure(globals())
    blocks = sections(cfg)
    texts = {page: rewrite(Path(page).read_text(encoding="utf-8"), blocks) for page in cfg.pages}
    for page, text in texts.items():
        save_text(page, text)
        print(f"{page} is up to date")


def rewrite(text, blocks):
    """The text with each block that it has marks for put between them. blocks: {name: function that returns it}."""
    marks = re.findall(r"^<!-- /(\S+) -->$", text, re.M)
    require(
        marks, "the page has no marks such as <!-- accuracy --> and <!-- /accuracy -->; put them where a block belongs"
    )
    for name in marks:
        require(name in blocks, f"the page has a mark <!-- {name} -->; expected one of {', '.join(blocks)}")
        block = blocks[name]()
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)"
        text = re.sub(pattern, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.S)
    return text


class Published:
    """The published results: `published("3d/metrics.json")` is the content of a file."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.references = load_json("references/published.json", "git checkout references/published.json")

    def __call__(self, name):
        """The content of a file."""
        return load_json(self.folder / name, "its command in the pages, and python -m tools.publish")

    def run(self, name):
        """(metrics.json, config.json) of a run."""
        return self(f"{name}/metrics.json"), self(f"{name}/config.json")

    def ablations(self, pattern):
        """The runs of a kind, as in ablations/3d_NUMBER_what_changed[_seedN]: {(number, what changed): [name, ...]}."""
        found = {}
        for folder in sorted(path.parent for path in self.folder.glob(f"ablations/{pattern}/metrics.json")):
            _, number, changed = re.sub(r"_seed\d+$", "", folder.name).split("_", 2)
            found.setdefault((number, changed.replace("_", " ")), []).append(f"ablations/{folder.name}")
        return found


def sections(cfg):
    """The generated blocks of the pages: {name: function that returns Markdown}."""
    published = Published(cfg.results)
    modules = (tables_pages, tables_training, tables_heads, tables_truth)
    blocks = {name: block for module in modules for name, block in module.sections(published).items()}
    blocks |= {"glance": lambda: glance(published), "accuracy": lambda: accuracy(published)}
    blocks |= {"sample": lambda: sample(published("sample.json"))}
    return blocks | {"flag-list": flag_list, "promises": lambda: promises(marked_tests("tests"))}


def flag_list():
    """The table of the flags."""
    rows = [[f"`{flag}`", flag.severity, flag.meaning, flag.what_to_do] for flag in FLAGS.values()]
    return markdown_table(["flag", "colour", "meaning", "what to do"], rows)


# ---- the README


def glance(published):
    """What goes in, what comes out, how good, how fast, and the command."""
    folds, heads, ordinary = (published(f"{name}.json") for name in ("cross_validation", "heads", "ordinary_cpu"))
    fastest, *_ = sorted(published("speed.json").values(), key=lambda entry: entry["ours"]["batch_seconds"])
    ours, theirs = fastest["ours"], fastest["hippodeep"]
    minutes = np.mean(next(iter(folds["members"].values()))["training_minutes"])
    silver = heads["summary"]["dice"]
    rows = [
        [
            "**In**",
            "a T1-weighted MRI of a head (`.nii`, `.nii.gz`, `.mgz`, `.mgh`, `.hdr`/`.img`) in any orientation, DICOM, a folder, or a BIDS study",
        ],
        [
            "**Out**",
            "labels on the scan's own grid, a picture to check them by, a table of volumes with intracranial volume (eTIV), quality and flags",
        ],
        [
            "**How good**",
            f"Dice (overlap, 1 is perfect) {folds['interval']['mean']:.4f} on {len(folds['cases'])} hand-labelled crops around "
            f"one hippocampus, cross-validated "
            f"(nnU-Net: {published.references['cross_validation']['mean_dice']:.4f}); "
            f"{silver['mean']:.2f} ± {silver['std']:.2f} with another network's masks on {len(heads['heads'])} whole heads",
        ],
        [
            "**How fast**",
            f"on two CPU cores, beside hippodeep's own code in the same run: one head {ours['cold_seconds']:.0f} s "
            f"({theirs['cold_seconds']:.0f} s), each further one {ours['further_head_seconds']:.1f} s "
            f"({theirs['further_head_seconds']:.1f} s); training {minutes:.0f} min, or {ordinary['training_minutes']:.0f} min on a "
            f"processor without bf16 (16-bit arithmetic); no GPU is needed",
        ],
        ["**Run**", "`python predict.py head.nii.gz`"],
    ]
    return markdown_table(["", ""], rows)


def sample(rows):
    """The first columns of volumes.csv of one head."""
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return f"```text\n{text.getvalue()}```"


def accuracy(published):
    """The main figures, each with its peer."""
    folds, heads = published("cross_validation.json"), published("heads.json")
    peers, silver = published.references, heads["summary"]["dice"]
    nnunet = f"nnU-Net {peers['cross_validation']['mean_dice']:.4f}; difference "
    crops = f"{len(folds['cases'])} crops, 5-fold cross-validation"
    rows = []
    for name, part in (("3D alone", next(iter(folds["members"].values()))), ("3D and 2D together", folds)):
        cost = f"{np.mean(part['training_minutes']):.0f} min a fold"
        score = f"**{part['interval']['mean']:.4f}**"
        rows.append([f"{name}, {crops}", score, nnunet + with_interval(part["difference"]), cost])
    several = published("cross_validation_ensemble/cross_validation.json")
    name = f"3D and 2D together, {len(several['constants']['SEEDS'])} seeds of each, {crops}"
    cost = f"{np.mean(several['training_minutes']):.0f} min a fold on one core without bf16"
    rows.append([name, f"**{several['interval']['mean']:.4f}**", nnunet + with_interval(several["difference"]), cost])
    runs = [published.run(name)[0] for name in DEFAULT_SEEDS]
    scores = [np.mean(metrics["mean"]["dice"]) for metrics in runs]
    spread = f"**{mean_dice(scores)}** (seeds {min(scores):.4f} to {max(scores):.4f})"
    cost = f"{np.mean([metrics['training_minutes'] for metrics in runs]):.1f} min"
    held_out = f"3D alone, {len(runs[0]['cases'])} held-out crops, {len(runs)} seeds"
    rows.append([held_out, spread, f"nnU-Net {peers['same_52_cases']['mean_dice']:.4f}", cost])
    whole = f"{len(heads['heads'])} whole heads of two scanners, whole hippocampus"
    rows.append([whole, f"{silver['mean']:.3f} ± {silver['std']:.3f}", "hippodeep's masks: a silver standard", "–"])
    return markdown_table(["what is scored", "mean Dice", "compared with", "training on two cores"], rows)


# ---- what the code promises

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
    "dicom": "DICOM gives the labels of its NIfTI; what is no T1 in 3D, or not whole, is said; no output names a person",
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


if __name__ == "__main__":
    run_script(main)
