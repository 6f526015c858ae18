"""Prediction and evaluation of volumes, by 3D and by 2D models: what training, validation and predict.py share."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common import autocast, gather, load_checkpoint, on_first, rank, save_json, world_size
from metrics import case_metrics, summarise


def tta_views(model):
    """Test-time augmentation: (shift in voxels, axes to flip) of each view of a volume for a 3D model.

    A shift pads the volume at its low sides with replicated edges, which moves it against the grid of the poolings without
    interpolation; with the network's own padding to whole strides by one voxel in all, with two poolings. Flips are of
    use only along axes that training flipped too.
    """
    shifts = [(0, 0, 0), (model.unet.stride // 2,) * 3]
    flips = [()] + [(axis,) for axis in ("xyz".index(a) for a in model.flip_axes)]
    return [(shift, flip) for shift in shifts for flip in flips]


@torch.inference_mode()
def predict_volume(model, image, device, dtype, tta=False):
    """Class probabilities of one volume: image (D, H, W) float32, normalised, to a (C, D, H, W) float32 tensor on `device`.

    A 3D model sees the volume, with tta averaged over tta_views(model). A 2D model sees every slice of the
    three planes, each resampled to model.slice_size squared as in training; the planes' probabilities are averaged.
    The probabilities of a list of models are averaged. Models must be in eval mode.
    """
    if isinstance(model, list):
        return sum(predict_volume(member, image, device, dtype, tta) for member in model) / len(model)
    x = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    if model.dim == 2:
        return _predict_slices(model, x, device, dtype)
    x = x[None, None]  # (1, 1, D, H, W)
    views = tta_views(model) if tta else [((0, 0, 0), ())]
    total = 0
    for shift, flip in views:
        axes = [a + 2 for a in flip]
        view = F.pad(x.flip(axes), [p for s in reversed(shift) for p in (s, 0)], mode="replicate")
        with autocast(device, dtype):
            logits = model(view)
        logits = logits[(0, slice(None), *(slice(s, None) for s in shift))].float()
        total = total + logits.softmax(0).flip([a - 1 for a in axes])
    return total / len(views)


def _predict_slices(model, x, device, dtype, batch=16):
    size = (model.slice_size,) * 2
    x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-8)
    total = 0
    for axis in range(3):
        slices = x.movedim(axis, 0)[:, None]  # (N, 1, H, W)
        big = F.interpolate(slices, size, mode="bilinear", align_corners=False)
        parts = []
        for start in range(0, len(big), batch):
            with autocast(device, dtype):
                logits = model(big[start : start + batch])
            probabilities = logits.float().softmax(1)
            parts.append(F.interpolate(probabilities, slices.shape[2:], mode="bilinear", antialias=True))
        total = total + torch.cat(parts).movedim(1, 0).movedim(1, axis + 1)  # (C, N, H, W) to (C, D, H, W)
    return total / 3


def evaluate(model, volumes, device, dtype, tta=False, loss_function=None):
    """Metrics of each volume on its own grid: ({id: case_metrics}, list of losses, empty without loss_function).

    model: as in predict_volume. With several processes, each does its share of the volumes, and all get the result.
    """
    cases, losses = {}, {}
    for volume in volumes[rank() :: world_size()]:
        probabilities = predict_volume(model, volume.image, device, dtype, tta)
        if loss_function:
            label = torch.from_numpy(volume.label)[None].to(device)
            logits = probabilities.clamp_min(1e-9).log()[None]  # softmax(log p) = p
            losses[volume.id] = loss_function(logits, label).item()
        cases[volume.id] = case_metrics(probabilities.argmax(0).byte().cpu().numpy(), volume.label, volume.spacing_mm)
    for more_cases, more_losses in gather((cases, losses)):
        cases, losses = {**cases, **more_cases}, {**losses, **more_losses}
    ids = [volume.id for volume in volumes]
    return {i: cases[i] for i in ids}, [losses[i] for i in ids] if loss_function else []


def finish(model, val, history, out_dir, device, dtype, synthetic, tta=False, extra=None):
    """Evaluates the final and the best weights on volumes, and writes metrics.json, per_case_dice.png and predictions.png.

    extra: further content of metrics.json. Returns the content of metrics.json; the model keeps its final weights.
    """
    out_dir = Path(out_dir)
    model.eval()
    final, _ = evaluate(model, val, device, dtype, tta)
    best, best_cases = on_first(load_checkpoint, out_dir / "best_model.pth"), final
    if best["epoch"] < len(history["seconds"]):
        final_weights = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(best["model_state_dict"])
        best_cases, _ = evaluate(model, val, device, dtype, tta)
        model.load_state_dict(final_weights)
    metrics = {
        "synthetic": synthetic,
        "cases": final,
        **summarise(final),
        "tta": tta,
        "training_minutes": round(sum(history["seconds"]) / 60, 2),
        "best": {"epoch": best["epoch"], "mean": summarise(best_cases)["mean"]},
        **(extra or {}),
    }
    on_first(save_json, out_dir / "metrics.json", metrics)
    on_first(draw_results, model, val, final, out_dir / "plots", device, dtype, synthetic, tta)
    mean = metrics["mean"]
    print(
        f"final weights{' with test-time augmentation' if tta else ''}: Dice {mean['dice'][0]:.4f} anterior, "
        f"{mean['dice'][1]:.4f} posterior, mean {np.mean(mean['dice']):.4f}; NSD at 1 mm {np.mean(mean['nsd_1mm']):.4f}; "
        f"HD95 {np.mean(mean['hd95_mm']):.2f} mm; {metrics['training_minutes']} minutes of training; {out_dir / 'metrics.json'}"
    )
    return metrics


def draw_results(model, val, final, folder, device, dtype, synthetic, tta):
    """per_case_dice.png, and predictions.png of the best, the median and the worst case. final: {id: case_metrics}."""
    import plots  # here, so that prediction needs no matplotlib

    source = plots.source(synthetic)
    title = f"Final weights, {len(final)} validation cases: {source}"
    plots.per_case_dice(final, folder / "per_case_dice.png", title)
    order = sorted(val, key=lambda v: np.mean(final[v.id]["dice"]))
    rows = []
    for text, volume in (("best", order[-1]), ("median", order[len(order) // 2]), ("worst", order[0])):
        prediction = predict_volume(model, volume.image, device, dtype, tta).argmax(0).cpu().numpy()
        there = np.argwhere(volume.label > 0)
        x, y, z = there.mean(0).round().astype(int) if len(there) else np.array(volume.label.shape) // 2
        panels = [(a[x], a[:, y], a[:, :, z]) for a in (volume.image, volume.label, prediction)]
        scores = " / ".join(f"{d:.3f}" for d in final[volume.id]["dice"])
        rows.append((f"{text}: {volume.id}, Dice {scores}", list(zip(*panels))))
    plots.outlines(rows, folder / "predictions.png", f"Sagittal, coronal, axial: {source}")
