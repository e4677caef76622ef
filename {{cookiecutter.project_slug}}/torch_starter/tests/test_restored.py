"""Overrides take effect, or are refused if they contradict a checkpoint."""

import json

import pytest
import torch

from project_for_tests import ROOT, weights

QUICK = ["trainer.max_epochs=20", "callbacks.regression_figures=null"]


def test_overrides_that_contradict_a_checkpoint_are_refused(classifier, script):
    before = {path: path.read_bytes() for path in (classifier / ".hydra").iterdir()}
    for change, message in {
        "data.mean=[0.9]": r"model\.mean is \[0\.9\].* \[0\.1307\], so it would have no effect",
        "model.std=[0.9]": r"model\.std is \[0\.9\].* \[0\.3081\], so it would have no effect",
        "model.network.channels=[8,8,8]": r"channels is \[8, 8, 8\].* \[16, 32, 64\], which do not fit",
        "optimizer.lr=0.5": "no effect",
    }.items():
        for verb in ("evaluate", "export", "resume"):
            if (ROOT / f"{verb}.py").exists():
                with pytest.raises(SystemExit, match=message):
                    script(f"{verb}.py", classifier, change)
    assert {path: path.read_bytes() for path in (classifier / ".hydra").iterdir()} == before


def test_overrides_of_other_settings_take_effect(train, script, digits, tmp_path, capfd):
    small = ["data.num_val=100", "data.batch_size=50", "trainer.max_epochs=1", "model=mlp"]
    (run,) = train("experiment=mnist", f"data.root={digits}", *small)
    script("resume.py", run, "model.network.dropout=0.9", "trainer.max_epochs=3")
    loss = {"dropped": json.loads((run / "results.json").read_text())["metrics"]["train/loss"]}
    train("experiment=mnist", f"data.root={digits}", *small, "trainer.max_epochs=3", "hydra.run.dir=r2")
    loss["not dropped"] = json.loads((tmp_path / "r2/results.json").read_text())["metrics"]["train/loss"]
    assert loss["dropped"] > loss["not dropped"]
    capfd.readouterr()
    script("evaluate.py", run, "data.batch_size=7")
    assert "test/acc" in capfd.readouterr().out


def test_new_run_that_contradicts_its_checkpoint_is_refused(train, tmp_path):
    train(*QUICK, "hydra.run.dir=r1")
    for change, message in {
        "optimizer.lr=0.5": r"optimizer\.lr is 0\.5, .* with 0\.02, so it would have no effect",
        "optimizer=sgd": r"optimizer is torch\.optim\.SGD, .* with torch\.optim\.Adam,",
        "scheduler=step": r"scheduler is torch\.optim\.lr_scheduler\.StepLR",
        "model.in_features=2": "in_features is 2, .* do not fit",
        "trainer.max_epochs=20": r"comes after 20 epochs, .* trainer\.max_epochs=40",
        "trainer.max_steps=20": "comes after 20 steps",
    }.items():
        with pytest.raises(SystemExit, match=message):
            train("trainer.max_epochs=30", "ckpt_path=r1/checkpoints/last.ckpt", "hydra.run.dir=r2", change)
        assert not (tmp_path / "r2").exists()
    for word in ("best", "hpc", "nowhere/last.ckpt", "r1"):
        with pytest.raises(SystemExit, match=f"ckpt_path is {word}, but there is no such file"):
            train(*QUICK, f"ckpt_path={word}")


def test_checkpoint_of_another_network_is_refused_without_its_config(train, digits, tmp_path):
    small = ["experiment=mnist", f"data.root={digits}", "data.num_val=100", "data.num_workers=0"]
    train(*small, "trainer.max_epochs=1", "hydra.run.dir=r1")
    (tmp_path / "r1/checkpoints/last.ckpt").rename(tmp_path / "alone.ckpt")
    with pytest.raises(SystemExit, match="The checkpoint does not fit the model: "):
        train(*small, "model=mlp", "ckpt_path=alone.ckpt")
    with pytest.raises(SystemExit, match=r"weights of alone\.ckpt do not fit this network. Name a run of the same"):
        train(*small, "model=mlp", "weights=alone.ckpt", "weights_strict=false")


