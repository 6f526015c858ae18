"""Trains the small network that finds both hippocampi and the intracranial space in a whole head.

    python get_data.py --anatomies=anatomies      20 label maps of heads (32 MB), once
    python train_locate.py                        half an hour on a CPU core in float32
    python train_locate.py --resume=True          goes on with an unfinished run

The network sees a head as 128 x 128 x 128 voxels of 2 mm, eight of them as the channels of each of its voxels of 4 mm. It
learns from nothing but images drawn anew in each step from the label maps: any contrast, turned by up to 60 degrees or
upside down, stripped, defaced, with a neck, cut by the field of view. It learns the hemispheres too: in their many voxels
the difference of left and right is found sooner than in those of the hippocampi. Writes into OUT_DIR: last.pth,
best_model.pth, history.json, config.json and metrics.json (Dice at 4 mm, of images drawn with other random numbers).
pretrained/locate.pth is such a network; predict.py --locate=FILE uses another.
"""

from functools import partial
from pathlib import Path

from hippo.data.anatomies import CLASSES, DETAIL, SIZE, SPACING_MM, DrawnHeads, load_anatomies
from hippo.data.cases import split_cases
from hippo.data.intensity import HEAD_NORMALISATION
from hippo.data.loading import make_loader
from hippo.device import autocast, seed_everything, set_up_device
from hippo.files import digest, save_json
from hippo.models.inference import TrainedModel, make_preprocessing
from hippo.options import configure, constants, run_script
from hippo.processes import join_processes, on_first, silence_all_but_the_first
from hippo.scoring.metrics import dice_of_logits
from hippo.training.engine import fit
from hippo.training.losses import dice_ce_loss
from hippo.training.run_folder import check_training, start_run
from unet_inr_3d import UNet3DWithINR

import numpy as np
import torch

# data
ANATOMIES = "anatomies"  # folder of label maps (.nii.gz) with FreeSurfer's numbers
OUT_DIR = "results_locate"  # folder for results; one that holds results is kept as <name>.previous-N
FOLD = -2  # -2: all anatomies train; -1: the first 80 % train, and the others validate; 0-4: five folds
VAL_HEADS = 16  # heads drawn for validation, the same in each epoch
# model
BASE_CHANNELS = 8  # channels of the first stage
UNET_DEPTH = 4  # number of poolings
MAX_CHANNELS = 36  # channels of a stage at most
# optimiser
EPOCHS = 30  # epochs of MIN_STEPS steps
VALIDATE_EVERY = 1  # epochs between validations, which take time; the last epoch always has one
MIN_STEPS = 50  # steps an epoch
BATCH_SIZE = 2  # heads a step
WEIGHT_HIPPOCAMPUS = 30.0  # of the hippocampi in the cross-entropy; with 1 they are never found: too few voxels
WEIGHT_SIZE = 0.1  # of the error of the intracranial space and its volume in the loss, see size_loss; with more the hippocampi are found later
LEARNING_RATE = 3e-3  # AdamW's, at the peak of the schedule
WEIGHT_DECAY = 1e-2  # of both optimisers, decoupled
MUON_RATE = 0.03  # Muon's learning rate for the kernels, at the peak; 0: AdamW trains them too
WARMUP = 0.05  # share of the schedule with a rising learning rate
COOLDOWN = 0.4  # share of the schedule, at its end, with a falling one
GRADIENT_CLIP = 1.0  # largest norm of the gradient
DICE_SMOOTH = 1.0  # voxels added to numerator and denominator of the Dice loss: a part that is not in view counts too
EMA = 0.99  # decay of the moving average of the weights, which is the result; 0: none
# system
SEED = 0  # of weights and drawn heads
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs
NUM_WORKERS = 0  # processes that draw heads; 0: the main one
RESUME = False  # go on with the unfinished run in OUT_DIR


def main():
    run(configure(globals()))


