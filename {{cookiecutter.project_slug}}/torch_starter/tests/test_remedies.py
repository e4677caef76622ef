"""The remedies in error messages work."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from project_for_tests import PACKAGE


def get_refusal(run, *arguments):
    """Return the message that a command exits with."""
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    return str(exit_.value.code)


@pytest.mark.parametrize("group", ["logger", "callbacks", "scheduler", "experiment"])
def test_suggestion_instead_of_null_works(script, group, tmp_path):
    message = get_refusal(script, "train.py", f"{group}=null")
    advice = re.findall(r"~\w+|scheduler=constant", message)
    script("train.py", *advice, "trainer.max_epochs=2")
    assert len(list(tmp_path.glob("outputs/**/results.json"))) == 1


@pytest.mark.parametrize("kind", ["class", "function"])
def test_trusting_the_named_module_allows_its_network(own_project, kind, monkeypatch):
    # Outside the project, because its own packages are trusted.
    Path("installed/other_package").mkdir(parents=True)
    monkeypatch.syspath_prepend("installed")
    Path("installed/other_package/__init__.py").write_text("from .networks import Network, network\n", encoding="utf-8")
    network = f"from {PACKAGE}.points import LinearRegression\n\n\nclass Network(LinearRegression):\n"
    network += "    pass\n\n\ndef network(**arguments):\n    return Network(**arguments)\n"
    Path("installed/other_package/networks.py").write_text(network, encoding="utf-8")
    target = "other_package.Network" if kind == "class" else "other_package.network"
    own_project("train.py", f"model._target_={target}", "trainer.max_epochs=2", "hydra.run.dir=run")

    message = get_refusal(own_project, "evaluate.py", "run")
    module = re.search(r'add "(\w+)" in torch_starter/trust.py', message)[1]
    name = re.search(rf"to (\w+) for a {kind}", message)[1]
    trust = Path("torch_starter/trust.py").read_text(encoding="utf-8")
    Path("torch_starter/trust.py").write_text(
        trust.replace(f"{name} = (", f'{name} = (\n    "{module}",'), encoding="utf-8"
    )
    for imported in [name for name in sys.modules if name.partition(".")[0] == "torch_starter"]:
        monkeypatch.delitem(sys.modules, imported)
    own_project("evaluate.py", "run")


@pytest.mark.parametrize("script_name", ["evaluate.py", "resume.py"])
def test_run_of_renamed_package_names_the_change(line, script, script_name):
    config = line / ".hydra/config.yaml"
    renamed = config.read_text(encoding="utf-8").replace(f"{PACKAGE}.", "old_project.")
    config.write_text(renamed, encoding="utf-8")
    message = get_refusal(script, script_name, line)
    assert "old_project" in message
    old, new = re.search(r"write (\w+\.) for (\w+\.)", message).group(2, 1)
    config.write_text(renamed.replace(old, new), encoding="utf-8")
    script(script_name, line)


def test_listed_checkpoints_can_be_chosen(train, script, capfd):
    (run,) = train("trainer.max_epochs=20", "callbacks.best_checkpoint.filename=top")
    script("evaluate.py", run)  # results.json names the best checkpoint
    best = capfd.readouterr().out.splitlines()[-1]
    (run / "results.json").unlink()
    message = get_refusal(script, "evaluate.py", run)
    script("evaluate.py", run, re.search(r"--checkpoint=\w+", message)[0])
    assert capfd.readouterr().out.splitlines()[-1] == best


def test_several_best_checkpoints_need_distinct_names(train, script):
    arguments = ["+callbacks.best_checkpoint.save_top_k=3", "trainer.max_epochs=20"]
    message = get_refusal(train, *arguments)
    override = shlex.split(re.search(r"callbacks\S*", message)[0])  # as a shell parses it
    shutil.rmtree("outputs")
    (run,) = train(*arguments, *override)
    assert len(list((run / "checkpoints").glob("best-*.ckpt"))) == 3
    script("evaluate.py", run)


def test_unnamed_callback_is_refused(script):
    message = get_refusal(script, "train.py", "+callbacks._target_=lightning.pytorch.callbacks.ModelSummary")
    assert "each entry of callbacks must have a name" in message


IMAGES = ["data=image_folder", "data.image_shape=[3,32,32]", "trainer.max_epochs=2", "data.num_workers=0"]


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["optimizer=sgd", "optimizer.lr=1e10", "trainer.max_epochs=9"], r"callbacks\.finite_loss=null"),
        (["optimizer=sgd", "optimizer.lr=0.5", "trainer.max_epochs=40"], r"trainer\.gradient_clip_val=1"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:00:01", "scheduler=cosine"], r"trainer\.max_epochs=…"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:00:01", "scheduler=cosine"], r"trainer\.max_steps=…"),
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:00:01", "scheduler=cosine"], r"scheduler\.T_max=…"),
        (["optimizer=sgd", "optimizer.nesterov=true"], r"\+optimizer\.nesterov=…"),
        (["trainer.devices=2", "data.batch_size=51"], "Nearest: 50"),
    ],
)
def test_suggestions_for_a_line_work(train, arguments, remedy):
    message = get_refusal(train, *arguments)
    typed = re.search(remedy, message)[0].replace("Nearest: ", "trainer.devices=1 data.batch_size=")
    typed = typed.replace("=…", "=true" if "nesterov" in typed else "=5")
    instead = [argument for argument in arguments if argument.partition("=")[0] != typed.lstrip("+").partition("=")[0]]
    (run,) = train(*instead, *typed.split())
    assert (run / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["model=cnn", "data.mean=[0.5]"], r"data\.image_shape is \[3, 32, 32\]"),
        (["model=cnn", "callbacks=fine", "scheduler=one_cycle"], r"Use (scheduler=constant), step, or plateau"),
        (["model=cnn", "callbacks=fine", "scheduler=one_cycle"], r"set (callbacks\.fine_tuning=null)"),
    ],
)
def test_suggestions_for_images_work(own_project, image_folder, arguments, remedy):
    fine = "defaults: [default]\nfine_tuning:\n"
    fine += "  _target_: torch_starter.callbacks.fine_tuning.FineTuning\n"
    fine += "  unfreeze_backbone_at_epoch: 1\n  backbone_initial_ratio_lr: 0.1\n"
    Path("configs/callbacks/fine.yaml").write_text(fine, encoding="utf-8")
    command = ["train.py", *IMAGES, f"data.root={image_folder}", "hydra.run.dir=run", *arguments]
    found = re.search(remedy, get_refusal(own_project, *command))
    assert not Path("run").exists()
    own_project(*command, "data.mean=[0.5,0.5,0.5]" if "image_shape" in found[0] else found[1])
    assert Path("run/results.json").exists()


def test_suggestions_for_checkpoints_and_runs_work(line, train, script, tmp_path):
    assert "without .ckpt" in get_refusal(script, "evaluate.py", line, "--checkpoint", "checkpoints/best.ckpt")
    script("evaluate.py", line, "--checkpoint", "best")
    assert "Pass only one run." in get_refusal(script, "evaluate.py", line, line)
    assert "Pass numbers, image files, or folders" in get_refusal(script, "predict.py", line)
    script("predict.py", line, "1")
    (tmp_path / "damaged.ckpt").write_bytes((line / "checkpoints/best.ckpt").read_bytes()[:-500])
    for key in ("ckpt_path", "weights"):
        assert "Pass another checkpoint" in get_refusal(train, f"{key}={tmp_path / 'damaged.ckpt'}")
        train(f"{key}={line}/checkpoints/last.ckpt", "trainer.max_epochs=70", "optimizer.lr=0.1")
