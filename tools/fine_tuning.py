"""Compares, on heads with another network's masks: training from scratch, fine-tuning, and the shipped model as it is.

    python -m tools.fine_tuning --heads=FOLDER      four sizes x three seeds x two ways to begin, about half an hour

FOLDER is a BIDS data set of heads with derivatives/hippodeep. The masks are hippodeep's: SILVER, an opinion and no truth, of the
whole hippocampus. Of the participants in their order, the first ones are learned from, and the last VALIDATION score. Writes
OUT and PICTURE; the crops and runs go into RUNS, where they are taken up again.
"""

import shutil
from pathlib import Path

import crops
from hippo.data.cases import list_cases, load_case
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import load_json, save_json
from hippo.models.checkpoint import load_model
from hippo.models.inference import predict_volume
from hippo.options import configure, run_script
from hippo.pictures import plots
from hippo.scoring.metrics import dice
from hippo.study.inputs import find_t1
from tools.ablations import train_all

import numpy as np

HEADS = "heads"  # BIDS folder of whole heads
RUNS = "ablations/fine_tuning"  # folder for crops and runs
OUT = "fine_tuning.json"  # file to write
PICTURE = "fine_tuning.png"  # the figure
LEARN_FROM = [2, 4, 8, 12]  # heads
VALIDATION = 8  # heads, the last ones
SEEDS = [0, 1, 2]  # of each
EPOCHS = 4  # of fine-tuning; from scratch twice as many
WORKERS = 2  # runs at a time

_SHIPPED = "pretrained/heads_3d.pth"
_WAYS = {  # constants of train_3d.py
    "from scratch": {"epochs": 2},  # times EPOCHS
    "fine-tuned": {"epochs": 1, "init": _SHIPPED},
}


def main():
    run(configure(globals()))


def run(cfg):
    """Trains, scores, and writes the JSON file and the picture."""
    persons = sorted({item.participant_id for item in find_t1(cfg.heads)})
    held_out = persons[-cfg.validation :]
    enough = len(persons) >= max(cfg.learn_from) + cfg.validation
    require(
        enough,
        f"{len(persons)} people are too few to learn from {max(cfg.learn_from)} and to score on {cfg.validation}",
    )
    root = cut_crops(cfg)
    results = {"persons": len(persons), "validation": held_out, "runs": {}, "shipped": as_it_is(root, held_out)}
    runs = {}
    for way, options in _WAYS.items():
        for count in cfg.learn_from:
            data = subset(root, Path(cfg.runs) / f"data_{count}", persons[:count], held_out)
            for seed in cfg.seeds:
                out = Path(cfg.runs) / f"{way.replace(' ', '_')}_{count}_seed{seed}"
                more = {**options, "epochs": cfg.epochs * options["epochs"], "seed": seed, "data_root": str(data)}
                runs[way, count, seed] = out, more
    train_all(dict(runs.values()), cfg.workers)
    for (way, count, seed), (out, _) in runs.items():
        metrics = load_json(out / "metrics.json", "the same command")
        entry = {"dice": {case: values["dice"][0] for case, values in metrics["cases"].items()}}
        entry["minutes"] = metrics["training_minutes"]
        results["runs"].setdefault(way, {}).setdefault(str(count), {})[str(seed)] = entry
    save_json(cfg.out, results)
    draw(results, cfg.picture)
    print(f"wrote {cfg.out} and {cfg.picture}")


def draw(results, path):
    """Dice against the number of heads learned from: each seed, and their mean."""
    figure, axes = plots.panels(1, 1, (6.5, 4.5))
    for (way, sizes), colour, beside in zip(results["runs"].items(), plots.SERIES[1:], (-0.1, 0.1)):
        counts = np.array([int(count) for count in sizes])
        means = [[np.mean([*run["dice"].values()]) for run in seeds.values()] for seeds in sizes.values()]
        label = f"{way}, mean of {len(means[0])} seeds"
        axes.plot(counts + beside, np.mean(means, 1), color=colour, marker="o", label=label)
        for count, values in zip(counts + beside, means):
            axes.scatter([count] * len(values), values, color="black", s=8, zorder=3)
    axes.scatter([], [], color="black", s=8, label="each seed")
    shipped = np.mean([*results["shipped"].values()])
    axes.axhline(shipped, color="black", linestyle="--", label="the shipped model as it is")
    axes.set(xlabel="heads learned from", ylabel="Dice of the whole hippocampus", xticks=counts)
    axes.grid(alpha=0.3)
    axes.legend()
    plots.save(figure, path, f"{len(results['validation'])} heads, Dice with hippodeep's masks (silver)")


def cut_crops(cfg):
    """The folder of crops of all heads."""
    out = Path(cfg.runs) / "crops"
    if not (out / "dataset.json").is_file():
        options = {"masks": str(Path(cfg.heads) / "derivatives/hippodeep"), "out_dir": str(out)}
        crops.run(configure(vars(crops), [str(cfg.heads)], "", **options))
    return out


def subset(root, out, learners, held_out):
    """A Decathlon folder of the crops of some persons."""
    info = load_json(root / "dataset.json", "the same command")
    names = [name for name, person in info["persons"].items() if person in {*learners, *held_out}]
    shutil.rmtree(out, ignore_errors=True)
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(root / folder / f"{name}.nii.gz", out / folder)
    info["training"] = [entry for entry in info["training"] if Path(entry["image"]).name[:-7] in names]
    info["persons"] = {name: info["persons"][name] for name in names}
    info["validation"] = [name for name in names if info["persons"][name] in held_out]
    save_json(out / "dataset.json", info)
    return out


def as_it_is(root, held_out):
    """{case: Dice of the whole hippocampus} of the shipped model on the crops of some persons."""
    device, dtype = set_up_device("auto", True)
    model, persons = load_model(_SHIPPED)[0].to(device), list_cases(root)[1]["persons"]
    scores = {}
    for case in list_cases(root)[0]:
        if persons[case.id] in held_out:
            volume = load_case(case, 1)
            found = predict_volume(model, volume.image, device, dtype, tta=True).argmax(0).cpu().numpy() > 0
            scores[case.id] = dice(found, volume.label > 0)
    return scores


if __name__ == "__main__":
    run_script(main)
