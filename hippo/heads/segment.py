"""Segments the anterior and posterior part of each hippocampus in a scan. Pure: it prints and writes nothing."""

from typing import NamedTuple

from hippo.data.intensity import normalise
from hippo.data.spatial import largest_component
from hippo.heads import quality
from hippo.heads.anatomy import FREESURFER, LABELS, SIDES, WINDOW
from hippo.heads.fluid import in_fluid
from hippo.heads.locate import locate
from hippo.heads.window import VIEWS, Window, behind_plane, cut, foreground, likeliest, on_grid, settle, touches_edge
from hippo.models.inference import predict_batch

import numpy as np

_LEAST_MODEL_DICE = 0.75  # a lower Dice between two models is flagged
_LEAST_CONTRAST_DICE = 0.75  # a lower Dice with the model for any contrast puts the contrast in doubt
_DOUBT = "contrast_doubtful"  # flag of a doubtful contrast
_SURER = 0.015  # minimum lead in confidence of the better side of a crop


class Hippocampus(NamedTuple):
    """The segmentation of one side.

    labels (d, h, w) uint8: 1 anterior, 2 posterior; probabilities (3, d, h, w) float32; both on the grid of the scan,
    inside `bbox`, slices of the array in RAS. window: what the models saw; matrix: (3, 3), from voxels of the scan to
    mm. quality: Dice predicted from the evidence, mean of both parts, see heads.quality; problem: why there is
    no result, else empty.
    """

    side: str
    problem: str
    quality: float = 0.0
    flags: tuple = ()
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    bbox: tuple = ()
    window: Window | None = None
    matrix: np.ndarray | None = None
    evidence: dict = {}

    def volumes_mm3(self, scan):
        """Returns [anterior, posterior]: number of voxels x volume of a voxel."""
        voxel = abs(float(np.linalg.det(scan.matrix)))
        return [np.count_nonzero(self.labels == label) * voxel for label in (1, 2)]


def segment(
    models,
    locator,
    scan,
    device,
    dtype,
    tta=True,
    side="auto",
    any_contrast=None,
    contrast="auto",
    progress=None,
    least_quality=0.0,
):
    """Segments a Scan. Returns (list of Hippocampus, Located or None): both sides of a head, one side of a crop.

    models: list of TrainedModel with the same spacing; the first one places the window, and those of models_for are
    averaged. side: for a
    crop, left, right or auto (the side with the higher confidence). any_contrast: TrainedModel for images that are not
    T1-weighted, or None. contrast: t1 (use models), any (use any_contrast), or auto: use any_contrast if the scan does
    not look T1-weighted, and where the models give no result and it predicts a higher Dice. A disagreement of the two is
    flagged; where it is a crop, which does not show whether it is T1-weighted, the higher predicted Dice decides then,
    too. progress: called with "found", "left" and "right" when these are done. least_quality: a lower predicted Dice
    counts as no result.
    """
    progress, models = progress or (lambda step: None), models_for(models, scan)
    located = None if scan.is_crop else locate(locator, scan, device, dtype)
    targets = _targets_in_crop(locator, scan, side, device, dtype) if scan.is_crop else _targets(located)
    progress("found")
    how = {"scan": scan, "side": side, "device": device, "dtype": dtype, "tta": tta, "progress": progress}
    if any_contrast is None or contrast == "t1":
        return _segment_targets(models, targets, check=any_contrast, **how), located
    if contrast == "any" or located and "contrast_not_t1" in located.flags:
        return _segment_by_any(any_contrast, targets, **how), located
    results = _segment_targets(models, targets, check=any_contrast, **how)
    doubtful = {result.side for result in results if result.problem or result.quality < least_quality}
    doubtful |= {result.side for result in results if scan.is_crop and _DOUBT in result.flags}
    if doubtful:
        again = targets if scan.is_crop else {name: targets[name] for name in doubtful}
        others = {result.side: result for result in _segment_by_any(any_contrast, again, **how)}
        if scan.is_crop:  # the model for any contrast may see another side in it
            return [_better(results[0], *others.values())], located
        results = [_better(result, others.get(result.side, result)) for result in results]
    return results, located


def _segment_targets(models, targets, scan, side, progress, **how):
    """Returns a list with the Hippocampus at each of the targets, see _targets; for a crop, the one of its side."""
    centres = {name: target for name, target in targets.items() if not isinstance(target, Hippocampus)}
    results = {**targets, **(segment_sides(models, scan, centres, **how) if centres else {})}
    for name in results:
        progress(name)
    return [_of_crop(list(results.values()), side)] if scan.is_crop else list(results.values())


