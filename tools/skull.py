"""Measures what the scalp, the skull and the face change: synthetic T1-weighted heads with them, and with zeros in their place.

python -m tools.skull --anatomies=anatomies      some minutes on two cores; writes skull.json
"""

from pathlib import Path

from hippo.data.anatomies import OUTSIDE
from hippo.errors import require
from hippo.files import save_json
from hippo.heads.anatomy import FREESURFER, LABELS, SIDES
from hippo.heads.segment import joint_labels
from hippo.options import configure, run_script
from hippo.scoring.metrics import dice
from tools.heads import load_tools
from tools.painted import paint

import numpy as np

ANATOMIES = "anatomies"  # folder of label maps, see get_data.py
OUT = "skull.json"  # file to write

_SIDES = {side: (FREESURFER[side], LABELS[side]) for side in SIDES}  # the label in an anatomy, and those of predict.py


def main():
    run(configure(globals()))


def run(cfg):
    """Segments each head in both ways and writes the file."""
    paths = sorted(Path(cfg.anatomies).glob("*.nii.gz"))
    require(
        paths, f"{cfg.anatomies}: no label maps in it; get them with: python get_data.py --anatomies={cfg.anatomies}"
    )
    tools, heads = load_tools(), {}
    for number, path in enumerate(paths):
        whole, truth = paint(path, "T1", np.random.default_rng([5, number]))
        stripped = whole._replace(array=np.where((truth == 0) | (truth >= OUTSIDE), 0, whole.array))
        found, heads[path.name] = {}, {"intracranial_mm3": int(np.count_nonzero((truth > 0) & (truth < OUTSIDE)))}
        for name, scan in (("whole head", whole), ("brain", stripped)):
            sides, located = tools.segment(scan)
            found[name] = joint_labels(sides, scan)
            row = {"etiv_mm3": located.etiv_mm3, "flags": sorted({flag for side in sides for flag in side.flags})}
            for side, (label, ours) in _SIDES.items():
                mask = np.isin(found[name], ours)
                row[side] = {"mm3": int(mask.sum()), "dice": dice(mask, truth == label)}
            heads[path.name][name] = row
        both = {side: dice(*(np.isin(labels, ours) for labels in found.values())) for side, (_, ours) in _SIDES.items()}
        heads[path.name]["agreement"] = both
        print(path.name, heads[path.name], flush=True)
    save_json(cfg.out, {**tools.describe(), "heads": heads})


if __name__ == "__main__":
    run_script(main)
