"""Loads the networks that segment scans."""

from pathlib import Path
from typing import NamedTuple

from hippo.data.intensity import NORMALISATION
from hippo.device import set_up_device
from hippo.errors import require
from hippo.files import ROOT, digest
from hippo.heads.locate import load_locator
from hippo.heads.quality import FIT
from hippo.models.checkpoint import find_checkpoint, load_model
from hippo.models.inference import has_dropout

import torch

SHIPPED = "pretrained/heads_3d.pth"  # only with these weights, results are compared with the any-contrast model


class Networks(NamedTuple):
    """The loaded networks. models: list of TrainedModel; locator; any_contrast, sampler: TrainedModel or None;
    synthetic: whether one of them was trained on phantoms; shipped: whether the first model has the weights SHIPPED;
    name: file names of the models; checksums: {option: SHA-256} of all weights; device: torch.device; dtype: of
    autocast, or None."""

    models: list
    locator: object
    any_contrast: object
    sampler: object
    synthetic: bool
    shipped: bool
    name: str
    checksums: dict
    device: torch.device
    dtype: torch.dtype | None

    @property
    def single_label(self):
        """Whether the models have one label for a hippocampus, instead of two parts."""
        return _classes(self.models[0]) == 2


def _classes(trained):
    return trained.model.head.out_channels


def load_networks(cfg):
    """Loads the Networks of a configuration onto its device. Raises UserError if weights are missing or do not fit
    together."""
    device, dtype = set_up_device(cfg.device, cfg.amp)
    require(cfg.checkpoint, "--checkpoint=: expected a checkpoint")
    options = ["checkpoint", "partner", "any_contrast"] + ["sampler"] * bool(cfg.samples)
    files = {option: getattr(cfg, option) for option in options if getattr(cfg, option)}
    loaded, synthetic = {}, False
    for option, path in files.items():
        trained, info = load_model(path, classes=(2, 3) if option in ("checkpoint", "partner") else (3,))
        loaded[option] = trained.to(device)
        if info.get("synthetic"):
            synthetic = True
            print(f"{path} was trained on SYNTHETIC phantoms: its results say nothing about real scans")
        ours, first = trained.preprocessing, loaded["checkpoint"].preprocessing
        require(ours["normalisation"] == NORMALISATION, f"{path}: trained on heads; expected a model of crops")
        same = ours["spacing_mm"] == first["spacing_mm"]
        require(same, f"{path}: trained on another spacing than {cfg.checkpoint}; use one of them alone")
        alike = option != "partner" or _classes(trained) == _classes(loaded["checkpoint"])
        require(alike, f"{path}: it has other labels than {cfg.checkpoint}; use that alone: --partner=")
    sampler = loaded.get("sampler")
    expected = f"{cfg.sampler}: expected a 3D model that was trained with --dropout"
    require(sampler is None or has_dropout(sampler), expected)
    models = [loaded[option] for option in ("checkpoint", "partner") if option in loaded]
    name = "+".join(Path(files[option]).name for option in ("checkpoint", "partner") if option in files)
    locator = load_locator(cfg.locate).to(device)
    used = {option: find_checkpoint(path) for option, path in (files | {"locate": cfg.locate}).items()}
    checksums = {option: digest(path) for option, path in (used | {"quality": ROOT / FIT}).items()}
    others = loaded.get("any_contrast"), sampler
    shipped = (ROOT / SHIPPED).is_file() and checksums["checkpoint"] == digest(ROOT / SHIPPED)
    return Networks(models, locator, *others, synthetic, shipped, name, checksums, device, dtype)
