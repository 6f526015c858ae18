"""Evaluates models on volumes: scores of each case, and the end of a run with its metrics.json and two pictures."""

from pathlib import Path

from hippo.data.cases import labels_of
from hippo.files import save_json
from hippo.models.checkpoint import load_checkpoint
from hippo.models.inference import decide, predict_volume
from hippo.pictures import plots
from hippo.processes import gather, on_first, rank, world_size
from hippo.scoring.metrics import case_metrics, dice
from hippo.scoring.statistics import summarise

import numpy as np
import torch


def evaluate(trained, volumes, device, dtype, tta=False, loss_function=None, border="voxel"):
    """Predicts each volume and scores it on its own grid. Returns ({id: case_metrics}, list of losses, empty without
    loss_function).

    trained: TrainedModel, or several, see inference.predict_volume. A 3D network sees the whole volume at once, and the
    most probable class of a voxel is its label; with tta, probabilities are averaged over several views. border: as in
    inference.decide; with a plane, "dice_voxel_border" is the Dice without it. With several processes, each evaluates
    its share of the volumes, and all get the complete result.
    """
    cases, losses = {}, {}
    for volume in volumes[rank() :: world_size()]:
        probabilities = predict_volume(trained, volume.image, device, dtype, tta)
        if loss_function:
            label = torch.from_numpy(volume.label)[None].to(device)
            logits = probabilities.clamp_min(1e-9).log()[None]  # (1, C, D, H, W); softmax(log p) = p
            losses[volume.id] = loss_function(logits, label).item()
        prediction, n = decide(probabilities, border).byte().cpu().numpy(), len(probabilities) - 1
        cases[volume.id] = case_metrics(prediction, volume.label, volume.spacing_mm, n)
        if border != "voxel":
            free = decide(probabilities).cpu().numpy()
            cases[volume.id]["dice_voxel_border"] = [dice(free == k, volume.label == k) for k in range(1, n + 1)]
    for more_cases, more_losses in gather((cases, losses)):
        cases, losses = {**cases, **more_cases}, {**losses, **more_losses}
    ids = [volume.id for volume in volumes]
    return {i: cases[i] for i in ids}, [losses[i] for i in ids] if loss_function else []


def evaluate_run(trained, val, history, out_dir, device, dtype, data, tta=False, extra=None):
    """Evaluates the final weights of a run on the volumes `val`, and its best ones. Writes metrics.json and two pictures.
    Returns the content of metrics.json; the model keeps its final weights.

    trained: TrainedModel with the final weights; history: from engine.fit; data: from cases.describe_data; extra:
    further content of metrics.json.
    """
    out_dir, model = Path(out_dir), trained.model.eval()
    final, _ = evaluate(trained, val, device, dtype, tta)
    best, best_cases = on_first(load_checkpoint, out_dir / "best_model.pth"), final
    if best["epoch"] < len(history["seconds"]):
        final_weights = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(best["model_state_dict"])
        best_cases, _ = evaluate(trained, val, device, dtype, tta)
        model.load_state_dict(final_weights)
    metrics = {
        "synthetic": data["synthetic"],
        "labels": list(labels_of(model.head.out_channels - 1).values()),
        "cases": final,
        **summarise(final),
        "tta": tta,
        "training_minutes": round(sum(history["seconds"]) / 60, 2),
        "best": {"epoch": best["epoch"], "mean": summarise(best_cases)["mean"]},
        **(extra or {}),
    }
    on_first(save_json, out_dir / "metrics.json", metrics)
    if not val:
        print(
            f"trained on all cases, none held out to score; {metrics['training_minutes']} minutes; {out_dir / 'last.pth'}"
        )
        return metrics
    source = plots.source(data["synthetic"], data["name"])
    on_first(draw_results, trained, val, final, out_dir / "plots", device, dtype, source, tta)
    mean = metrics["mean"]
    parts = ", ".join(f"{value:.4f} {name}" for name, value in zip(metrics["labels"], mean["dice"]))
    print(
        f"final weights{' with test-time augmentation' if tta else ''}: Dice {parts}, mean {np.mean(mean['dice']):.4f}; "
        f"NSD at 1 mm {np.mean(mean['nsd_1mm']):.4f}; HD95 {np.mean(mean['hd95_mm']):.2f} mm; "
        f"{metrics['training_minutes']} minutes of training; {out_dir / 'metrics.json'}"
    )
    return metrics


def draw_results(trained, val, final, folder, device, dtype, source, tta, border="voxel"):
    """Draws per_case_dice.png, and predictions.png with the best, the median and the worst case. final: {id:
    case_metrics}."""
    labels = len(next(iter(final.values()))["dice"])
    title = f"Final weights, {len(final)} validation cases: {source}"
    plots.per_case_dice(final, folder / "per_case_dice.png", title)
    order = sorted(val, key=lambda v: np.mean(final[v.id]["dice"]))
    rows = []
    for text, volume in (("best", order[-1]), ("median", order[len(order) // 2]), ("worst", order[0])):
        prediction = decide(predict_volume(trained, volume.image, device, dtype, tta), border).cpu().numpy()
        there = np.argwhere(volume.label > 0)
        x, y, z = there.mean(0).round().astype(int) if len(there) else np.array(volume.label.shape) // 2
        panels = [(a[x], a[:, y], a[:, :, z]) for a in (volume.image, volume.label, prediction)]
        scores = " / ".join(f"{d:.3f}" for d in final[volume.id]["dice"])
        rows.append((f"{text}: {volume.id}, Dice {scores}", list(zip(*panels))))
    plots.outlines(rows, folder / "predictions.png", f"Sagittal, coronal, axial: {source}", labels)