def _segment_by_any(any_contrast, targets, **how):
    """Segments the targets with the model for any contrast. Returns what _segment_targets does, flagged."""
    segmented = {name for name, target in targets.items() if not isinstance(target, Hippocampus)}
    results = _segment_targets([any_contrast], targets, kind="any_contrast", **how)
    return [r._replace(flags=("any_contrast", *r.flags)) if r.side in segmented else r for r in results]


def _better(first, second):
    """Returns the second result if it is one and predicts a higher Dice, else the first."""
    return second if not second.problem and second.quality > first.quality else first


def _targets(located):
    """Returns, for a head, {side: centre in mm, or a Hippocampus that says why there is none}."""
    return {
        name: Hippocampus(name, located.problems[name]) if name in located.problems else located.centres[name]
        for name in SIDES
    }


def _targets_in_crop(locator, scan, side, device, dtype):
    """Like _targets, for the sides that a crop may show. None means that the window is the whole crop."""
    if scan.is_small_crop:
        return dict.fromkeys(SIDES)
    found = locate(locator, scan, device, dtype)
    if all(found.centres[name] is None for name in SIDES):
        name = "" if side == "auto" else side
        size = " x ".join(f"{side:.0f}" for side in scan.sides_mm)
        text = f"no hippocampus found in this crop of {size} mm; a whole brain so small has a wrong voxel size in its header"
        return {name: Hippocampus(name, text)}
    best = max((name for name in SIDES if found.centres[name] is not None), key=found.certainty.get)
    return dict.fromkeys(SIDES, found.centres[best])


def _of_crop(results, side):
    """Returns the result of the given side of a crop or, if auto, of the side with the higher confidence. Flags it if
    the other side is about as likely, or likelier."""
    sure = {result.side: result.evidence.get("confidence", 0.0) for result in results}
    best = max(results, key=lambda result: sure[result.side] if side == "auto" else result.side == side)
    others = [sure[name] for name in sure if name != best.side]
    if others and not best.problem and sure[best.side] - max(others) < (_SURER if side == "auto" else 0):
        best = best._replace(flags=(*best.flags, "side_doubtful"))
    return best


def joint_labels(sides, scan, single_label=False, crop=None):
    """Returns the label map (D, H, W) uint8 of a scan: anatomy.LABELS for a head, 1 and 2 for a crop. single_label:
    use FREESURFER's labels of the whole hippocampus. crop: whether to use the labels of a crop; None: only if the scan
    is one."""
    crop = scan.is_crop if crop is None else crop
    result = np.zeros(scan.array.shape, np.uint8)
    for side in (side for side in sides if not side.problem):
        numbers = (FREESURFER[side.side],) * 2 if single_label else (1, 2) if crop else LABELS[side.side]
        part = result[side.bbox]
        for label, number in enumerate(numbers, 1):
            part[side.labels == label] = number
    return result


def joint_probabilities(sides, scan, crop=None):
    """Returns probability maps (D, H, W, N) float32 of a scan, in the order of joint_labels: N = 4 for a head, 2 for a
    crop."""
    crop = scan.is_crop if crop is None else crop
    result = np.zeros((*scan.array.shape, 2 if crop else 4), np.float32)
    for side in (side for side in sides if not side.problem):
        first = 2 if side.side == "right" and not crop else 0
        result[(*side.bbox, slice(first, first + 2))] = np.moveaxis(side.probabilities[1:], 0, -1)
    return result


def models_for(models, scan):
    """Returns those of a list of TrainedModel that see a Scan: for a small crop all; else the 3D ones, if there are any.
    Beside five views of a 3D model, a 2D model changes little, and takes longer than they do."""
    return models if scan.is_small_crop else [model for model in models if model.model.dim == 3] or models


def window_size(trained):
    """Returns the size in voxels of the window for a TrainedModel: that of its training patches, but at least WINDOW,
    which holds a hippocampus."""
    return tuple(map(max, WINDOW, trained.preprocessing["window"]))


