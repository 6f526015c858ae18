"""Starts or resumes a run folder, and checks what may differ between the two.

config.json     constants, data, model, device, versions: what is needed to repeat the run
last.pth        the newest weights, and everything that --resume=True needs
best_model.pth  the weights of the best mean validation Dice
history.json    one list per quantity, one entry per epoch
metrics.json    scores per case, of the final weights
"""

from pathlib import Path

from hippo.data.augment import PARTS
from hippo.device import describe_environment, precision
from hippo.errors import require
from hippo.files import HALF_WRITTEN, check_folder, fresh_folder, load_json, save_json
from hippo.models.attention import ATTENTION
from hippo.models.blocks import count_parameters
from hippo.models.checkpoint import load_checkpoint
from hippo.processes import on_first, world_size

RESUMABLE = ("weights", "optimisers", "scaler", "history", "best", "unfinished_epoch", "random")  # in last.pth
# constants that --resume=True may change
NOT_PART_OF_A_RUN = ("resume", "num_workers", "out_dir", "device", "recipe", "validate_every")


def check_training(cfg):
    """Raises UserError for invalid constants of the training loop."""
    for name in (
        "epochs",
        "validate_every",
        "min_steps",
        "batch_size",
        "base_channels",
        "unet_depth",
        "inr_hidden_dim",
    ):
        require(getattr(cfg, name, 1) >= 1, f"--{name}={getattr(cfg, name, 1)}: expected 1 or more")
    for name in ("learning_rate", "inr_rate", "gradient_clip"):
        require(getattr(cfg, name, 1) > 0, f"--{name}={getattr(cfg, name, 1)}: expected more than 0")
    not_negative = ("max_cases", "num_workers", "seed", "weight_decay", "muon_rate", "focal_gamma", "dice_smooth")
    for name in (*not_negative, "rotation_degrees", "shift_voxels", "atrophy_mm", *PARTS):
        require(getattr(cfg, name, 0) >= 0, f"--{name}={getattr(cfg, name, 0)}: expected 0 or more")
    require(cfg.seed < 2**63, f"--seed={cfg.seed}: expected less than 2^63")
    for name in ("warmup", "ema", "scale", "dropout"):
        require(
            0 <= getattr(cfg, name, 0) < 1, f"--{name}={getattr(cfg, name, 0)}: expected at least 0 and less than 1"
        )
    for name, most in (("clipping", 0.5), ("lookup_tables", 1)):
        require(getattr(cfg, name, 0) <= most, f"--{name}={getattr(cfg, name, 0)}: expected 0 to {most}")
    coarsest = getattr(cfg, "low_resolution_mm", 0)
    require(not 0 < coarsest < 1, f"--low_resolution_mm={coarsest}: expected 0 (off) or 1 or more")
    kinds = ", ".join(ATTENTION)
    attention = getattr(cfg, "attention", "none")
    require(attention in ATTENTION, f"--attention={attention}: expected one of {kinds}")
    require(0 <= cfg.cooldown <= 1, f"--cooldown={cfg.cooldown}: expected 0 to 1")


def check_preset(cfg, custom, ignored):
    """Raises UserError for a constant that only the model `custom` accepts, if it is set for another model.

    ignored: {name: default value in the script}.
    """
    for name, value in ignored.items():
        require(
            cfg.model == custom or getattr(cfg, name) == value,
            f"--{name}={getattr(cfg, name)}: {cfg.model} does not take it; use --model={custom}, or leave {name.upper()} "
            f"at {value}",
        )


def start_run(cfg, defaults, trained, model_info, data, device, dtype):
    """Prepares cfg.out_dir and writes config.json: a fresh folder or, with cfg.resume, the folder of the unfinished
    run.

    defaults: options.constants of the script; trained: TrainedModel; model_info: {"name", "args"}; data: from
    cases.describe_data. Returns (plain values for the checkpoints, content of the last.pth to resume from or None).
    Raises UserError if a resumed run was started with other constants or data, naming the first difference.
    """
    constants = {name.upper(): value for name, value in sorted(vars(cfg).items())}
    config = {
        "constants": constants,
        "overrides": {name: value for name, value in constants.items() if value != defaults[name][0]},
        "model": model_info,
        "preprocessing": trained.preprocessing,
        "parameters": count_parameters(trained.model),
        "data": data,
        "device": str(device),
        "processes": world_size(),
        "precision": precision(dtype),
        "environment": describe_environment(),
    }
    print(f"model: {model_info['name']}, {config['parameters']:,} parameters", flush=True)
    info = {"model": model_info, "preprocessing": trained.preprocessing}
    info |= {name: data[name] for name in ("synthetic", "train_cases", "val_cases", "fold")}
    return info, on_first(_open_folder, cfg, defaults, config)


def _open_folder(cfg, defaults, config):
    """Opens the folder of a run, see start_run. Returns the content of the last.pth to resume from, or None."""
    out_dir = Path(cfg.out_dir)
    if not cfg.resume:
        fresh_folder(out_dir)
        save_json(out_dir / "config.json", config)
        return None
    check_folder(out_dir)
    for path in [*out_dir.glob(HALF_WRITTEN), *out_dir.glob(f"plots/{HALF_WRITTEN}")]:
        path.unlink()  # left when the run was killed
    if not (out_dir / "last.pth").is_file():
        finished = (out_dir / "metrics.json").exists()
        require(not finished, f"{out_dir} holds a finished run without its last.pth: start anew without --resume=True")
        print(f"{out_dir} holds no checkpoint yet: starting from the beginning", flush=True)
        save_json(out_dir / "config.json", config)
        return None
    before = same_constants(out_dir, cfg, defaults)
    other = f"{out_dir}: this run was started on other data or slices; start anew without --resume=True"
    data, earlier = ({"labels": 2, **content["data"]} for content in (config, before))  # older runs have no labels
    require(earlier == data, other)
    state = load_checkpoint(out_dir / "last.pth")
    require(
        set(RESUMABLE) <= state.get("training", {}).keys(),
        f"{out_dir / 'last.pth'} cannot be resumed (weights only, or of another version); start anew without "
        "--resume=True",
    )
    now = {
        "epoch": state["epoch"],
        **{name: config[name] for name in ("device", "processes", "precision", "environment")},
    }
    save_json(out_dir / "config.json", {**before, "resumed": [*before.get("resumed", []), now]})
    return state


def same_constants(folder, cfg, defaults):
    """Returns the config.json of a run. Raises UserError if its constants differ from `cfg`, naming the first one.

    defaults: options.constants of the script. A constant that the run did not have yet counts as its default.
    """
    path = Path(folder) / "config.json"
    before = load_json(path, "a new run without --resume=True")
    known = isinstance(before, dict) and {"constants", "data"} <= before.keys()
    require(known, f"{path}: expected the constants and data of a run; start anew without --resume=True")
    earlier = {name.lower(): value for name, value in before["constants"].items()}
    for name, value in sorted(vars(cfg).items()):
        then = earlier.get(name, defaults[name.upper()][0])
        require(
            name in NOT_PART_OF_A_RUN or then == value,
            f"{folder}: this run was started with --{name}={then}, not {value}; go on with its own constants, or use "
            "another folder",
        )
    return before
