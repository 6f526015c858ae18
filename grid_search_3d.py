"""Compares 3D networks by a grid search: without and with the INR head, of several widths, and with deep supervision.

    python grid_search_3d.py                    trains all points of the grid, one after another, or the unfinished ones
    python grid_search_3d.py --only=list        prints the keys of the points
    python grid_search_3d.py --only=nnUNet_BC16_D2_INR64_LR3e-03_WD1e-02     trains one point, into a file of its own
    python grid_search_3d.py --collect=True     trains nothing; collects the points that are done

With --only, a scheduler can spread a search over machines that share OUT_DIR. The defaults take 35 minutes on two CPU
cores with bf16. Writes into OUT_DIR: small_models_results.json after each point, small_grid_search_analysis.png, and
runs/<KEY>/, a run folder of train_3d.py for each point; prints a table.
"""

import sys

import train_3d
from hippo.data.cases import list_cases
from hippo.options import configure, run_script
from hippo.training.search import search

# data
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder: dataset.json, imagesTr, labelsTr
OUT_DIR = "finetuning_results-3d"  # folder for results; a finished search is kept as <name>.previous-N
MAX_CASES = 0  # 0: all cases; n: the first n sorted cases, before the split
FOLD = -1  # -1: the first 80 % of the sorted cases train, the rest validate; 0-4: nnU-Net's five folds
# grid: every combination is a point
BASE_CHANNELS = [16]  # channels of the first stage
UNET_DEPTH = [2]  # number of poolings
LEARNING_RATE = [3e-3]  # AdamW's, at the peak of the schedule
WEIGHT_DECAY = [1e-2]  # of the optimisers, decoupled
USE_INR = [False, True]  # without and with the INR (SIREN coordinate) head
INR_HIDDEN_DIM = [32, 48, 64]  # widths of the INR head
DEEP_SUPERVISION = True  # one more point: without INR, with auxiliary losses at the coarser decoder stages
ATTENTION = ["none"]  # se, cbam: one more point each, without INR
MODEL = [
    "UNet3DWithINR"
]  # the network whose sizes the grid sets, and others by their own recipes: UNETR, one point each
SEEDS = [0, 1]  # each point is run with each seed
# training of each point; everything else is train_3d.py's
EPOCHS = 10  # epochs; one is a pass over the training cases
MIN_STEPS = 80  # with few of them, an epoch is as many passes as make this number of steps
BATCH_SIZE = 2  # patches per step
PATCH = [36, 52, 36]  # voxels of a training patch
INR_RATE = 1e-4  # AdamW's for the INR head, at the peak: SIREN's own
TTA = False  # evaluate the final weights with test-time augmentation
# system
ONLY = ""  # key of the one point to run; list: print the keys
COLLECT = False  # train nothing; collect the points that are done
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs
NUM_WORKERS = 0  # processes that augment; 0: the main one


def main():
    cfg = configure(globals())
    if not run(cfg):
        sys.exit(2)


def run(cfg):
    """Runs the search of a configuration. Returns whether no point failed."""
    if not cfg.collect and cfg.only != "list":
        list_cases(cfg.data_root)  # missing data are one error, not one for each point
    return search(cfg, train_3d)


if __name__ == "__main__":
    run_script(main)
