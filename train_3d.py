"""Trains a 3D U-Net on a Decathlon folder and evaluates it on the validation cases.

    python train_3d.py                  the default recipe on the real data, three minutes on two CPU cores with bf16
    python train_3d.py --recipe=heads --fold=-2     the recipe of the shipped models, on all cases
    python train_3d.py --resume=True    goes on with an unfinished run
    python train_3d.py --data_root=phantom --out_dir=results_phantom-3D    the same on synthetic volumes

Writes into OUT_DIR: best_model.pth, last.pth, history.json, config.json, metrics.json (per case, of the final
weights) and plots/*.png. The constants below are the options: --epochs=5 sets EPOCHS; --help lists them all.
"""

from functools import partial
from pathlib import Path

from hippo.data.augment import PARTS
from hippo.data.cases import count_labels, describe_data, list_cases, load_case, split_cases
from hippo.data.degrade import ROBUST
from hippo.data.loading import AugmentedDataset, make_loader
from hippo.device import seed_everything, set_up_device
from hippo.errors import require
from hippo.models.inference import TrainedModel, make_preprocessing
from hippo.options import configure, constants, run_script
from hippo.pictures import plots
from hippo.processes import join_processes, on_first, silence_all_but_the_first
from hippo.scoring.evaluation import evaluate, evaluate_run
from hippo.scoring.statistics import summarise
from hippo.training.engine import fit
from hippo.training.losses import dice_ce_loss
from hippo.training.run_folder import check_preset, check_training, start_run
from hippo.training.state import unvalidated
from hippo.training.transfer import begin_with, check_transfer
from unet_inr_3d import MODELS

import numpy as np

# data
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
OUT_DIR = "results_hippocampus-3D"  # folder for results; one that holds results is kept as <name>.previous-N
MAX_CASES = 0  # 0: all cases; n: the first n sorted cases, before the split
FOLD = -1  # -1: the first 80 % of the sorted cases train, the rest validate; 0-4: nnU-Net's folds; -2: all train
PATCH = [36, 52, 36]  # voxels (x, y, z) of a training patch; best a multiple of 2^UNET_DEPTH each
RECIPE = "crops"  # crops (these constants), heads (for other scanners and people), any_contrast or unetr; see RECIPES
# augmentation
ROTATION_DEGREES = 15.0  # largest rotation about each axis
SCALE = 0.15  # largest change of size, as a share
SHIFT_VOXELS = 4.0  # largest shift along each axis
FLIP_AXES = ""  # axes of "xyz" to mirror at random; all crops show the same side, so none by default
ATROPHY_MM = 0.0  # most by which the hippocampus gets thinner; half of it thicker
INTENSITY = 0.25  # largest change of contrast (share) and brightness (standard deviations)
GAMMA = 0.3  # largest change of the gamma exponent, as a share
NOISE = 0.1  # largest standard deviation of added noise, in those of the image
BLUR_MM = 0.7  # largest sigma of a Gaussian blur
SHARPENING = 0.0  # most of what a blur of 1 mm takes away, added
BIAS_FIELD = 0.0  # largest logarithm of a smooth factor
LOW_RESOLUTION_MM = 0.0  # coarsest voxels along one axis; two thirds of it along all
MOTION_MM = 0.0  # largest swing of the head during the scan
CLIPPING = 0.0  # largest share of the voxels cut off at either end of the intensities
LOOKUP_TABLES = 0.0  # share of the patches with random tables of the intensities, for a model of any contrast
# model
MODEL = "UNet3DWithINR"  # or a preset: UNet3DWithINRLightweight, UNet3DWithINRBalanced; or UNETR
BASE_CHANNELS = 16  # channels of the first stage (UNet3DWithINR only)
UNET_DEPTH = 2  # number of poolings (UNet3DWithINR only)
USE_INR = False  # add the INR (SIREN coordinate) head
INR_HIDDEN_DIM = 64  # width of the INR head
DEEP_SUPERVISION = False  # auxiliary losses at the coarser decoder stages
DROPOUT = 0.0  # probability that training leaves out a channel of a stage's output
ATTENTION = "none"  # at the end of each stage: se (squeeze-and-excitation), cbam or none; not UNETR's
# fine-tuning
INIT = ""  # checkpoint of the same network to begin with, as pretrained/heads_3d.pth; empty: random weights
FREEZE = "none"  # none, or encoder: its weights stay as they are in INIT
# optimiser
EPOCHS = 8  # epochs; one is a pass over the training cases, or more, see MIN_STEPS
VALIDATE_EVERY = 1  # epochs between validations, which take time; the last epoch always has one
MIN_STEPS = 80  # with few of them, an epoch is as many passes as make this number of steps
BATCH_SIZE = 2  # patches per step
LEARNING_RATE = 3e-3  # AdamW's, at the peak of the schedule
INR_RATE = 1e-4  # AdamW's for the INR head, at the peak: SIREN's own
WEIGHT_DECAY = 1e-2  # of both optimisers, decoupled
MUON_RATE = 0.04  # Muon's learning rate for the kernels of the U-Net, at the peak; 0: AdamW trains them too
WARMUP = 0.05  # share of the schedule with a rising learning rate
COOLDOWN = 0.0  # share of the schedule, at its end, with a falling one; 0: none, since EMA takes its place
GRADIENT_CLIP = 1.0  # largest norm of the gradient
FOCAL_GAMMA = 0.0  # exponent of the focal loss; 0 is cross-entropy
EMA = 0.998  # decay of the moving average of the weights, which is then evaluated; 0: none
# system
TTA = True  # evaluate the final weights with test-time augmentation: a second, shifted view (and flips, see FLIP_AXES)
SEED = 0  # of weights, order and augmentation
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs
NUM_WORKERS = 0  # processes that augment; 0: the main one (on a CPU it has the cores anyway)
RESUME = False  # go on with the unfinished run in OUT_DIR

