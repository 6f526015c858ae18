"""From a scan to the anterior and posterior part of each hippocampus. Pure: it prints and writes nothing."""

from typing import NamedTuple

from hippo.data.intensity import normalise
from hippo.data.spatial import Window, bring_back, cut, largest_component
from hippo.heads.locate import SIDES, locate
from hippo.models.inference import predict_volume
from hippo.scoring.metrics import dice

import numpy as np
from scipy.spatial.transform import Rotation

WINDOW = (36, 52, 36)  # voxels around a hippocampus, as large as the training's patches
SMALL_CROP_MM = (44.5, 60.5, 48.5)  # a crop up to this size is one window, as all of the training's crops are
_MOVES = 6  # times a window is centred anew at most
_STAYS_MM, _STAYS_DEGREES = 2.5, 8  # a window that would move or turn by less stays
_LONG_AXIS = (0.064, 0.913, -0.402)  # from tail to head of a left hippocampus, mean of the training labels
_MOST_TURNED_DEGREES = 40  # a longer axis that lies further off is not trusted
_MIN_QUALITY = 0.7  # below it there is no result
_MIN_QUALITY_ANY = 0.88  # the same of the model for any contrast, which is surer of noise, too
_SURE, _SURE_TOGETHER = 0.93, 0.83  # a quality below is flagged: of one model, of the average of two
_AGREE = 0.75  # Dice of two models with each other, below which is a flag
_ALIKE = 0.75  # Dice with the model for any contrast, below which the contrast is in doubt
_DOUBT = "contrast_doubtful"  # its flag
_TURNED_DEGREES = 7  # of the further views, about the corners of a tetrahedron
VIEWS = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / 3**0.5
VIEWS = Rotation.from_rotvec(np.radians(_TURNED_DEGREES) * VIEWS).as_matrix()
_VOLUME_MM3 = (300, 12_000)  # of a hippocampus, generously
_SURER = 0.015  # by so much has the better side of a crop to be surer than the other


class Hippocampus(NamedTuple):
    """One side. labels (d, h, w) uint8, 1 anterior and 2 posterior, and probabilities (3, d, h, w) float32, on the scan's
    grid inside `place`, slices of the array in RAS; window: where the models looked.

    quality: mean largest probability inside the labels; problem: why there is no result, else empty.
    """

    side: str
    problem: str
    quality: float = 0.0
    flags: tuple = ()
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    place: tuple = ()
    window: Window | None = None

    def volumes_mm3(self, scan):
        """[anterior, posterior]: voxels x the volume of a voxel."""
        voxel = abs(float(np.linalg.det(scan.matrix)))
        return [np.count_nonzero(self.labels == label) * voxel for label in (1, 2)]


def segment(
    models, locator, scan, device, dtype, tta=True, side="auto", strict=True, any_contrast=None, contrast="auto"
):
    """(list of Hippocampus, Located or None) of a Scan: both sides of a head, one of a crop.

    models: list of TrainedModel of one spacing; the first one finds the window, all are averaged. side: of a crop, left,
    right or auto (the side that the models are surer of). strict: what is too unsure is refused; if not, it is flagged,
    as for models of phantoms, which are sure of nothing.
    any_contrast: TrainedModel for what is not T1-weighted, or None. contrast: t1 (the models), any (any_contrast), or auto:
    any_contrast where the scan does not look T1-weighted, and for a side on which it sees another hippocampus than the
    models, and these find nothing, are unsure, or do not agree with each other.
    """
    how = {"device": device, "dtype": dtype, "tta": tta, "strict": strict}
    located = None if scan.is_crop else locate(locator, scan, device, dtype)
    places = _places_in_crop(locator, scan, side, device, dtype) if scan.is_crop else _places(located)

    def both(models, **more):
        results = [
            place if isinstance(place, Hippocampus) else segment_side(models, scan, place, name, **more, **how)
            for name, place in places.items()
        ]
        return [_surer(results)] if scan.is_crop else results

    def other():
        looked = {name for name, place in places.items() if not isinstance(place, Hippocampus)}
        results = both([any_contrast], least=_MIN_QUALITY_ANY)
        return [r._replace(flags=("any_contrast", *r.flags)) if r.side in looked else r for r in results]

    if any_contrast is None or contrast == "t1":
        return both(models, check=any_contrast), located
    if contrast == "any" or located and "contrast_not_t1" in located.flags:
        return other(), located
    results = both(models, check=any_contrast)
    if any(_gives_way(result) for result in results):
        results = [second if _gives_way(first) else first for first, second in zip(results, other())]
    return results, located


def _gives_way(result):
    """Whether the model for any contrast is to be taken: the others find nothing, or see something else and are unsure of
    it, or do not agree among themselves. Where they are sure, as of an atrophied hippocampus, they are often right."""
    unsure = {"low_quality", "models_disagree"} & {*result.flags}
    return bool(result.problem or unsure and _DOUBT in result.flags)


