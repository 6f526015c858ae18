"""Writes the numbers and tables of the pages from the published results, so that they cannot disagree.

    python -m tools.report        rewrites what stands between <!-- name --> and <!-- /name --> in each page

Reads RESULTS (see tools.publish), references/ for what others published, and tests/ for what the code promises.
Conclusions are written by a person, beside the tables.
"""

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
from tools.promises import marked_tests, promises
from tools.tables_training import DEFAULT_SEEDS, mean_dice

import numpy as np

PAGES = [
    "README.md",
    "docs/DEVELOPING.md",
    "docs/accuracy.md",
    "docs/robustness.md",
    "docs/ablations.md",
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
    folds, truth, ordinary = (published(f"{name}.json") for name in ("cross_validation", "manual", "ordinary_cpu"))
    fastest, *_ = sorted(published("speed.json").values(), key=lambda entry: entry["ours"]["batch_seconds"])
    ours, ratios = fastest["ours"], fastest["ratios"]
    minutes = np.mean(next(iter(folds["members"].values()))["training_minutes"])
    agreement, theirs, changes = (truth[key] for key in ("ours", "hippodeep", "rescans"))
    rows = [
        [
            "**In**",
            "a T1-weighted MRI of a head (`.nii`, `.nii.gz`, `.mgz`, `.mgh`, `.hdr`/`.img`, DICOM) in any orientation, a folder, or a BIDS study",
        ],
        [
            "**Out**",
            "labels on the scan's own grid, a picture to check them by, a table of volumes with intracranial volume (eTIV), quality and flags",
        ],
        [
            "**How good**",
            f"Dice (overlap, 1 is perfect) with hippocampi drawn by experts in {agreement['n'] // 2} whole heads: "
            f"**{agreement['all']['dice']['mean']:.3f}**; hippodeep, another network: {theirs['all']['dice']['mean']:.3f}. "
            f"Two scans of a person within weeks differ by **{changes['ours']['median_percent']['mean']:.1f} %**, the experts' drawings of them by "
            f"{changes['manual']['median_percent']['mean']:.1f} %. On {len(folds['cases'])} hand-labelled crops, cross-validated: "
            f"**{folds['interval']['mean']:.4f}**; nnU-Net: {published.references['cross_validation']['mean_dice']:.4f}",
        ],
        [
            "**How fast**",
            f"on two CPU cores one head takes {ours['cold_seconds']:.1f} s, {ratios['cold']:.2f} of the time of hippodeep's own code, and each "
            f"further one {ours['further_head_seconds']:.1f} s, {ratios['further_head']:.2f} of hippodeep's; training {minutes:.0f} min, or "
            f"{ordinary['training_minutes']:.0f} min on a processor without bf16 (16-bit arithmetic); no GPU is needed",
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
    """The main figures, each with its model and its peer."""
    folds, robust, several = (
        published(f"cross_validation{name}.json")
        for name in ("", "_heads/cross_validation", "_ensemble/cross_validation")
    )
    peers, truth = published.references, published("manual.json")
    nnunet = f"nnU-Net {peers['cross_validation']['mean_dice']:.4f}; difference "
    crops = f"{len(folds['cases'])} crops, 5-fold cross-validation"
    alone = {recipe: next(iter(of["members"].values())) for recipe, of in (("crops", folds), ("heads", robust))}
    models = {
        "default: 3D": alone["crops"],
        "default: 3D and 2D together": folds,
        f"`ensemble`: {len(several['constants']['SEEDS'])} seeds of each together": several,
        "`heads`: 3D": alone["heads"],
        "`heads`: 3D and 2D together": robust,
    }
    rows = [
        [crops, name, f"**{of['interval']['mean']:.4f}**", nnunet + with_interval(of["difference"])]
        for name, of in models.items()
    ]
    runs = [published.run(name)[0] for name in DEFAULT_SEEDS]
    scores = [np.mean(metrics["mean"]["dice"]) for metrics in runs]
    spread = f"**{mean_dice(scores)}** (seeds {min(scores):.4f} to {max(scores):.4f})"
    held_out = f"{len(runs[0]['cases'])} held-out crops, {len(runs)} seeds"
    rows.append([held_out, "default: 3D", spread, f"nnU-Net {peers['same_52_cases']['mean_dice']:.4f}"])
    ours, theirs = (
        f"{truth[who]['all']['dice']['mean']:.3f} ± {truth[who]['dice_sd']:.3f}" for who in ("ours", "hippodeep")
    )
    whole = f"{truth['ours']['n']} hippocampi in whole heads, drawn by experts, as one label"
    rows.append([whole, "shipped: `heads`, 3D, all 260 crops", f"**{ours}**", f"hippodeep {theirs}"])
    return markdown_table(["what is scored", "model", "mean Dice", "compared with"], rows)


if __name__ == "__main__":
    run_script(main)
