"""Writes checkpoints atomically, reads them as untrusted files, and builds the models that they name.

A checkpoint is a dict of tensors and plain values: "model" {"name", "args"}, "model_state_dict", "preprocessing" (see
hippo.models.inference), and what the run adds: "train_cases", "val_cases", "fold", "synthetic", "epoch", ...
"""

import zipfile
from pathlib import Path

import model2d
import unet_inr_3d
from hippo.errors import UserError
from hippo.files import ROOT, atomic
from hippo.models.attention import ATTENTION
from hippo.models.blocks import count_parameters
from hippo.models.inference import TrainedModel, make_preprocessing

import torch

_ENTRIES = {"model", "model_state_dict", "preprocessing"}
MODELS = {**unet_inr_3d.MODELS, **model2d.MODELS}
# largest accepted values of a model's arguments; 1024 for the others
_LARGEST = {"depth": 10, "unet_depth": 10, "convs": 4, "inr_chunk": 0, "dropout": 0.99}


def save_checkpoint(path, content):
    """Writes a dict of tensors and plain Python values, completely or not at all. Raises OSError that names the file."""
    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch raises this if the disk is full
            raise OSError(str(error).splitlines()[0]) from None


def load_checkpoint(path, made_by="python train_3d.py or python train2d.py"):
    """Loads a checkpoint to the CPU. Only tensors and plain values are read; no code in the file is ever run.

    A relative path that does not exist is also looked up in the repository, so that the shipped models are found from
    any folder. Raises UserError for a file that is missing, broken or of another project; `made_by` is the command
    that creates it.
    """
    path = find_checkpoint(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; make it with: {made_by}")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch writes without compression: a file that declares more than it holds is malicious
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a broken or hostile file
        kind = type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({kind}); make it with: {made_by}") from None
    if not isinstance(content, dict) or not content.keys() >= _ENTRIES:
        raise UserError(
            f"{path}: a checkpoint, but not of this project (no {', '.join(sorted(_ENTRIES))}); make it with: {made_by}"
        )
    return content


def find_checkpoint(path):
    """Returns the path or, if it does not exist, the same path in the repository."""
    return Path(path) if Path(path).is_file() or not (ROOT / path).is_file() else ROOT / path


def load_model(path, classes=(3,), channels=(1,)):
    """Loads a model. Returns (TrainedModel in eval mode on the CPU, checkpoint without its weights). Raises UserError,
    see load_checkpoint, and for another kind of model, or numbers of classes and of channels of the image that are not
    in `classes` and `channels`."""
    info = load_checkpoint(path, "python train_3d.py or python train2d.py; a shipped one: git checkout pretrained")
    try:
        weights = info.pop("model_state_dict")
        model = _build(info["model"], weights, (channels, classes), find_checkpoint(path).stat().st_size)
        info["preprocessing"] = make_preprocessing(**info["preprocessing"])
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: a checkpoint of another model ({reason}); expected one of {', '.join(MODELS)}, as train_3d.py and "
            "train2d.py write"
        ) from None
    return TrainedModel(model.eval(), info["preprocessing"]), info


def _is_plausible(key, value):
    """Whether an argument of a model has a value that the training scripts could have written."""
    return value in ATTENTION if key == "attention" else 0 <= value <= _LARGEST.get(key, 1024)


def _build(description, weights, expected, file_size):
    """Builds the described network ("name", "args") with its weights, in float32. expected: possible numbers of
    channels and of classes. The file is not trusted: the network is first built without memory, and filled only if the
    file is large enough to hold its weights. Raises one of several errors if something does not match."""
    name, args = description["name"], description["args"]
    if not all(_is_plausible(*item) for item in args.items()):
        raise ValueError(f"a {name} of {args}")
    with torch.device("meta"):
        model = MODELS[name](**args)
    for n, possible, where in zip((model.in_channels, model.head.out_channels), expected, ("in", "out")):
        if n not in possible:
            raise ValueError(f"{n} channels {where}, and not {' or '.join(map(str, possible))}")
    if count_parameters(model) > file_size:
        raise ValueError(f"a file too small for a {name} of {args}")
    model.load_state_dict(weights, assign=True)
    if not all(v.is_floating_point() and torch.isfinite(v).all() for v in weights.values()):
        raise ValueError("weights that are not finite numbers")
    return model.float()