def _places(located):
    """{side: middle in mm, or a Hippocampus that says why there is none} of a head."""
    return {
        name: Hippocampus(name, located.problems[name]) if name in located.problems else located.centres[name]
        for name in SIDES
    }


def _places_in_crop(locator, scan, side, device, dtype):
    """The same of the sides that a crop may show; None: all of the crop is the window."""
    names = SIDES if side == "auto" else (side,)
    if (scan.sides_mm <= SMALL_CROP_MM).all():
        return dict.fromkeys(names)
    found = locate(locator, scan, device, dtype)
    if all(found.centres[name] is None for name in SIDES):
        name = "" if side == "auto" else side
        return {name: Hippocampus(name, "no hippocampus found in this crop")}
    best = max((name for name in SIDES if found.centres[name] is not None), key=found.certainty.get)
    return dict.fromkeys(names, found.centres[best])


def _surer(results):
    """The result of the side of a crop that the models are surer of, flagged where the other side is almost as likely."""
    best = max(results, key=lambda result: result.quality)
    if len(results) == 2 and best.quality - min(r.quality for r in results) < _SURER and not best.problem:
        best = best._replace(flags=(*best.flags, "side_uncertain"))
    return best


def joint_labels(sides, scan, whole=False):
    """The label map (D, H, W) uint8 of a scan. Head: 1 left anterior, 2 left posterior, 3 right anterior, 4 right
    posterior; crop: 1 and 2; whole: 17 left and 53 right, FreeSurfer's numbers of the whole hippocampus."""
    result = np.zeros(scan.array.shape, np.uint8)
    for side in (side for side in sides if not side.problem):
        part, labels = result[side.place], side.labels
        if whole:
            labels = np.where(labels > 0, 17 if side.side == "left" else 53, 0)
        elif side.side == "right" and not scan.is_crop:
            labels = np.where(labels > 0, labels + 2, 0)
        part[labels > 0] = labels[labels > 0]
    return result


def joint_probabilities(sides, scan):
    """Soft maps (D, H, W, N) float32 of a scan, in the order of joint_labels: N = 4 of a head, 2 of a crop."""
    result = np.zeros((*scan.array.shape, 2 if scan.is_crop else 4), np.float32)
    for side in (side for side in sides if not side.problem):
        first = 2 if side.side == "right" and not scan.is_crop else 0
        result[(*side.place, slice(first, first + 2))] = np.moveaxis(side.probabilities[1:], 0, -1)
    return result


def segment_side(models, scan, centre_mm, side, device, dtype, tta=True, strict=True, check=None, least=None):
    """The Hippocampus around a place in mm; centre_mm None: all of a small crop is the window.

    The training's crops show what looks like a left hippocampus, so the right one is mirrored. The window is centred
    anew on what was found until it stays. check: a further TrainedModel; where it sees another hippocampus in the window,
    the result is flagged. least: quality of a result, if another than usual.
    """
    mirrored, spacing = side == "right", models[0].preprocessing["spacing_mm"]
    matrix, flags = scan.matrix, []
    if centre_mm is None:
        matrix = np.diag(np.linalg.norm(scan.matrix, axis=0))  # the crop's own axes
        size = np.maximum(np.round(scan.sides_mm / spacing), 1).astype(int)
        window = Window(np.zeros(3), tuple(size.tolist()), spacing, mirrored)
    else:
        window = Window(centre_mm, WINDOW, spacing, mirrored)
        for move in range(_MOVES):
            found = _found(_predict(models[:1], scan, matrix, window, device, dtype, False))
            if not found.any():
                return Hippocampus(side, f"no {side} hippocampus found where it should be")
            middle, turn = _pose(found, window)
            moved = np.linalg.norm(middle - window.centre_mm)
            turned = np.degrees(np.arccos(np.clip((np.trace(turn.T @ window.turn) - 1) / 2, -1, 1)))
            if move >= 2:  # half-way, so that it does not swing between two places
                middle = (middle + window.centre_mm) / 2
            window = window._replace(centre_mm=middle, turn=turn)
            if moved < _STAYS_MM and turned < _STAYS_DEGREES:
                break
        else:
            flags.append("window_unsettled")
    members = [_predict([model], scan, matrix, window, device, dtype, tta) for model in models]
    probabilities = sum(members) / len(members)
    found = _found(probabilities)
    if not found.any():
        return Hippocampus(side, f"no {side} hippocampus found where it should be")
    quality = float(probabilities.max(0)[found].mean())
    if centre_mm is not None and _touches_edge(found, (slice(None),) * 3, found.shape):
        flags.append("touches_window")
    if len(members) > 1 and dice(*(_found(member) for member in members[:2])) < _AGREE:
        flags.append("models_disagree")
    if check and dice(found, _found(_predict([check], scan, matrix, window, device, dtype, False))) < _ALIKE:
        flags.append(_DOUBT)
    if quality < (_SURE if len(members) == 1 else _SURE_TOGETHER):
        flags.append("low_quality")
    parts = [(probabilities, window)] * len(models)
    if tta and centre_mm is not None:
        for turn in VIEWS:
            view = window._replace(turn=window.turn @ turn)
            parts.append((_predict(models[:1], scan, matrix, view, device, dtype, False), view))
    on_grid, place = _on_grid(parts, scan.array.shape, matrix)
    # a small crop as in the evaluation
    inside = on_grid.argmax(0) > 0 if centre_mm is None else _likeliest(on_grid, parts)
    labels = np.where(inside, 1 + (on_grid[2] > on_grid[1]), 0).astype(np.uint8)
    labels *= largest_component(labels > 0)
    if _touches_edge(labels > 0, place, scan.array.shape):
        flags.append("touches_field_of_view")
    result = Hippocampus(side, "", quality, tuple(flags), labels, on_grid, place, window)
    return result._replace(problem=_doubt(result, scan, least) if strict else "")


