"""Compares 2D networks by a grid search: without and with the INR head, of several widths, and with deep supervision.

    python grid_search.py                       trains all points of the grid, one after another, or the unfinished ones
    python grid_search.py --only=list           prints the keys of the points
    python grid_search.py --only=nnUNet_BC32_D4_INR64_LR1e-04_WD1e-05     trains one point, into a file of its own
    python grid_search.py --collect=True        trains nothing; collects the points that are done

With --only, a scheduler can spread a search over machines that share OUT_DIR. Needs the slices of data_aug.py. The
defaults take 65 minutes on two CPU cores with bf16. Writes into OUT_DIR: small_models_results.json after each point,
small_grid_search_analysis.png, and runs/<KEY>/, a run folder of train2d.py for each point; prints a table.
"""

import sys

import train2d
from hippo.data.slices import read_index
from hippo.options import configure, run_script
from hippo.training.search import search

# data
DATA_DIR = "dataset_2d"  # slices, as data_aug.py writes them
DATA_ROOT = "Task04_Hippocampus"  # Decathlon folder that they were cut from
OUT_DIR = "finetuning_results-2d"  # folder for results; a finished search is kept as <name>.previous-N
MAX_CASES = 60  # 0: all cases; n: the slices of n cases, 80 to 20
# grid: every combination is a point
BASE_CHANNELS = [32]  # channels of the first stage
UNET_DEPTH = [4]  # number of poolings
LEARNING_RATE = [1e-4]  # AdamW's, at the peak of the schedule
WEIGHT_DECAY = [1e-5]  # of the optimisers, decoupled
USE_INR = [False, True]  # without and with the INR (SIREN coordinate) head
INR_HIDDEN_DIM = [32, 48, 64]  # widths of the INR head
DEEP_SUPERVISION = True  # one more point: without INR, with auxiliary losses at the coarser decoder stages
ATTENTION = ["none"]  # se, cbam: one more point each, without INR
MODEL = ["UNetnnUNetWithINR"]  # the network whose sizes the grid sets, and presets, one point each
SEEDS = [0]  # each point is run with each seed
# training of each point; everything else is train2d.py's
EPOCHS = 4  # epochs; one is a pass over the training slices
MIN_STEPS = 80  # with few of them, an epoch is as many passes as make this number of steps
BATCH_SIZE = 16  # slices per step
MUON_RATE = 0.02  # Muon's learning rate for the kernels of the U-Net, at the peak; 0: AdamW trains them too
COOLDOWN = 0.0  # share of the schedule, at its end, with a falling rate
EMA = 0.99  # decay of the moving average of the weights, which is then evaluated; 0: none
# system
ONLY = ""  # key of the one point to run; list: print the keys
COLLECT = False  # train nothing; collect the points that are done
DEVICE = "auto"  # auto (CUDA where there is one, CPU otherwise), cpu, cuda, cuda:1, mps
AMP = True  # mixed precision: bf16 where it is fast, fp16 on older GPUs
NUM_WORKERS = 0  # processes that load; 0: the main one


def main():
    cfg = configure(globals())
    if not run(cfg):
        sys.exit(2)


def run(cfg):
    """Runs the search of a configuration. Returns whether every point succeeded."""
    if not cfg.collect and cfg.only != "list":
        read_index(cfg.data_dir)  # missing slices are one error, not one for each point
    return search(cfg, train2d)


if __name__ == "__main__":
    run_script(main)
