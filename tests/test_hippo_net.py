import json
import shutil

import cross_validate
import train_3d
from hippo.models.checkpoint import load_checkpoint
from tools import hippo_net


def test_the_protocol_of_hippo_net(script, whole, phantoms, tmp_path, monkeypatch):
    """Both scores are written; the model of the first cases is scored on those that it did not see."""
    asked = []
    folds = {key: key for key in ("mean", "std", "interval", "folds", "training_minutes", "cases")}
    monkeypatch.setattr(cross_validate, "run", lambda cfg: asked.append(cfg) or folds)

    def train(cfg):
        asked.append(cfg)
        shutil.copytree(whole["3d"], cfg.out_dir)

    monkeypatch.setattr(train_3d, "run", train)
    options = f"--data_root={phantoms}", f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out.json'}"
    code, _, err = script(hippo_net, *options)
    assert code == 0, err
    assert [cfg.max_cases for cfg in asked] == [200, 200] and asked[0].epochs_2d == 0 and asked[1].fold == -2
    result = json.loads((tmp_path / "out.json").read_text())
    seen = load_checkpoint(whole["3d"] / "last.pth")["train_cases"]
    assert result["first"] == folds and result["last"]["cases"] and not set(result["last"]["cases"]) & set(seen)
