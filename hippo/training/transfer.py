"""Fine-tuning: loads initial weights into a run and freezes a part of the network."""

from hippo.errors import UserError, require
from hippo.models.checkpoint import load_checkpoint

FREEZE = ("none", "encoder")
_MAY_DIFFER = ("num_classes", "dropout", "deep_supervision")  # arguments of a model that do not affect its encoder


def check_transfer(cfg):
    """Raises UserError for invalid constants of fine-tuning."""
    require(cfg.freeze in FREEZE, f"--freeze={cfg.freeze}: expected one of {', '.join(FREEZE)}")
    require(cfg.init or cfg.freeze == "none", f"--freeze={cfg.freeze} needs the weights to keep: give --init=FILE")


def begin_with(trained, model_info, data, cfg, resumed):
    """Loads the weights of the checkpoint cfg.init, if given, into a new network, and freezes what cfg.freeze says.

    trained: TrainedModel; model_info: {"name", "args"}; data: from cases.describe_data; resumed: whether a run is
    resumed, which has its own weights. Heads for another number of classes are newly initialised or, for one label
    instead of two, set to the sum of both. Raises UserError if the checkpoint is of another network, naming the first
    difference.
    """
    if cfg.init and not resumed:
        content = load_checkpoint(cfg.init)
        try:
            _load(trained, model_info, content, cfg.init)
            seen = {*content.get("train_cases", ())} & {*data["val_cases"]}
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            kind = type(error).__name__
            raise UserError(
                f"{cfg.init}: a checkpoint of another kind ({kind}); expected one of train_3d.py or train2d.py"
            ) from None
        if seen:
            print(
                f"{len(seen)} of {len(data['val_cases'])} validation cases were learned from by {cfg.init}: their scores "
                "say nothing of new cases"
            )
    if cfg.freeze == "encoder":
        for parameter in trained.model.unet.encoder().parameters():
            parameter.requires_grad_(False)


def _load(trained, model_info, content, path):
    theirs, name = content["model"], model_info["name"]
    other = f"{path}: weights of a {theirs['name']}, but this run trains a {name}; give --model={theirs['name']}"
    require(theirs["name"] == name, other)
    for key in sorted({*theirs["args"], *model_info["args"]} - {*_MAY_DIFFER}):
        default = "none" if key == "attention" else None
        have, want = (args.get(key, default) for args in (theirs["args"], model_info["args"]))
        option = {"depth": "unet_depth"}.get(key, key)
        require(have == want, f"{path}: weights of a {name} with {key} {have}; give --{option}={have}, not {want}")
    if trained.model.dim == 2:
        size = content.get("preprocessing", {}).get("slice_size", 128)
        again = f"make such slices with: python data_aug.py --size={size}"
        require(size == trained.preprocessing["slice_size"], f"{path}: weights for slices of {size} pixels; {again}")
    own, weights = trained.model.state_dict(), {k: v.float() for k, v in content["model_state_dict"].items()}
    finite = all(bool(v.isfinite().all()) for v in weights.values())
    require(finite, f"{path}: weights that are not finite numbers; train without --init")
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
    trained.model.load_state_dict(taken, strict=False)
    print(f"weights of {path}; heads anew: {', '.join(key for key in own if key not in taken) or 'none'}")
