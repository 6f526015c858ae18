"""What several tests share: small runs, how runs are compared, and what is in a picture."""

import json

from hippo.models.checkpoint import load_checkpoint

import numpy as np
import torch
from matplotlib.colors import to_rgb
from skimage.io import imread

SMALL_3D = ("--base_channels=2", "--unet_depth=2", "--patch=[24,32,24]", "--max_cases=5", "--min_steps=1", "--epochs=3")
SMALL_3D += ("--tta=False",)
SMALL_2D = ("--model=UNetnnUNetWithINR", "--base_channels=2", "--unet_depth=2", "--min_steps=1", "--epochs=3")


def numbers(folder):
    """history.json without the times."""
    history = json.loads((folder / "history.json").read_text())
    return {name: values for name, values in history.items() if name != "seconds"}


def assert_same_run(a, b):
    """The same history, and the same weights bit for bit."""
    assert numbers(a) == numbers(b)
    for name in ("last.pth", "best_model.pth"):
        one, other = (load_checkpoint(folder / name)["model_state_dict"] for folder in (a, b))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (a, b)]
    for result in results:
        result.pop("training_minutes")
    assert results[0] == results[1]


def leftovers(folder):
    """Half-written files below a folder."""
    return [p for p in folder.rglob(".*") if p.is_file()]


def share_of(path, colour, tolerance=0.06):
    """The share of a picture's pixels that have a colour, nearly; 0 to 1."""
    picture = imread(path)[..., :3] / 255
    return float((np.abs(picture - to_rgb(colour)).max(-1) < tolerance).mean())


def has_colour(path, colour):
    """Whether some of a picture's pixels have a colour: a hundred thousandth of them, or more."""
    return share_of(path, colour) > 1e-5