def _pose(found, window):
    """(middle in mm of the box around what was found, rotation (3, 3) of the window in which its long axis runs as in the
    training's crops)."""
    voxels = np.argwhere(found)
    middle = window.to_mm((voxels.min(0) + voxels.max(0)) / 2)
    points = (voxels - voxels.mean(0)) @ window.steps().T  # mm
    axis = np.linalg.eigh(points.T @ points)[1][:, 2]
    axis = axis * (np.sign(axis @ window.turn[:, 1]) or 1)
    usual = np.array(_LONG_AXIS) * ((-1, 1, 1) if window.mirrored else 1)
    angle = np.degrees(np.arccos(np.clip(axis @ usual, -1, 1)))
    if angle > _MOST_TURNED_DEGREES:
        return middle, window.turn
    normal = np.cross(usual, axis)
    normal = normal / max(np.linalg.norm(normal), 1e-9)
    return middle, Rotation.from_rotvec(normal * np.radians(angle)).as_matrix()


def _predict(models, scan, matrix, window, device, dtype, tta):
    """Probabilities (3, *window.size) of the classes in a window of a Scan."""
    image = normalise(cut(scan.array, matrix, window))
    return predict_volume(models, image, device, dtype, tta).cpu().numpy()


def _on_grid(parts, shape, matrix):
    """The mean of probabilities seen through several windows, [(array (C, *window.size), Window), ...], on the grid of a
    scan of this shape: ((C, d, h, w) float32, slices of the scan that they cover)."""
    brought = [bring_back(probabilities, window, shape, matrix) for probabilities, window in parts]
    starts = np.min([[s.start for s in place] for _, place in brought], axis=0)
    stops = np.max([[s.stop for s in place] for _, place in brought], axis=0)
    total = np.zeros((len(parts[0][0]), *(stops - starts)), np.float32)
    total[0] = 1  # background, where a window does not reach
    for probabilities, place in brought:
        inside = tuple(slice(s.start - start, s.stop - start) for s, start in zip(place, starts))
        total[(slice(None), *inside)] += probabilities / len(parts)
        total[(0, *inside)] -= 1 / len(parts)
    return total, tuple(map(slice, starts, stops))


def _likeliest(on_grid, parts):
    """The voxels of a grid (boolean) that are likeliest to be hippocampus, as many as make the volume that it has in the
    windows: on voxels of 3 mm, those of more than one half would be too few."""
    foreground = 1 - on_grid[0]
    windows = [1 - probabilities[0] for probabilities, _ in parts]
    share = sum((window > 0.5).sum() for window in windows) / sum(window.sum() for window in windows)
    count = min(int(round(float(foreground.sum() * share))), foreground.size)
    return foreground >= (np.partition(foreground, -count, None)[-count] if count else np.inf)


def _found(probabilities):
    """The largest component of the hippocampus, where it is the likeliest class."""
    return largest_component(probabilities.argmax(0) > 0)


def _touches_edge(mask, place, shape):
    """Whether a boolean array, which lies at `place` in an array of this shape, reaches the edge of the latter."""
    for axis, (part, size) in enumerate(zip(place, shape)):
        low, high, _ = part.indices(size)
        ends = ([0] if low == 0 else []) + ([mask.shape[axis] - 1] if high == size else [])
        if ends and mask.take(ends, axis).any():
            return True
    return False


def _doubt(result, scan, least):
    """Why a result is none: too unsure, or of a size that no hippocampus has; else empty."""
    least = _MIN_QUALITY if least is None else least
    if result.quality < least:
        return f"no hippocampus for sure: quality {result.quality:.2f}, expected {least} or more"
    volume = sum(result.volumes_mm3(scan))
    if not _VOLUME_MM3[0] <= volume <= _VOLUME_MM3[1]:
        low, high = _VOLUME_MM3
        return f"{volume:.0f} mm3 is no volume of a hippocampus; expected {low} to {high}"
    return ""
