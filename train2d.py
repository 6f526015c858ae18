"""Trains a 2D U-Net on the slices of data_aug.py and evaluates it on slices and on whole volumes.

    python data_aug.py && python train2d.py     the default recipe, about an hour on two CPU cores with bf16
    python train2d.py --resume=True             goes on with an unfinished run

Slices are predicted for their volume's own voxels. They are scored as the original design did (a label absent from both
counts 1), and here (a slice counts for a label only if truth or prediction has it). Volumes are scored as in 3D, on their
own grid: every slice in three planes is predicted, and the probabilities are averaged. Writes into OUT_DIR:
best_model.pth, last.pth, history.json, config.json, metrics.json and plots/*.png.
"""

from functools import partial
from pathlib import Path

from hippo.data.augment import PARTS
from hippo.data.cases import load_volumes
from hippo.data.degrade import ROBUST
from hippo.data.loading import AugmentedDataset, make_loader
from hippo.data.slices import first_cases, load_slices, select, slice_grids
from hippo.device import seed_everything, set_up_device
from hippo.errors import require
from hippo.models.inference import TrainedModel, make_preprocessing
from hippo.options import configure, constants, run_script
from hippo.pictures import plots
from hippo.processes import join_processes, on_first, silence_all_but_the_first
from hippo.scoring.evaluation import evaluate_run
from hippo.scoring.evaluation_2d import evaluate_slices
from hippo.training.engine import fit
from hippo.training.losses import dice_ce_loss
from hippo.training.run_folder import check_preset, check_training, start_run
from hippo.training.state import unvalidated
from hippo.training.transfer import begin_with, check_transfer
from model2d import MODELS

import numpy as np

# data
DATA_DIR = "dataset_2d"  # slices, as data_aug.py writes them
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder that they were cut from, for the evaluation of volumes
OUT_DIR = "checkpoints-2d"  # folder for results; one that holds results is kept as <name>.previous-N
MAX_CASES = 0  # 0: all cases; n: the slices of n cases, the first training and the first validation ones, 80 to 20
RECIPE = "long"  # long (these constants), short (slices of 64 pixels) or heads (short, for other scanners); see RECIPES
# augmentation, of each slice anew in each epoch
ROTATION_DEGREES = 15.0  # largest rotation
SCALE = 0.15  # largest change of size, as a share
SHIFT_VOXELS = 8.0  # largest shift along each axis, in pixels
ATROPHY_MM = 0.0  # most by which the hippocampus gets thinner, in pixels; half of it thicker
INTENSITY = 0.15  # largest change of contrast (share) and brightness (of the range)
GAMMA = 0.3  # largest change of the gamma exponent, as a share
NOISE = 0.0  # largest standard deviation of added noise, in those of the slice
BLUR_MM = 0.0  # largest sigma of a Gaussian blur, in pixels
SHARPENING = 0.0  # most of what a blur of one pixel takes away, added
BIAS_FIELD = 0.0  # largest logarithm of a smooth factor
LOW_RESOLUTION_MM = 0.0  # coarsest pixels along one axis, in pixels; two thirds of it along both
MOTION_MM = 0.0  # largest swing of the head during the scan, in pixels
CLIPPING = 0.0  # largest share of the pixels cut off at either end of the intensities
LOOKUP_TABLES = 0.0  # share of the slices with random tables of the intensities
# model
MODEL = "UNetnnUNetLightweight"  # or UNetnnUNetSmall, UNetnnUNetBalanced, UNetnnUNetDeepSupervision, UNetnnUNetWithINR
BASE_CHANNELS = 32  # channels of the first stage (UNetnnUNetWithINR only)
UNET_DEPTH = 4  # number of poolings (UNetnnUNetWithINR only)
DEEP_SUPERVISION = False  # auxiliary losses at the coarser decoder stages (UNetnnUNetWithINR only; see the presets)
DROPOUT = 0.0  # probability that training leaves out a channel of a stage's output
ATTENTION = "none"  # at the end of each stage: se (squeeze-and-excitation), cbam or none
USE_INR = False  # add the INR (SIREN coordinate) head
INR_HIDDEN_DIM = 64  # width of the INR head
# fine-tuning
INIT = ""  # checkpoint of the same network to begin with, as pretrained/heads_2d.pth; empty: random weights
FREEZE = "none"  # none, or encoder: its weights stay as they are in INIT
# optimiser
EPOCHS = 12  # epochs; one is a pass over the training slices, or more, see MIN_STEPS
VALIDATE_EVERY = 1  # epochs between validations, which take time; the last epoch always has one
MIN_STEPS = 80  # with few of them, an epoch is as many passes as make this number of steps
BATCH_SIZE = 16  # slices per step
LEARNING_RATE = 2e-3  # AdamW's, at the peak of the schedule
INR_RATE = 1e-4  # AdamW's for the INR head, at the peak: SIREN's own
WEIGHT_DECAY = 1e-2  # of both optimisers, decoupled
MUON_RATE = 0.0  # Muon's learning rate for the kernels of the U-Net, at the peak; 0: AdamW trains them too
WARMUP = 0.05  # share of the schedule with a rising learning rate
COOLDOWN = 1.0  # share of the schedule, at its end, with a falling one; in between it stays at the peak
GRADIENT_CLIP = 1.0  # largest norm of the gradient
FOCAL_GAMMA = 0.0  # exponent of the focal loss; 0 is cross-entropy
DICE_SMOOTH = 32.0  # pixels added to numerator and denominator of the Dice, so that an absent label has a gradient
EMA = 0.999  # decay of the moving average of the weights, which is then evaluated; 0: none
# system
SEED = 0  # of weights and order
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs
NUM_WORKERS = 0  # processes that load; 0: the main one (all slices are in memory)
RESUME = False  # go on with the unfinished run in OUT_DIR

