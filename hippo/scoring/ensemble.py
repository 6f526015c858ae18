"""Scores finished runs as an ensemble: the probabilities of their final weights are averaged."""

from pathlib import Path

from hippo.data.cases import load_volumes
from hippo.errors import require
from hippo.files import check_folder, fresh_folder, load_json, save_json
from hippo.models.checkpoint import load_model
from hippo.pictures import plots
from hippo.scoring.evaluation import draw_results, evaluate
from hippo.scoring.statistics import summarise

MADE_BY = "train_3d.py or train2d.py"


def score_ensemble(runs, data_root, out_dir, tta, device, dtype, border="voxel"):
    """Scores finished runs of one split on its validation cases. Writes metrics.json and plots/ into out_dir.

    runs: folders of train_3d.py and train2d.py; tta: test-time augmentation of the 3D models; border: as in
    inference.decide. Returns the content of metrics.json, with "members": the mean of each run. Raises UserError for
    an unfinished run and for runs on different splits.
    """
    check_folder(out_dir)
    members, splits, parts = [], [], []
    for folder in map(Path, runs):
        part = load_json(folder / "metrics.json", MADE_BY)
        trained, info = load_model(folder / "last.pth")
        fits = isinstance(part, dict) and {"mean", "training_minutes", "synthetic"} <= part.keys()
        require(
            fits and {"train_cases", "val_cases"} <= info.keys(),
            f"{folder} holds no finished run; make it with: {MADE_BY}",
        )
        members.append(trained.to(device))
        parts.append(part)
        splits.append((info["train_cases"], info["val_cases"]))
    for folder, split in zip(runs, splits):
        require(split == splits[0], f"{folder} was trained on other cases than {runs[0]}; name runs on one split")
    val = load_volumes(data_root, splits[0][1])
    cases, _ = evaluate(members, val, device, dtype, tta, border=border)
    metrics = {
        "synthetic": any(part["synthetic"] for part in parts),
        "cases": cases,
        **summarise(cases),
        "tta": tta,
        "border": border,
        "training_minutes": round(sum(part["training_minutes"] for part in parts), 2),
        "members": {str(folder): part["mean"] for folder, part in zip(runs, parts)},
    }
    out_dir = fresh_folder(out_dir)
    save_json(out_dir / "metrics.json", metrics)
    draw_results(members, val, cases, out_dir / "plots", device, dtype, plots.source(metrics["synthetic"]), tta, border)
    anterior, posterior = metrics["mean"]["dice"]
    alone = ", ".join(f"{folder} {sum(part['mean']['dice']) / 2:.4f}" for folder, part in zip(runs, parts))
    print(f"together: Dice {(anterior + posterior) / 2:.4f} ({anterior:.4f} / {posterior:.4f}); alone: {alone}")
    return metrics
