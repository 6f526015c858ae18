"""Makes a small checkpoint to share from a finished run: weights in half precision, no optimiser state.

    python -m tools.export        results_hippocampus-3D/last.pth to pretrained/hippocampus_3d.pth (0.7 MB), at once
    python -m tools.export --checkpoint=checkpoints-2d-64/last.pth --out=pretrained/hippocampus_2d.pth      the 2D model

It never overwrites a file.
"""

from pathlib import Path

from hippo.errors import require
from hippo.models.checkpoint import load_checkpoint, save_checkpoint
from hippo.options import configure, run_script

CHECKPOINT = "results_hippocampus-3D/last.pth"  # last.pth or best_model.pth of a run
OUT = "pretrained/hippocampus_3d.pth"  # file to write; it must not exist yet


def main():
    run(configure(globals()))


def run(cfg):
    """Writes the small checkpoint of a configuration."""
    content = load_checkpoint(cfg.checkpoint)
    require(
        not Path(cfg.out).exists(), f"{cfg.out} exists and is not overwritten; move it away or choose another --out"
    )
    content.pop("training", None)
    content["model_state_dict"] = {name: value.half() for name, value in content["model_state_dict"].items()}
    save_checkpoint(cfg.out, content)
    print(
        f"{cfg.out}: {content['model']['name']}, epoch {content['epoch']}, {Path(cfg.out).stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    run_script(main)
