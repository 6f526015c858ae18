"""What was found in a scan: numbers with their units, flags, and the arrays behind them."""

from dataclasses import dataclass, field

from hippo.data.nifti import to_stored_orientation
from hippo.heads.flags import FLAGS
from hippo.heads.locate import Located
from hippo.heads.scan import Scan
from hippo.heads.segment import Hippocampus, joint_labels, joint_probabilities

import numpy as np

PARTS = ("anterior", "posterior", "total")


@dataclass(frozen=True)
class Side:
    """One hippocampus.

    side: left or right, or empty where a crop shows none. Volumes in mm3, counted on the scan's own grid: None where there is
    no result, and those of the parts where the models tell none apart. quality: the Dice to expect. flags: Flags of this side;
    problem: why there is no result, else empty. model: names of the weights. spread_mm3: {part: standard deviation over samples}.
    found: windows, probabilities and labels in RAS.
    """

    side: str
    anterior_mm3: float | None
    posterior_mm3: float | None
    total_mm3: float | None
    quality: float | None
    flags: tuple
    problem: str
    model: str
    spread_mm3: dict
    found: Hippocampus = field(repr=False)
    scan: Scan = field(repr=False)

    @property
    def labels(self):
        """Label map uint8 on the scan's own grid: 1 anterior, 2 posterior. Nothing is labelled where there is no result."""
        return to_stored_orientation(joint_labels([self.found], self.scan, crop=True), self.scan.image)


@dataclass(frozen=True)
class Result:
    """What Segmenter says of a scan.

    name: the scan's file. sides: left and right of a head, one of a crop. flags: Flags of the whole scan. etiv_mm3: intracranial
    volume, None of a crop; etiv_source: network, given, or empty. seconds: of reading and segmenting. single_label: labels are
    FreeSurfer's numbers of the whole hippocampus. synthetic: the models learned from phantoms. scan, located: what was
    read and where it was found; uncertainty: maps (D, H, W, 2) as stored of predictive entropy and mutual information, or None.
    """

    name: str
    sides: tuple
    flags: tuple
    etiv_mm3: float | None
    etiv_source: str
    seconds: float
    single_label: bool
    synthetic: bool
    scan: Scan = field(repr=False)
    located: Located | None = field(repr=False, default=None)
    uncertainty: np.ndarray | None = field(repr=False, default=None)

    @property
    def left(self):
        """The left Side; None of a crop of the right one."""
        return next((side for side in self.sides if side.side == "left"), None)

    @property
    def right(self):
        """The right Side; None of a crop of the left one."""
        return next((side for side in self.sides if side.side == "right"), None)

    @property
    def has_result(self):
        """Whether a side has a volume."""
        return any(not side.problem for side in self.sides)

    def labels(self, numbered_as_crop=None):
        """Label map uint8 on the scan's own grid: 1 left anterior, 2 left posterior, 3 right anterior, 4 right posterior; of a crop
        1 and 2; of single_label 17 left and 53 right. numbered_as_crop: whether it is a crop; None: if it is one."""
        found = [side.found for side in self.sides]
        return to_stored_orientation(
            joint_labels(found, self.scan, self.single_label, numbered_as_crop), self.scan.image
        )

    def probabilities(self, numbered_as_crop=None):
        """Soft maps float32 (D, H, W, N) on the scan's own grid, of anterior and posterior, 0 to 1: N = 4 of a head, 2 of a crop."""
        found = [side.found for side in self.sides]
        return to_stored_orientation(joint_probabilities(found, self.scan, numbered_as_crop), self.scan.image)

    def rows(self):
        """The rows of predict.py's table, one a side: {column: text}."""
        return [self._row(side) for side in self.sides]

    def _row(self, side):
        flags = [str(flag) for flag in (*self.flags, *side.flags)]
        if side.problem:
            flags.append(f"failed: {side.problem}".replace(";", ","))
        row = {"scan": readable(self.name), "side": side.side}
        row |= {f"{part}_mm3": _text(getattr(side, f"{part}_mm3"), ".1f") for part in PARTS}
        row |= {
            "etiv_mm3": _text(self.etiv_mm3, ".0f"),
            "quality": _text(side.quality, ".3f"),
            "flags": ";".join(flags),
        }
        row |= {"seconds": f"{self.seconds:.2f}", "model": side.model}
        return row | {f"{part}_sd_mm3": f"{value:.1f}" for part, value in side.spread_mm3.items()}

    def save(self, folder):
        """Writes the label map and the picture that predict.py writes, named after the scan; returns their paths."""
        from hippo.heads.save import paths_in, save_result  # it needs matplotlib, which takes its time

        return save_result(self, folder, paths_in(self.name, self.scan.is_crop))


def as_side(found, scan, model, single_label, spread=()):
    """The Side of a Hippocampus. spread: standard deviations of its volumes, in the order of PARTS."""
    anterior, posterior = (None, None) if found.problem else found.volumes_mm3(scan)
    total = None if found.problem else anterior + posterior
    if single_label:
        anterior = posterior = None
    flags = tuple(FLAGS[name] for name in found.flags)
    quality = None if found.problem else found.quality
    spreads = dict(zip(PARTS, spread))
    return Side(found.side, anterior, posterior, total, quality, flags, found.problem, model, spreads, found, scan)


def readable(path):
    """A path as text that every file can hold, also where its name is of another encoding."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _text(value, form):
    return "" if value is None else format(value, form)
