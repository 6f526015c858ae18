"""Fine-tuning: the weights that a run begins with, and those that it leaves as they are."""

from hippo.errors import require
from hippo.models.checkpoint import load_checkpoint

FREEZE = ("none", "encoder")
_MAY_DIFFER = ("num_classes", "dropout", "deep_supervision")  # arguments of a model that its encoder does not depend on


def check_transfer(cfg):
    """Raises UserError for constants of fine-tuning that cannot work."""
    require(cfg.freeze in FREEZE, f"--freeze={cfg.freeze}: expected one of {', '.join(FREEZE)}")
    require(cfg.init or cfg.freeze == "none", f"--freeze={cfg.freeze} needs the weights to keep: give --init=FILE")


def begin_with(model, model_info, cfg):
    """Gives a new network the weights of the checkpoint cfg.init, if there is one, and freezes what cfg.freeze says.

    model_info: {"name", "args"}. Heads for another number of classes start anew or, for one label instead of two, from the sum of
    both. Raises UserError where the checkpoint is of another network, naming the first difference.
    """
    if cfg.init:
        _load(model, model_info, cfg.init)
    if cfg.freeze == "encoder":
        for parameter in model.unet.encoder().parameters():
            parameter.requires_grad_(False)


def _load(model, model_info, path):
    content = load_checkpoint(path)
    theirs, name = content["model"], model_info["name"]
    other = f"{path}: weights of a {theirs['name']}, but this run trains a {name}; give --model={theirs['name']}"
    require(theirs["name"] == name, other)
    for key in sorted({*theirs["args"], *model_info["args"]} - {*_MAY_DIFFER}):
        default = "none" if key == "attention" else None
        have, want = (args.get(key, default) for args in (theirs["args"], model_info["args"]))
        option = {"depth": "unet_depth"}.get(key, key)
        require(have == want, f"{path}: weights of a {name} with {key} {have}; give --{option}={have}, not {want}")
    own, weights = model.state_dict(), {k: v.float() for k, v in content["model_state_dict"].items()}
    taken = {}
    for key, value in own.items():
        there = weights.get(key)
        if there is not None and there.shape == value.shape:
            taken[key] = there
        elif there is not None and len(value) == 2 and len(there) == 3:  # classes: background, and both parts as one
            taken[key] = there.new_empty(value.shape)
            taken[key][0], taken[key][1] = there[0], there[1] + there[2]
    body = [key for key in own if key.startswith("unet.") and key not in taken]
    require(not body, f"{path}: weights that do not fit this network ({', '.join(body[:2])}); train without --init")
    model.load_state_dict(taken, strict=False)
    print(f"weights of {path}; heads anew: {', '.join(key for key in own if key not in taken) or 'none'}")
