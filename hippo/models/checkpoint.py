"""Checkpoints: written whole, read without trust, built into the model that they name."""

import zipfile
from pathlib import Path

import torch

import model2d
import unet_inr_3d
from hippo.errors import UserError
from hippo.files import atomic
from hippo.models.blocks import count_parameters

MODELS = {**unet_inr_3d.MODELS, **model2d.MODELS}


def save_checkpoint(path, content):
    """Writes a dict of tensors and plain Python values, whole or not at all."""
    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(str(error).splitlines()[0]) from None


def load_checkpoint(path, made_by="python train_3d.py or python train2d.py"):
    """Reads a checkpoint of this project onto the CPU, tensors and plain values only (nothing in the file is ever run)."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; make it with: {made_by}")
    try:
        with zipfile.ZipFile(
            path
        ) as archive:  # torch writes without compression: more promised than there is is a trap
            if sum(entry.file_size for entry in archive.infolist()) > Path(path).stat().st_size:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a broken or hostile file
        raise UserError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); make it with: {made_by}"
        ) from None
    if not isinstance(content, dict) or not {"model", "model_state_dict"} <= content.keys():
        raise UserError(
            f"{path}: a checkpoint, but not of this project (no model and model_state_dict); make it with: {made_by}"
        )
    return content


def load_model(path):
    """(model in eval mode, checkpoint without its weights). Raises UserError for a checkpoint of another kind of model.

    The file is not trusted: the network is built without memory first, and only if the file is large enough to hold it.
    """
    info = load_checkpoint(path, "python train_3d.py or python train2d.py; a shipped one: git checkout pretrained")
    try:
        weights, name, args = info.pop("model_state_dict"), info["model"]["name"], info["model"]["args"]
        limits = {"depth": 10, "unet_depth": 10, "convs": 4, "inr_chunk": 0}
        if not all(0 <= value <= limits.get(key, 1024) for key, value in args.items()):
            raise ValueError(f"a {name} of {args}")
        with torch.device("meta"):
            model = MODELS[name](**args)
        if (model.in_channels, model.head.out_channels) != (1, 3):
            raise ValueError("expected 1 channel in and 3 out")
        if count_parameters(model) > Path(path).stat().st_size:
            raise ValueError(f"a file too small for a {name} of {args}")
        model.load_state_dict(weights, assign=True)
        if not all(v.is_floating_point() and torch.isfinite(v).all() for v in weights.values()):
            raise ValueError("weights that are not finite numbers")
        model.float()
        model.slice_size = info.get("slice_size", model.slice_size)
        if not (isinstance(model.slice_size, int) and 8 <= model.slice_size <= 1024):
            raise ValueError("slice_size")
        model.flip_axes = axes = info.get("flip_axes", "")
        if not isinstance(axes, str) or sorted(axes) != sorted(set(axes) & set("xyz")):
            raise ValueError("flip_axes")
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path}: a checkpoint of another model ({(str(error) or type(error).__name__).splitlines()[0]}); "
            f"expected one of {', '.join(MODELS)}, as train_3d.py and train2d.py write"
        ) from None
    return model.eval(), info