_LONGER = {**ROBUST, "ema": 0.999}
RECIPES = {  # what a recipe changes
    "crops": {},
    "heads": {**_LONGER, "epochs": 24},
    "any_contrast": {**_LONGER, "epochs": 32, "lookup_tables": 0.5},
    "unetr": {"model": "UNETR", "muon_rate": 0.02, "learning_rate": 1e-3, "warmup": 0.1},
}
_CUSTOM, _IGNORED_BY_PRESETS = "UNet3DWithINR", {"base_channels": 16, "unet_depth": 2}


def main():
    run(configure(globals()))


def run(cfg):
    """Trains a network and evaluates it. cfg: the constants above, in lower case (see options.configure). Returns the
    content of metrics.json."""
    check(cfg)
    join_processes()
    silence_all_but_the_first()
    seed_everything(cfg.seed)
    cases, dataset = list_cases(cfg.data_root, cfg.max_cases)
    labels = count_labels(dataset, cfg.data_root)
    train, val = ([load_case(case, labels) for case in part] for part in split_cases(cases, cfg.fold, dataset))
    data = {**describe_data(dataset, cases, train, val), "fold": cfg.fold}
    kind = " (SYNTHETIC phantoms)" if data["synthetic"] else ""
    print(f"data: {cfg.data_root}{kind}, {len(train)} training and {len(val)} validation cases")
    device, dtype = set_up_device(cfg.device, cfg.amp)
    model, model_info = build_model(cfg, data["labels"])
    # the network with the preprocessing that its images need, as a checkpoint holds both
    trained = TrainedModel(model.to(device), make_preprocessing(window=cfg.patch, flip_axes=cfg.flip_axes))
    info, resume_from = start_run(cfg, constants(globals()), trained, model_info, data, device, dtype)
    begin_with(trained, model_info, data, cfg, resume_from is not None)  # the weights of INIT, if given
    loss_function = partial(dice_ce_loss, focal_gamma=cfg.focal_gamma)
    validate = validation(trained.preprocessing, train, val, device, dtype, loss_function)
    loader = make_loader(augmented(cfg, train), cfg, device)
    history = fit(model, loader, loss_function, validate, cfg, device, dtype, info, resume_from)
    metrics = evaluate_run(trained, val, history, cfg.out_dir, device, dtype, data, cfg.tta)
    on_first(plots.curves, history, Path(cfg.out_dir) / "plots", plots.source(data["synthetic"], data["name"]))
    return metrics


