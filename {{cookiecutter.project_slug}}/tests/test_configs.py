"""Tests of every choice of every config group."""

import inspect
import re
import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import OmegaConf

from conftest import ROOT, skip_if_deleted
from torch_starter import explanations, trust

CHOICES = sorted(
    f"{file.parent.name}={file.stem}"
    for file in (ROOT / "configs").glob("*/*.yaml")
    if file.parent.name not in ("trainer", "sweep")
)
# Values of a table that are otherwise read from its file.
COLUMN = "{name: size, mean: 100.0, std: 20.0, median: 90.0, missing: 0.0}"
TABLE = ["data=table", "data.file=FILE", "data.target=price", "data.task=regression", f"data.columns=[{COLUMN}]"]
TABLE += ["data.in_features=1", "data.num_outputs=1", "data.target_mean=0.0", "data.target_std=1.0"]
ACCELERATORS = ["auto", "cpu", "gpu", "mps"]


@pytest.fixture
def composed(tmp_path):
    def compose_with(*overrides):
        skip_if_deleted(overrides)
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            return compose("train", [f"run_dir={tmp_path}", *overrides])

    return compose_with


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_instantiates(composed, choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MLflow creates its store here
    group, _, name = choice.partition("=")
    needs = {
        "data=torchvision": ["data.dataset=KMNIST", "data.image_shape=[1,28,28]", "data.num_classes=10"],
        "data=image_folder": ["data.root=IMAGES", "data.num_classes=2"],
        "experiment=affine": ["data=mnist", "model=cnn"],
        "experiment=transfer": ["data.root=IMAGES", "data.num_classes=2"],
        "model=torchvision": ["model.name=resnet34"],
        "model=timm": ["model.name=resnet18"],
        "model=image_classifier": ["model.network={_target_: torch.nn.Identity}"],
        "model=table_model": ["model.network={_target_: torch.nn.Identity}"],
        "experiment=table": TABLE[1:],
        "optimizer=muon": ["data=mnist", "model=mlp"],
    }.get(choice, [])
    if choice in ("data=table", "loss=by_target", "metrics=by_target", "model=logistic_regression"):
        needs = [*TABLE, "model=logistic_regression"]
    elif "table" in name and group == "model":
        needs = [*TABLE, *needs]
    elif choice == "loss=cross_entropy" or (group == "metrics" and name not in ("mae", "r2", "rmse")):
        needs = ["data=mnist", "model=cnn"]
    if choice == "model=timm":
        pytest.importorskip("timm", reason='it is not installed: pip install -e ".[timm]"')
    if choice in ("logger=mlflow", "logger=wandb"):
        pytest.importorskip(name, reason=f'it is not installed: pip install -e ".[{name}]"')
    if choice == "data=torchvision":  # otherwise computed from the files
        needs = [*needs, "data.mean=[0.2]", "data.std=[0.3]"]
    if group == "data" and name not in ("linear", "table"):
        needs = [*needs, "model=cnn"]
    if group == "model" and name != "linear_regression" and "data=table" not in needs:
        needs = [*needs, "data=mnist"]
    config = composed(choice, *needs)
    OmegaConf.resolve(config)
    assert instantiate(config.data, _convert_="all").train_dataloader
    if group != "logger":  # resume.py takes loggers from the project
        trust.refuse_untrusted_targets(OmegaConf.to_container(config))  # as resume.py and evaluate.py do
    assert instantiate(config.model, _convert_="all").training_step
    for entry in [*config.callbacks.values(), *config.logger.values()]:
        assert entry is None or instantiate(entry)
    assert instantiate(config.trainer).max_epochs == config.trainer.max_epochs


@pytest.mark.parametrize("accelerator", ACCELERATORS)
@pytest.mark.parametrize("experiment", ["linear_regression", "mnist"])
def test_every_accelerator_composes_with_every_experiment(composed, experiment, accelerator):
    assert composed(f"experiment={experiment}", f"trainer={accelerator}").trainer.accelerator == accelerator
    config = composed(f"experiment={experiment}", "optimizer=adam", f"trainer.accelerator={accelerator}")
    assert config.trainer.accelerator == accelerator
    assert config.model.optimizer._target_ == "torch.optim.Adam"


def test_command_line_overrides_experiment(composed):
    config = composed("experiment=mnist", "optimizer=sgd", "optimizer.lr=0.5", "scheduler=cosine", "model=mlp")
    assert config.model.optimizer.lr == 0.5
    assert config.model.optimizer._target_ == "torch.optim.SGD"
    assert config.model.scheduler._target_ == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert config.model.network.hidden


def test_one_cycle_peaks_at_optimizer_learning_rate(composed):
    assert composed("scheduler=one_cycle", "optimizer.lr=0.3").model.scheduler.max_lr == 0.3


def test_debug_combines_with_another_experiment(composed):
    config = composed("experiment=[mnist,debug]", "trainer.max_epochs=1")
    assert config.data.dataset == "MNIST"
    assert (config.trainer.max_epochs, config.trainer.limit_train_batches) == (1, 3)
    assert config.callbacks.best_checkpoint.monitor == "val/acc"


def test_callback_choices_combine(composed):
    assert {"ema", "early_stopping", "progress"} <= set(composed("callbacks=[early_stopping,ema]").callbacks)


def test_logger_choices_combine(composed):
    assert set(composed("logger=[tensorboard,csv]").logger) == {"tensorboard", "csv"}


def test_every_trainer_argument_is_a_config_key(composed):
    set_elsewhere = {key.removeprefix("trainer.") for key in explanations.SET_ELSEWHERE}
    assert inspect.signature(Trainer).parameters.keys() - set_elsewhere == composed().trainer.keys() - {"_target_"}


@pytest.mark.parametrize(
    ("choices", "max_epochs", "saved"),
    [
        ([], 500, 50),
        (["data=linear"], 500, 50),
        (["model=linear_regression", "optimizer=sgd"], 500, 50),
        (["data=cifar10", "model=resnet18"], 10, None),
        (["data=kmnist", "model=mlp"], 10, None),
        (["experiment=table"], 1000, 50),
        (["experiment=mnist"], 5, None),
        (["experiment=mnist", "trainer.max_epochs=7", "model=mlp"], 7, None),
    ],
    ids=str,
)
def test_data_sets_the_number_of_epochs(composed, choices, max_epochs, saved):
    skip_if_deleted(choices)
    config = composed(*choices)
    assert (config.trainer.max_epochs, config.callbacks.last_checkpoint.times) == (max_epochs, saved)


def test_help_page_matches_configs(script, capfd):
    script("train.py", "--help")
    page = capfd.readouterr().out
    assert len(page.splitlines()) <= 50
    assert max(map(len, page.splitlines())) < 120
    lines = re.sub(r",\n  ", ", ", page)
    for group in (path for path in (ROOT / "configs").iterdir() if path.is_dir()):
        assert f"\n{group.name}: {', '.join(sorted(path.stem for path in group.glob('*.yaml')))}\n" in lines
    keys = re.findall(r"^  (\w[\w.]+=\S+) ", page, re.MULTILINE)
    assert len(keys) == 12
    skip_if_deleted(["experiment=mnist"])
    examples = re.findall(r"^  python train.py (.*?)(?:  .*)?$", page, re.MULTILINE)
    assert len(examples) >= 3
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        compose("train", ["experiment=mnist", *(key for key in keys if not key.startswith("hydra."))])
        for example in examples:
            words = shlex.split(example)
            compose("train", [word.partition(",")[0] if "-m" in words else word for word in words if word != "-m"])
