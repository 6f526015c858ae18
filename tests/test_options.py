"""Constants as options."""

import importlib

import grid_search_3d
import model2d
import predict
import train_3d
import unet_inr_3d
from hippo import options
from hippo.errors import UserError
from hippo.options import constants

import pytest
from conftest import ROOT, one_error_line


def configure(*argv, **overrides):
    return options.configure(vars(train_3d), list(argv), **overrides)


def test_constants_become_options():
    cfg = configure("--epochs=5", "--learning_rate", "1e-4", "--use_inr=True", "--patch=[32,40,32]", "--flip_axes=xy")
    assert (cfg.epochs, cfg.learning_rate, cfg.use_inr, cfg.patch, cfg.flip_axes) == (5, 1e-4, True, [32, 40, 32], "xy")
    assert cfg.weight_decay == train_3d.WEIGHT_DECAY


def test_edited_constants_count(monkeypatch):
    monkeypatch.setattr(train_3d, "EPOCHS", 7)
    assert configure().epochs == 7


def test_overrides_from_another_script():
    assert configure(epochs=3).epochs == 3
    with pytest.raises(UserError, match="did you mean --epochs"):
        configure(epoch=3)


def test_hyphens_and_underscores_are_alike():
    assert configure("--learning-rate=1e-4", "--max-cases", "7").__dict__ == (
        configure("--learning_rate=1e-4", "--max_cases=7").__dict__
    )


def test_a_bare_boolean_is_true():
    assert configure("--use-inr", "--epochs=3").use_inr and configure("--epochs=3", "--use_inr").use_inr
    assert not configure("--use_inr", "False").use_inr and configure("--use_inr", "true").use_inr
    cfg = options.configure(vars(predict), ["--probabilities", "a.nii", "--tta", "False", "b.nii"], inputs="files")
    assert cfg.probabilities and not cfg.tta and cfg.inputs == ["a.nii", "b.nii"]


def test_options_suggest_only_what_is_near(script):
    for option, hint in (("--input=a.nii", False), ("--chekpoint=a.pth", True)):
        code, _, err = script(predict, option)
        assert code == 2 and ("did you mean --checkpoint?" in err) == hint, err


@pytest.mark.parametrize("module", [model2d, unet_inr_3d])
def test_the_model_modules_have_help(script, module):
    code, out, err = script(module, "--help")
    assert code == 0 and module.__doc__.splitlines()[0] in out and "--input" in out, err


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--epoch=5", ["--epoch", "did you mean --epochs"]),
        ("--learning-rates=1", ["did you mean --learning_rate"]),
        ("--epochs=five", ["--epochs", "a whole number", "'five'"]),
        ("--epochs=2.5", ["a whole number"]),
        ("--amp=1", ["--amp", "True or False"]),
        ("--learning_rate=fast", ["a number"]),
        ("--learning_rate=nan", ["a number"]),
        ("--patch=big", ["--patch", "a list"]),
        ("--patch=[1.5,2,3]", ["a list"]),
        ("--patch=[True,2,3]", ["a list"]),
        ("--patch={[]:1}", ["a list"]),
        ("--patch=[36,52", ["a list"]),
        ("--patch=[2000,52,36]", ["--patch=[2000, 52, 36]", "[1024, 52, 36]"]),
        ("stray", ["stray"]),
        ("--epochs", ["--epochs"]),
        ("--epochs=0", ["--epochs=0", "1 or more"]),
        ("--fold=7", ["--fold=7"]),
        ("--patch=[0,40,40]", ["--patch=[0, 40, 40]", "as [1, 40, 40]"]),
        ("--patch=[40,40]", ["three", "as [36, 52, 36]"]),
        ("--model=UNet", ["expected one of UNet3DWithINR"]),
        ("--device=tpu9", ["--device=tpu9"]),
        ("--device=gpu", ["--device=gpu: expected auto, cpu, cuda, cuda:1 or mps"]),
    ],
)
def test_wrong_options_are_one_line(script, phantoms, tmp_path, argument, words):
    one_error_line(
        script(
            train_3d, argument, f"--data_root={phantoms}", *[f"--out_dir={tmp_path / 'out'}"][argument == "stray" :]
        ),
        *words,
    )
    assert not (tmp_path / "out").exists()


def test_a_single_text_is_a_list_of_one():
    for text in ("se", "'se'", "['se']"):
        assert options.configure(vars(grid_search_3d), [f"--attention={text}"]).attention == ["se"]


def test_numbers_in_lists_are_finite(script):
    one_error_line(script(grid_search_3d, "--learning_rate=[1e999]"), "--learning_rate", "a list")


def test_help_lists_every_constant(script):
    code, out, _ = script(train_3d, "--help")
    assert code == 0
    for name, (value, comment) in constants(vars(train_3d)).items():
        assert f"--{name.lower()} " in out and str(value) in out and comment, name


def test_every_option_of_every_script_says_what_it_means():
    paths = [*ROOT.glob("*.py"), *ROOT.glob("tools/[!_]*.py")]
    assert len(paths) > 15
    for path in paths:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        if hasattr(module, "main"):
            for name, (_, comment) in constants(vars(module)).items():
                assert comment, (path.name, name)


@pytest.mark.promise("all_cases")
def test_a_recipe_changes_what_the_command_line_does_not_name():
    plain, heads = configure("--recipe=crops"), configure("--recipe=heads")
    changed = {name: value for name, value in vars(heads).items() if value != getattr(plain, name)}
    assert changed == {"recipe": "heads", **train_3d.RECIPES["heads"]}
    assert plain.epochs == train_3d.EPOCHS and vars(configure()) == vars(plain)
    some = configure("--recipe=heads", f"--noise={plain.noise}", epochs=2)
    assert some.noise == plain.noise and some.epochs == 2 and some.blur_mm == heads.blur_mm
    assert configure(recipe="heads").blur_mm == heads.blur_mm
    with pytest.raises(UserError, match="--recipe=head: expected one of crops, heads, any_contrast"):
        configure("--recipe=head")