def run(cfg):
    """Trains with a configuration (see options.configure). Returns the content of metrics.json."""
    check_training(cfg)
    join_processes()
    silence_all_but_the_first()
    seed_everything(cfg.seed)
    anatomies = load_anatomies(cfg.anatomies)
    names = sorted(anatomies)
    train, val = (names, names) if cfg.fold == -2 else split_cases(names, cfg.fold)
    listing = {name: digest(Path(cfg.anatomies) / f"{name}.nii.gz") for name in names}
    data = {"name": "anatomies", "synthetic": False, "files_sha256": listing, "fold": cfg.fold}
    data |= {"train_cases": train, "val_cases": [] if cfg.fold == -2 else val}
    print(f"data: {cfg.anatomies}, {len(train)} anatomies to draw heads from")
    device, dtype = set_up_device(cfg.device, cfg.amp)
    args = {"in_channels": DETAIL**3, "num_classes": len(CLASSES) + 1, "base_channels": cfg.base_channels}
    args |= {"depth": cfg.unet_depth, "max_channels": cfg.max_channels}
    preprocessing = make_preprocessing(window=[SIZE] * 3, spacing_mm=SPACING_MM, normalisation=HEAD_NORMALISATION)
    trained = TrainedModel(UNet3DWithINR(**args).to(device), preprocessing)
    model_info = {"name": "UNet3DWithINR", "args": args}
    info, resume_from = start_run(cfg, constants(globals()), trained, model_info, data, device, dtype)
    where = "cpu" if cfg.num_workers else device  # the GPU draws faster than several processes
    maps = {name: labels.to(where) for name, labels in anatomies.items()}
    drawn = DrawnHeads([maps[name] for name in val], cfg.seed + 1)
    heads = [drawn[number // len(val), number % len(val)] for number in range(cfg.val_heads)]
    loader = make_loader(DrawnHeads([maps[name] for name in train], cfg.seed), cfg, device)
    weights = torch.tensor([1.0, *[cfg.weight_hippocampus] * 2, 1.0, 1.0, 1.0], device=device)
    loss_function = partial(loss_of_heads, smooth=cfg.dice_smooth, weights=weights, weight_size=cfg.weight_size)
    validate = validation(heads, device, dtype, loss_function)
    history = fit(trained.model, loader, loss_function, validate, cfg, device, dtype, info, resume_from)
    minutes = round(sum(history["seconds"]) / 60, 2)
    metrics = {"mean": {"dice": history["val_dice"][-1]}, "training_minutes": minutes, "synthetic": data["synthetic"]}
    on_first(save_json, Path(cfg.out_dir) / "metrics.json", metrics)
    return metrics


def loss_of_heads(logits, shares, smooth, weights, weight_size):
    """Computes dice_ce_loss and weight_size times size_loss."""
    loss = dice_ce_loss(logits, shares, smooth=smooth, weights=weights)
    return loss + weight_size * size_loss(logits, shares) if weight_size else loss


def size_loss(logits, shares):
    """Computes how far the intracranial space is off, in float32: its binary cross-entropy in excess of the least one, in
    nats per voxel of a tenth of the cube, plus |log(predicted / true volume)|, averaged over a batch.

    logits and shares: (B, 6, N, N, N). 1 % of the cube is added to the volumes, so that no head at all counts too.
    """
    log_p = logits.float().log_softmax(1)
    log_p = torch.stack([log_p[:, 0], log_p[:, 1:].logsumexp(1)], 1)  # (B, 2, N, N, N) outside, inside
    truth = torch.stack([shares[:, 0], 1 - shares[:, 0]], 1)
    excess = (torch.xlogy(truth, truth) - truth * log_p).sum(1).mean((1, 2, 3))
    predicted, true = (p[:, 1].mean((1, 2, 3)) + 0.01 for p in (log_p.exp(), truth))
    return (excess / 0.1 + (predicted / true).log().abs()).mean()


def validation(heads, device, dtype, loss_function):
    """Returns a function from a model in eval mode to the validation entries of an epoch in the history."""

    @torch.inference_mode()
    def validate(model):
        losses, dices = [], []
        for image, shares in heads:
            image, shares = image[None].to(device), shares[None].to(device)
            with autocast(device, dtype):
                logits = model(image)
            losses.append(loss_function(logits, shares).item())
            dices.append(dice_of_logits(logits, shares)[0].tolist())
        unknown = [float("nan")] * 2
        return {
            "val_loss": float(np.mean(losses)),
            "val_dice": np.nanmean(dices, axis=0).tolist(),
            "val_nsd": unknown,
            "train_nsd": unknown,
        }

    return validate


if __name__ == "__main__":
    run_script(main)
