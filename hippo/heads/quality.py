"""How good a segmentation is likely to be, from what the models say of it."""

import numpy as np


def expected_dice(probabilities):
    """The Dice that probabilities (3, D, H, W) expect of their own likeliest labels, mean of both parts.

    A voxel of a label is right with its probability; so many voxels of it there are as the probabilities add up to.
    """
    labels = probabilities.argmax(0)
    values = []
    for part in (1, 2):
        there = labels == part
        hits, total = probabilities[part][there].sum(), there.sum() + probabilities[part].sum()
        values.append(2 * hits / total if total else 1.0)
    return float(np.mean(values))
