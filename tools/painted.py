"""Heads painted from anatomies (label maps) at 1 mm, in contrasts as those of usual sequences."""

from hippo.data.anatomies import BETWEEN, FLUID, GREY, WHITE
from hippo.data.nifti import read_nifti
from hippo.heads.scan import Scan

import numpy as np
from scipy.ndimage import gaussian_filter

_TISSUES = ("white matter", "grey matter", "fluid", "outside")
PAINTED = {
    "T1": (0.9, 0.6, 0.15, 0.5),
    "T2": (0.35, 0.5, 1, 0.3),
    "PD": (0.7, 0.85, 0.95, 0.5),
    "FLAIR": (0.55, 0.7, 0.1, 0.4),
}
PAINTED = {name: dict(zip(_TISSUES, values)) for name, values in PAINTED.items()}


def paint(path, contrast, rng):
    """(Scan, label map (D, H, W)) of an anatomy, painted in one of PAINTED at 1 mm, slightly blurred and noisy."""
    labels = read_nifti(path)[0].astype(int)
    values = PAINTED[contrast]
    mean = np.full(1024, values["outside"])
    tissues = {"white matter": WHITE, "grey matter": (*GREY, *BETWEEN), "fluid": FLUID}
    for tissue, members in tissues.items():
        mean[list(members)] = values[tissue]
    mean[0] = 0.02
    image = gaussian_filter(mean[labels], 0.5) + 0.03 * rng.standard_normal(labels.shape)
    return Scan(image.astype(np.float32), np.eye(3), np.zeros(3), None, []), labels