def test_weights_load_with_another_number_of_classes(train, digits, image_folder, tmp_path, capfd):
    small = ["experiment=mnist", "data.num_workers=0", "trainer.max_epochs=1"]
    train(*small, f"data.root={digits}", "data.num_val=100", "hydra.run.dir=outputs/r1")
    new = [*small, "data=image_folder", f"data.root={image_folder}", "data.image_shape=[1,28,28]", "optimizer.lr=0"]
    new += ["optimizer.weight_decay=0", "weights=outputs/r1"]
    with pytest.raises(
        SystemExit, match=r"weights_strict=false loads the others\.\n.*\(3, 576\) in this network, \(10, 576"
    ):
        train(*new)
    capfd.readouterr()
    train(*new, "weights_strict=false", "hydra.run.dir=r2")
    printed = capfd.readouterr().out
    assert (
        "23 of 25 weights are from outputs/r1/checkpoints/best.ckpt; the others keep their initial values:\n" in printed
    )
    assert "(3,) in this network, (10,) in the checkpoint" in printed
    before = torch.load(tmp_path / "outputs/r1/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    after = weights(tmp_path / "r2")
    assert [name for name in after if "weight" in name and not after[name].equal(before[name])] == [
        name for name in after if name.endswith("weight") and after[name].ndim == 2
    ]


def test_weights_come_from_the_named_or_latest_run(train, script, tmp_path, capfd):
    train(*QUICK, "hydra.run.dir=outputs/r1")
    first = torch.load(tmp_path / "outputs/r1/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    for run, word in {"r1": "outputs/r1", "latest": "latest"}.items():
        train(f"weights={word}", "optimizer=sgd", "optimizer.lr=0", "trainer.max_epochs=1", f"hydra.run.dir=of_{run}")
        assert all(map(torch.equal, first.values(), weights(tmp_path / f"of_{run}").values()))
        saved = (tmp_path / f"of_{run}/.hydra/config.yaml").read_text()
        assert "\nweights: outputs/r1/checkpoints/best.ckpt\n" in saved, "the config keeps the run that was the latest"
    train("weights=latest", "hydra.run.dir=of_latest", "ckpt_path=last", *QUICK, "optimizer=sgd", "optimizer.lr=0")
    saved = (tmp_path / "of_latest/.hydra/config.yaml").read_text()
    assert "\nweights: outputs/r1/checkpoints/best.ckpt\n" in saved, "a resumed run keeps the source of its weights"
    for key in ("weights=outputs/r1", "weights_strict=false"):
        with pytest.raises(SystemExit, match=f"{key} has no effect: a run has its own"):
            script("resume.py", "of_r1", key)
    with pytest.raises(SystemExit, match=r"weights is nowhere, .* Pass a run folder or a checkpoint"):
        train("weights=nowhere")
    with pytest.raises(SystemExit, match="2 of 2 runs failed"):
        train("-m", "weights=latest", "seed=1,2")
    assert "a different run in each job of a multirun" in capfd.readouterr().out


def test_run_killed_before_its_first_checkpoint_reloads_weights(train, script, tmp_path):
    train(*QUICK, "hydra.run.dir=r1")
    train(*QUICK, "weights=r1", "hydra.run.dir=whole")
    train(*QUICK, "weights=r1", "hydra.run.dir=r2", "trainer.max_epochs=0")
    (tmp_path / "r2/results.json").unlink()
    with pytest.raises(SystemExit, match="weights of the run's config"):
        script("resume.py", "r2")
    script("resume.py", "r2", "weights=r1", f"trainer.max_epochs={QUICK[0].partition('=')[2]}")
    assert all(map(torch.equal, weights(tmp_path / "whole").values(), weights(tmp_path / "r2").values()))


def test_new_run_from_a_checkpoint_matches_uninterrupted_run(train, tmp_path):
    train("trainer.max_epochs=30", "callbacks.regression_figures=null", "hydra.run.dir=whole")
    train(*QUICK, "hydra.run.dir=r1")
    train("trainer.max_epochs=30", "ckpt_path=r1/checkpoints/last.ckpt", "hydra.run.dir=r2")
    assert weights(tmp_path / "r2").keys() == weights(tmp_path / "whole").keys()
    assert all(map(torch.equal, weights(tmp_path / "r2").values(), weights(tmp_path / "whole").values()))


def test_weights_restore_nothing_but_weights(train, tmp_path):
    train(*QUICK, "hydra.run.dir=r1")
    frozen = ["optimizer=sgd", "optimizer.lr=0", "trainer.max_epochs=1", "hydra.run.dir=r2"]
    train("weights=r1/checkpoints/last.ckpt", *frozen)
    assert all(map(torch.equal, weights(tmp_path / "r1").values(), weights(tmp_path / "r2").values()))
    results = json.loads((tmp_path / "r2/results.json").read_text())
    assert (results["epochs"], results["steps"]) == (1, 1)
    with pytest.raises(SystemExit, match="ckpt_path and weights are both set"):
        train("weights=r1/checkpoints/last.ckpt", "ckpt_path=r1/checkpoints/last.ckpt")


def test_resumed_run_uses_the_new_patience(train, script, tmp_path):
    each = ["trainer.max_epochs=60", "trainer.check_val_every_n_epoch=1", "callbacks.last_checkpoint.times=null"]
    never = ["callbacks=early_stopping", "+callbacks.early_stopping.min_delta=1e9"]
    (run,) = train(*each, *never, "callbacks.early_stopping.patience=3")
    assert json.loads((run / "results.json").read_text())["epochs"] == 4
    script("resume.py", run, "callbacks.early_stopping.patience=100")
    assert json.loads((run / "results.json").read_text())["epochs"] == 60


@pytest.mark.parametrize("verb", ["evaluate.py", "export.py"])
def test_several_devices_are_refused(line, script, verb):
    with pytest.raises(
        SystemExit,
        match=r"trainer\.devices=2 trainer\.num_nodes=1: evaluate.py, predict.py and export.py use one device",
    ):
        script(verb, line, "trainer.devices=2")


def test_overrides_of_the_run_folder_are_refused(line, script):
    for change in ("weights=x.ckpt", "ckpt_path=x.ckpt", "hydra.run.dir=r2", "run_dir=r2"):
        for verb in ("evaluate.py", "resume.py"):
            with pytest.raises(SystemExit, match="has no effect: a run has its own folder and checkpoints"):
                script(verb, line, change)


def test_limits_below_the_checkpoint_are_refused(line, script):
    with pytest.raises(
        SystemExit, match=r"max_epochs is 5, but .* was trained for 60 epochs.* trainer\.max_epochs=120\."
    ):
        script("resume.py", line, "trainer.max_epochs=5")
    with pytest.raises(SystemExit, match="fast_dev_run is for new runs, but this run continues"):
        script("resume.py", line, "trainer.fast_dev_run=true")


def test_suggested_command_keeps_the_data(classifier, script):
    with pytest.raises(SystemExit) as exit_:
        script("resume.py", classifier, "optimizer.lr=0.5", "trainer.max_epochs=5")
    assert "python train.py experiment=mnist" in str(exit_.value.code)
    assert str(exit_.value.code).endswith("optimizer.lr=0.5")


@pytest.mark.parametrize("split", ["test", "val", "train"])
def test_split_without_batches_is_reported(line, script, split):
    with pytest.raises(SystemExit, match=f"The {split} split was not evaluated: it has no batches"):
        script("evaluate.py", line, "--split", split, f"trainer.limit_{split}_batches=0")


def test_evaluate_can_limit_the_training_data(classifier, script, capfd):
    found = []
    for share in (1.0, 0.2):
        capfd.readouterr()
        script("evaluate.py", classifier, "--split", "train", f"trainer.limit_train_batches={share}", "--json")
        found.append(json.loads("{" + capfd.readouterr().out.partition("{")[2])["metrics"]["train/loss"])
    assert found[0] != found[1]


def test_checkpoints_with_the_same_name_are_refused(train):
    with pytest.raises(SystemExit, match=r"Two callbacks write last\.ckpt"):
        train(*QUICK, "callbacks.best_checkpoint.filename=last")


def test_configs_without_loss_get_the_former_default():
    from torch_starter.saved_config import _with_former_loss

    former = {"model": {"_target_": "small_task.models.image_classifier.ImageClassifier", "num_classes": 10}}
    completed = _with_former_loss(former)
    assert completed["loss"] == {"_target_": "torch.nn.CrossEntropyLoss"}
    assert completed["metrics"]["acc"]["average"] == "micro"
    assert completed["model"]["loss"] == "${loss}"
    assert _with_former_loss(completed) == completed