_SHORT = {"epochs": 3, "muon_rate": 0.04, "cooldown": 0.0, "ema": 0.998, "shift_voxels": 4.0, "dice_smooth": 8.0}
RECIPES = {  # what a recipe changes
    "long": {},
    "short": _SHORT,
    "heads": {**_SHORT, **ROBUST, "atrophy_mm": 2.0, "intensity": 0.25},
}
_CUSTOM = "UNetnnUNetWithINR"
_IGNORED_BY_PRESETS = {"base_channels": 32, "unet_depth": 4, "deep_supervision": False}


def main():
    run(configure(globals()))


def run(cfg):
    """Trains and evaluates with a configuration (see options.configure). Returns the content of metrics.json."""
    check(cfg)
    join_processes()
    silence_all_but_the_first()
    seed_everything(cfg.seed)
    train, val, data = load_data(cfg)
    size = data["slices"]["SIZE"]
    volumes = load_volumes(cfg.data_root, sorted(set(val.cases)))
    sample = select(train, range(0, len(train.cases), max(1, len(train.cases) // 320)))  # fixed, for the training NSD
    grids = slice_grids(cfg.data_root, volumes, set(sample.cases), size)
    device, dtype = set_up_device(cfg.device, cfg.amp)
    model, model_info = build_model(cfg, data["labels"])
    check_size(cfg, model, size)
    trained = TrainedModel(model.to(device), make_preprocessing(slice_size=size))
    info, resume_from = start_run(cfg, constants(globals()), trained, model_info, data, device, dtype)
    begin_with(trained, model_info, data, cfg, resume_from is not None)
    loss_function = partial(dice_ce_loss, focal_gamma=cfg.focal_gamma, smooth=cfg.dice_smooth)

    def score(model, slices, own_grid=False):
        return evaluate_slices(model, slices, grids, cfg.batch_size, device, dtype, loss_function, own_grid)

    def validate(model):
        train_nsd = score(model, sample)[0]["nsd_1mm"]
        if not val.cases:
            return {**unvalidated(len(train_nsd)), "train_nsd": train_nsd}
        scores, loss = score(model, val)
        scores = {"val_loss": loss, "val_dice": scores["dice"], "val_nsd": scores["nsd_1mm"]}
        return {**scores, "train_nsd": train_nsd}

    loader = make_loader(augmented(cfg, train, size), cfg, device)
    history = fit(model, loader, loss_function, validate, cfg, device, dtype, info, resume_from)
    model.eval()
    extra = {}
    if val.cases:
        extra = {"slices": score(model, val, own_grid=True)[0], "slices_by_pixel": score(model, val)[0]}
    metrics = evaluate_run(trained, volumes, history, cfg.out_dir, device, dtype, data, extra=extra)
    report(history, metrics, data, cfg.out_dir)
    return metrics


def check(cfg):
    """Raises UserError for invalid constants."""
    check_training(cfg)
    check_transfer(cfg)
    require(cfg.model in MODELS, f"--model={cfg.model}: expected one of {', '.join(MODELS)}")
    check_preset(cfg, _CUSTOM, _IGNORED_BY_PRESETS)


def check_size(cfg, model, size):
    """Raises UserError for slice sizes on which deep supervision cannot train."""
    stride = model.unet.stride
    require(
        not model.deep_supervision or size % stride == 0,
        f"{cfg.data_dir}: deep supervision needs slices of a multiple of {stride} pixels, not {size}; "
        f"make them with: python data_aug.py --size={stride * 8}",
    )


def load_data(cfg):
    """Returns (training Slices, validation Slices, description of their data for config.json)."""
    train, val, settings = load_slices(cfg.data_dir)
    data = {"labels": 2, **settings.pop("DATA"), "fold": settings["FOLD"], "slices": settings}
    if cfg.max_cases:
        n = int(0.8 * cfg.max_cases)
        train, val = first_cases(train, n), first_cases(val, cfg.max_cases - n)
        require(train.cases and val.cases, f"--max_cases={cfg.max_cases}: expected 0 (all) or at least 2")
        data |= {"train_cases": sorted(set(train.cases)), "val_cases": sorted(set(val.cases))}
    kind = " (SYNTHETIC phantoms)" if data["synthetic"] else ""
    print(f"data: {cfg.data_dir}{kind}, {len(train.cases)} training and {len(val.cases)} validation slices")
    return train, val, data


def build_model(cfg, n_labels=2):
    """Builds the network of a configuration for a number of labels. Returns it, and {"name", "args"} to build it
    again."""
    args = {"in_channels": 1, "num_classes": n_labels + 1, "use_inr": cfg.use_inr, "inr_hidden_dim": cfg.inr_hidden_dim}
    args |= {"dropout": cfg.dropout} if cfg.dropout else {}
    args |= {"attention": cfg.attention} if cfg.attention != "none" else {}
    if cfg.model == _CUSTOM:
        args |= {name: getattr(cfg, name) for name in _IGNORED_BY_PRESETS}
    return MODELS[cfg.model](**args), {"name": cfg.model, "args": args}


def augmented(cfg, train, size):
    """Returns the training set, in which each slice is augmented anew in every pass."""
    names = ("rotation_degrees", "scale", "shift_voxels", "atrophy_mm", *PARTS)
    augmentation = {name: getattr(cfg, name) for name in names}
    return AugmentedDataset(train.images, train.masks, [size] * 2, cfg.seed, augmentation)


def report(history, metrics, data, out_dir):
    """Draws the curves of a run and prints its slice scores."""
    path, source = Path(out_dir) / "plots" / "training_curves.png", plots.source(data["synthetic"], data["name"])
    on_first(plots.training_curves, history, path, f"Scored slice by slice: {source}")
    if "slices" in metrics:
        own, original = (np.mean(metrics["slices"][name]) for name in ("dice", "dice_original"))
        print(f"slices: Dice {own:.4f}, by the original's definition {original:.4f}")


if __name__ == "__main__":
    run_script(main)