def segment_sides(models, scan, centres, device, dtype, tta=True, check=None, kind="one_model"):
    """Segments the hippocampi around positions in mm, {side: centre}. Returns {side: Hippocampus}. If a centre is None,
    the window is the whole (small) crop.

    The training crops look like a left hippocampus, so the right one is mirrored. Each window is re-centred on the
    prediction until it converges. The sides are predicted together, since a CPU without AVX-512 convolves a batch of
    one slowly. check: a further TrainedModel; the result is flagged if it disagrees in the window.
    kind: of one model, see quality.predict_dice.
    """
    spacing = models[0].preprocessing["spacing_mm"]
    is_small_crop = any(centre is None for centre in centres.values())
    # a small crop keeps its axes
    matrix = np.diag(np.linalg.norm(scan.matrix, axis=0)) if is_small_crop else scan.matrix
    size = tuple(np.maximum(np.round(scan.sides_mm / spacing), 1).astype(int).tolist()) if is_small_crop else ()

    def cut_out(windows):
        return np.stack([normalise(cut(scan.array, matrix, window)) for window in windows])

    def predict(images, model=models[0], tta=False):
        seen = predict_batch(model, images, device, dtype, tta).cpu().numpy()
        # a model of the whole hippocampus has no part 2
        return np.concatenate([seen, np.zeros_like(seen[:, :1])], axis=1) if seen.shape[1] == 2 else seen

    windows = [
        Window(np.zeros(3) if is_small_crop else centre, size or window_size(models[0]), spacing, side == "right")
        for side, centre in centres.items()
    ]
    settled = [(window, True) for window in windows]
    if not is_small_crop:
        settled = settle(lambda windows: predict(cut_out(windows)), windows)
    results = {side: Hippocampus(side, f"no {side} hippocampus found where it should be") for side in centres}
    found = {side: state for side, state in zip(centres, settled) if state[0]}
    if not found:
        return results
    images = cut_out([window for window, _ in found.values()])
    members = [predict(images, model, tta and is_small_crop) for model in models]
    checks = predict(images, check) if check else [None] * len(found)
    turned = [window._replace(turn=window.turn @ turn) for window, _ in found.values() for turn in VIEWS]
    views = np.split(predict(cut_out(turned)), len(found))
    kind = "two_models" if len(models) > 1 else kind
    for i, (side, (window, converged)) in enumerate(found.items()):
        seen = [member[i] for member in members]
        if foreground(sum(seen)).any():
            parts = [(sum(seen) / len(seen), window), *zip(views[i], turned[i * len(VIEWS) :])]
            weights = np.array([len(models)] + [tta and not is_small_crop] * len(VIEWS), np.float32)
            result, on_scan = _on_scan(results[side], scan, parts, weights, matrix, is_small_crop)
            more = seen, checks[i], converged, is_small_crop, kind
            results[side] = _add_evidence(result, on_scan, scan, *more)
    return results


def _on_scan(empty, scan, parts, weights, matrix, is_small_crop):
    """Brings the views of a side back to the grid of a Scan and decides the labels. Returns (Hippocampus, probabilities
    (N, 3, d, h, w) of the views).

    empty: the Hippocampus to complete. parts: [(probabilities (3, *window), Window), ...], with their weights.
    """
    views, bbox = on_grid(parts, scan.array.shape, matrix)
    probabilities = np.tensordot(weights / weights.sum(), views, 1)
    # a small crop is treated as in the evaluation
    inside = probabilities.argmax(0) > 0 if is_small_crop else likeliest(probabilities, parts, weights)
    window = parts[0][1]
    behind = probabilities[2] > probabilities[1]
    if not is_small_crop:
        behind = behind_plane(probabilities, bbox, window, matrix)
    labels = np.where(inside, 1 + behind, 0).astype(np.uint8)
    labels *= largest_component(inside)
    side = empty._replace(problem="", labels=labels, probabilities=probabilities, bbox=bbox, window=window)
    return side._replace(matrix=matrix), views


def _add_evidence(side, views, scan, members, check, converged, is_small_crop, kind):
    """Returns the Hippocampus with its evidence, quality and flags. members, views and check: see
    quality.collect_evidence; converged: whether the window is; kind: see quality.predict_dice."""
    found = foreground(sum(members))
    mostly, half = in_fluid(scan, side)
    evidence = {**quality.collect_evidence(members, views, side.labels, check), "in_fluid": float(mostly)}
    flags = {
        "in_fluid": half,
        "window_unsettled": not converged,
        "touches_window": not is_small_crop and touches_edge(found, (slice(None),) * 3, found.shape),
        "models_disagree": evidence["models"] < _LEAST_MODEL_DICE,
        _DOUBT: evidence["contrast"] < _LEAST_CONTRAST_DICE,
        "touches_field_of_view": touches_edge(side.labels > 0, side.bbox, scan.array.shape),
    }
    flags = tuple(name for name, raised in flags.items() if raised)
    return side._replace(quality=quality.predict_dice(evidence, kind), flags=flags, evidence=evidence)
