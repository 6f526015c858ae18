"""Writes the numbers and tables of the pages from the published results, so that they cannot disagree.

    python -m tools.report        rewrites what stands between <!-- name --> and <!-- /name --> in each page

Reads RESULTS (see tools.publish), references/ for what others published, and tests/ for what the code promises.
Conclusions are written by a person, beside the tables.
"""

import re
from pathlib import Path

from hippo.errors import require
from hippo.files import load_json, save_text
from hippo.heads.flags import FLAGS
from hippo.options import configure, run_script
from hippo.scoring.tables import markdown_table
from tools import (
    tables_2d,
    tables_3d,
    tables_heads,
    tables_promises,
    tables_quality,
    tables_readme,
    tables_robust,
    tables_speed,
    tables_study,
)

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
    modules = (
        tables_readme,
        tables_3d,
        tables_2d,
        tables_speed,
        tables_heads,
        tables_robust,
        tables_quality,
        tables_study,
        tables_promises,
    )
    blocks = {name: block for module in modules for name, block in module.sections(published).items()}
    return blocks | {"flag-list": flag_list}


def flag_list():
    """The table of the flags."""
    rows = [[f"`{flag}`", flag.severity, flag.meaning, flag.what_to_do] for flag in FLAGS.values()]
    return markdown_table(["flag", "colour", "meaning", "what to do"], rows)


if __name__ == "__main__":
    run_script(main)
