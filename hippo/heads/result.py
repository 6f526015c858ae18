"""The result of a scan: volumes with their units, flags, and the arrays behind them."""

from dataclasses import dataclass, field
from numbers import Real

from hippo.data.nifti import spacing_mm, to_stored_orientation
from hippo.errors import require
from hippo.heads.flags import FLAGS
from hippo.heads.locate import Located
from hippo.heads.profile import profile
from hippo.heads.save import paths_in, save_result
from hippo.heads.scan import Scan
from hippo.heads.segment import Hippocampus, joint_labels, joint_probabilities

import numpy as np

PARTS = ("anterior", "posterior", "total")


@dataclass(frozen=True)
class Side:
    """The result for one hippocampus.

    side: left or right, or empty if a crop shows no hippocampus. Volumes are in mm3, counted on the scan's own grid;
    they are None if there is no result, and those of the parts also if the models do not separate the parts. quality:
    predicted Dice. flags: Flags of this side. problem: why there is no result, else empty. model: names of the
    weights. spread_mm3: {part: standard deviation over samples}. found: windows, probabilities and labels in RAS.
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
        """Returns the label map (uint8) on the scan's own grid: 1 anterior, 2 posterior. It is all 0 if there is no
        result."""
        return to_stored_orientation(joint_labels([self.found], self.scan, crop=True), self.scan.image)

    def profile(self):
        """Returns the Profile along the long axis, see heads.profile. There must be a result."""
        labels = self.found.labels
        return profile(labels if self.anterior_mm3 is not None else labels > 0, self.scan.matrix)


@dataclass(frozen=True)
class Result:
    """The result of Segmenter for a scan.

    name: file of the scan. sides: left and right of a head, or the one of a crop. flags: Flags of the whole scan;
    each side has its own, too, see all_flags.
    etiv_mm3: intracranial volume, None for a crop. etiv_source: network, given, or empty. seconds: time to read and
    segment. single_label: whether labels are FreeSurfer's numbers of the whole hippocampus. synthetic: whether the
    models were trained on phantoms. scan, located: the input and where the hippocampi were found. uncertainty: maps
    (D, H, W, 2) in the stored orientation of predictive entropy and mutual information, or None.
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
        """The left Side, or None for a crop of the right one."""
        return next((side for side in self.sides if side.side == "left"), None)

    @property
    def right(self):
        """The right Side, or None for a crop of the left one."""
        return next((side for side in self.sides if side.side == "right"), None)

    @property
    def all_flags(self):
        """The Flags of the scan and of its sides, each once."""
        return tuple(dict.fromkeys([*self.flags, *(flag for side in self.sides for flag in side.flags)]))

    @property
    def has_result(self):
        """Whether at least one side has a volume."""
        return any(not side.problem for side in self.sides)

    def labels(self, numbered_as_crop=None):
        """Returns the label map (uint8) on the scan's own grid. Head: 1 left anterior, 2 left posterior, 3 right
        anterior, 4 right posterior. Crop: 1 and 2. single_label: 17 left, 53 right. numbered_as_crop: whether to use
        the labels of a crop; None: only if the scan is one."""
        found = [side.found for side in self.sides]
        return to_stored_orientation(
            joint_labels(found, self.scan, self.single_label, numbered_as_crop), self.scan.image
        )

    def probabilities(self, numbered_as_crop=None):
        """Returns probabilities in [0, 1] of the anterior and posterior parts, float32 (D, H, W, N) on the scan's own
        grid: N = 4 for a head, 2 for a crop."""
        found = [side.found for side in self.sides]
        return to_stored_orientation(joint_probabilities(found, self.scan, numbered_as_crop), self.scan.image)

    def rows(self):
        """Returns the rows of predict.py's table, one per side: {column: text}."""
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
        row |= {
            "etiv_source": self.etiv_source,
            "voxel_mm": " x ".join(f"{mm:.2f}" for mm in spacing_mm(self.scan.image)),
        }
        return row | {f"{part}_sd_mm3": f"{value:.1f}" for part, value in side.spread_mm3.items()}

    def save(self, folder, name=""):
        """Writes the label map and the picture that predict.py writes, named after the scan or as told. Returns their
        paths. Files of the same names are replaced, so give scans of one name different names or folders."""
        return save_result(self, folder, paths_in(name or self.name, self.scan.is_crop))


def as_side(found, scan, model, single_label, spread=()):
    """Converts a Hippocampus to a Side. spread: standard deviations of its volumes, in the order of PARTS."""
    anterior, posterior = (None, None) if found.problem else found.volumes_mm3(scan)
    total = None if found.problem else anterior + posterior
    if single_label:
        anterior = posterior = None
    flags = tuple(FLAGS[name] for name in found.flags)
    quality = None if found.problem else found.quality
    spreads = dict(zip(PARTS, spread))
    return Side(found.side, anterior, posterior, total, quality, flags, found.problem, model, spreads, found, scan)


def check_etiv(value, where):
    """Returns an intracranial volume in mm3. Raises UserError, whose message begins with `where`, for one that is none."""
    possible = isinstance(value, Real) and 1e5 <= value <= 1e7
    shown = f"{value:g}" if isinstance(value, Real) else value
    require(possible, f"{where}: {shown} is no intracranial volume in mm3; expected about 1500000")
    return float(value)


def readable(path):
    """Returns a path as text that can be written to any file, even if its name is not valid UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _text(value, form):
    return "" if value is None else format(value, form)