def build_model(cfg, n_labels=2):
    """Builds the network of a configuration for a number of labels. Returns it, and {"name", "args"} to build it
    again."""
    args = {"in_channels": 1, "num_classes": n_labels + 1, "use_inr": cfg.use_inr, "inr_hidden_dim": cfg.inr_hidden_dim}
    args |= {"dropout": cfg.dropout} if cfg.dropout else {}
    args |= {"attention": cfg.attention} if cfg.attention != "none" else {}
    if cfg.model == _CUSTOM:
        args |= {"base_channels": cfg.base_channels, "depth": cfg.unet_depth}
    args["deep_supervision"] = cfg.deep_supervision
    return MODELS[cfg.model](**args), {"name": cfg.model, "args": args}


def augmented(cfg, train):
    """Returns the training set: one patch of each volume, augmented anew in every pass over the cases."""
    names = ("rotation_degrees", "scale", "shift_voxels", "flip_axes", "atrophy_mm", *PARTS)
    augmentation = {name: getattr(cfg, name) for name in names}
    return AugmentedDataset([v.image for v in train], [v.label for v in train], cfg.patch, cfg.seed, augmentation)


def validation(preprocessing, train, val, device, dtype, loss_function):
    """Returns the function that `fit` calls after an epoch. It scores a model in eval mode on the validation volumes, and
    on a fixed sample of the training volumes, without test-time augmentation.

    The function returns {"val_loss": float, "val_dice", "val_nsd", "train_nsd": lists of one mean for each label}.
    """
    sample = train[:: max(1, len(train) // 16)][:16]

    def validate(model):
        trained = TrainedModel(model, preprocessing)
        sample_cases, _ = evaluate(trained, sample, device, dtype)
        train_nsd = summarise(sample_cases)["mean"]["nsd_1mm"]
        if not val:
            return {**unvalidated(len(train_nsd)), "train_nsd": train_nsd}
        cases, losses = evaluate(trained, val, device, dtype, loss_function=loss_function)
        mean = summarise(cases)["mean"]
        scores = {"val_loss": float(np.mean(losses)), "val_dice": mean["dice"], "val_nsd": mean["nsd_1mm"]}
        return {**scores, "train_nsd": train_nsd}

    return validate


def check(cfg):
    """Raises UserError for constants that cannot work, before anything is read or written."""
    check_training(cfg)
    check_transfer(cfg)
    require(cfg.model in MODELS, f"--model={cfg.model}: expected one of {', '.join(MODELS)}")
    check_preset(cfg, _CUSTOM, _IGNORED_BY_PRESETS)
    require(
        cfg.model != "UNETR" or cfg.attention == "none",
        f"--attention={cfg.attention}: UNETR attends by itself; use none",
    )
    axes = set(cfg.flip_axes)
    require(
        axes <= set("xyz") and len(axes) == len(cfg.flip_axes),
        f"--flip_axes={cfg.flip_axes}: expected letters of xyz, each once",
    )
    # only deep supervision needs a multiple of the network's stride; else it pads a patch itself
    stride = {_CUSTOM: 2**cfg.unet_depth, "UNETR": 4}.get(cfg.model, 8) if cfg.deep_supervision else 1
    fitting = [-(-min(max(p, 1), 1024) // stride) * stride for p in cfg.patch]
    require(
        len(cfg.patch) == 3 and cfg.patch == fitting,
        f"--patch={cfg.patch}: expected three {f'multiples of {stride}' if stride > 1 else 'sizes in voxels'}, as "
        f"{fitting if len(cfg.patch) == 3 else PATCH}",
    )


if __name__ == "__main__":
    run_script(main)
