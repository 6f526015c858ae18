"""Repeats the protocol of Hippo-Net (Lei et al., Phys. Med. Biol. 2023): five folds of the first 200 cases, trained on 160, and
a model of the 200 on the last 60.

    python -m tools.hippo_net          the 3D model alone, about 20 minutes on two cores with bf16

Its order of the cases is taken to be that of their numbers. Writes RUNS, and OUT: both scores, with their intervals.
"""

from pathlib import Path

import cross_validate
import train_3d
from hippo.data.cases import list_cases, load_case
from hippo.device import set_up_device
from hippo.files import load_json, save_json
from hippo.models.checkpoint import load_model
from hippo.options import configure, run_script
from hippo.scoring.evaluation import evaluate
from hippo.scoring.statistics import bootstrap, summarise

import numpy as np

DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder
RUNS = "hippo_net_runs"  # folder of the runs
OUT = "hippo_net.json"  # file to write

_FIRST = 200  # cases


def main():
    run(configure(globals()))


def run(cfg):
    """Trains what is missing, scores, and writes the JSON file."""
    same = {"data_root": cfg.data_root, "max_cases": _FIRST}
    places = {"runs": cfg.runs, "out_dir": f"{cfg.runs}/folds"}
    folds = cross_validate.run(configure(vars(cross_validate), [], **same, **places, epochs_2d=0, peer=""))
    of_all = configure(vars(train_3d), [], **same, fold=-2, out_dir=f"{cfg.runs}/of_all", resume=True)
    if not (Path(of_all.out_dir) / "metrics.json").is_file():
        train_3d.run(of_all)
    device, dtype = set_up_device(of_all.device, of_all.amp)
    trained, info = load_model(Path(of_all.out_dir) / "last.pth")
    trained.model.to(device)
    last = [case for case in list_cases(cfg.data_root)[0] if case.id not in info["train_cases"]]
    cases, _ = evaluate(trained, [load_case(case) for case in last], device, dtype, tta=of_all.tta)
    minutes = load_json(Path(of_all.out_dir) / "metrics.json", "python -m tools.hippo_net")["training_minutes"]
    of_last = {**summarise(cases), "interval": interval(cases), "training_minutes": minutes, "cases": cases}
    kept = ("mean", "std", "interval", "folds", "training_minutes", "cases")
    save_json(cfg.out, {"first": {key: folds[key] for key in kept}, "last": of_last})
    print(f"wrote {cfg.out}")


def interval(cases):
    """The mean Dice of both parts with its interval over cases."""
    return bootstrap([float(np.mean(values["dice"])) for values in cases.values()])


if __name__ == "__main__":
    run_script(main)
