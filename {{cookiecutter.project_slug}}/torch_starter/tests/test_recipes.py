"""Tests of EMA, warm-up, Muon, parameters without weight decay, and the learning-rate finder."""

import copy
import json
import math
from functools import partial

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from test_resume import assert_same
from torch_starter import load_run, muon, project
from torch_starter.callbacks.curves import Curves
from torch_starter.callbacks.fine_tuning import FineTuning
from torch_starter.muon import Muon, hidden_weights
from torch_starter.optimization import has_name, optimizer_and_scheduler
from torch_starter.saved_config import read_config
from torch_starter.schedulers import WarmupCosine


@pytest.fixture
def small(digits):
    """Arguments of a run with three short epochs and batch normalization."""
    mnist = ["experiment=mnist", f"data.root={digits}", "data.num_val=100", "data.batch_size=100"]
    return [*mnist, "model.network.channels=[4,8]", "scheduler=constant", "trainer.max_epochs=3", "logger=csv"]


def state(run):
    """Return everything that must be bit-identical."""
    files = [torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best")]
    names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    return [*({name: file.get(name) for name in names} for file in files), results(run)]


def results(run):
    found = json.loads((run / "results.json").read_text())
    return {key: found[key] for key in ("metrics", "best_checkpoint", "epochs", "steps")}


class Interrupt(Callback):
    """Raises KeyboardInterrupt after the first epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


ALL = ["callbacks=[ema,early_stopping]", "scheduler=warmup_cosine", "optimizer=muon", "+optimizer.no_decay=[bias,norm]"]
RECIPES = {
    "ema": [ALL[0]],
    "warmup_cosine": [ALL[1]],
    "muon": [ALL[2]],
    "no_decay": [ALL[3]],
    "find_lr": ["find_lr=true"],
    "all": [*ALL, "trainer.gradient_clip_val=1"],
}


@pytest.mark.parametrize(
    "recipe", [*(pytest.param(name, marks=pytest.mark.slow) for name in list(RECIPES)[:-1]), "all"]
)
def test_resume_matches_uninterrupted_run(train, script, small, tmp_path, recipe):
    options = [*small, *RECIPES[recipe]]
    train(*options, "hydra.run.dir=whole")
    with pytest.raises(SystemExit):
        train(*options, "+callbacks.interrupt._target_=test_recipes.Interrupt", "hydra.run.dir=parts")
    script("resume.py", "parts", "callbacks.interrupt=null")
    assert results(tmp_path / "parts")["epochs"] == 3
    assert_same(state(tmp_path / "parts"), state(tmp_path / "whole"))


# callbacks=ema


def test_average_is_validated_tested_and_loaded(train, small):
    (run,) = train(*small, "callbacks=ema", "callbacks.ema.decay=0.8")
    last, best, _ = state(run)
    assert not last["state_dict"]["network.0.weight"].equal(last["current_model_state"]["network.0.weight"])
    assert not last["state_dict"]["network.2.running_mean"].equal(last["current_model_state"]["network.2.running_mean"])
    loaded = load_run(run)
    assert_same(dict(loaded.model.state_dict()), dict(best["state_dict"]))
    assert loaded.evaluate("test")["test/acc"] == results(run)["metrics"]["test/acc"]
    # Metrics of the best epoch, which is the last one in this run.
    of_last = load_run(run, checkpoint="last").evaluate("val")
    assert of_last["val/loss"] == pytest.approx(results(run)["metrics"]["val/loss"])


@pytest.mark.parametrize("order", ["ema,early_stopping", "early_stopping,ema"])
def test_two_callback_files_can_be_combined(order):
    callbacks = project.compose([f"callbacks=[{order}]", "run_dir=RUN"]).callbacks
    assert callbacks.ema._target_.endswith("EMA")
    assert callbacks.early_stopping._target_.endswith("EarlyStopping")
    assert callbacks.best_checkpoint


@pytest.mark.slow
def test_average_on_two_ranks_matches_single_process(small, tmp_path):
    from test_processes import TWO, train_py

    mlp = ["model=mlp", "model.network.dropout=0", "callbacks=ema", "optimizer=sgd"]  # no batch normalization
    options = [*(option for option in small if "channels" not in option), *mlp]
    train_py(*options, "hydra.run.dir=one", cwd=tmp_path)
    train_py(*options, *TWO, "hydra.run.dir=two", cwd=tmp_path)
    (of_one, *_), (of_two, *_) = state(tmp_path / "one"), state(tmp_path / "two")
    for name in ("state_dict", "current_model_state"):
        torch.testing.assert_close(of_two[name], of_one[name], rtol=1e-3, atol=1e-5)


# scheduler=warmup_cosine


def rates(steps, **arguments):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = WarmupCosine(optimizer, steps, **arguments)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_warmup_is_linear_then_cosine():
    found = rates(20, warmup_steps=4, eta_min=0.1)
    assert found[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert found[4:] == pytest.approx([0.1 + 0.4 * (1 + math.cos(math.pi * step / 16)) / 2 for step in range(17)])


def test_warmup_accepts_fraction_or_steps():
    assert rates(40, warmup_steps=0.1) == rates(40, warmup_steps=4)
    assert rates(40, warmup_steps=0)[0] == 0.5
    for mistake in (40, 1.0, -1, -0.1):
        with pytest.raises(ValueError, match=f"scheduler.warmup_steps is {mistake}, but the run has 40 steps"):
            rates(40, warmup_steps=mistake)


def test_extended_run_matches_rates_of_longer_run(train, script, tmp_path):
    options = ["scheduler=warmup_cosine", "scheduler.warmup_steps=0.2", "callbacks.regression_figures=null"]
    train(*options, "trainer.max_epochs=20", "hydra.run.dir=whole")
    train(*options, "trainer.max_epochs=10", "hydra.run.dir=parts")
    script("resume.py", "parts", "trainer.max_epochs=20")
    whole, parts = (
        torch.load(tmp_path / f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "parts")
    )
    assert parts["lr_schedulers"] == whole["lr_schedulers"]
    assert parts["optimizer_states"][0]["param_groups"] == whole["optimizer_states"][0]["param_groups"]


# optimizer=muon


MUON = {"momentum": 0.95, "betas": (0.9, 0.999), "weight_decay": 0.1}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)
    )


def step(model, *optimizers):
    for optimizer in optimizers:
        optimizer.zero_grad()
    x = torch.randn(16, model[0].weight.shape[1], generator=torch.Generator().manual_seed(1))
    cross_entropy(model(x), torch.arange(16) % 3).backward()
    for optimizer in optimizers:
        optimizer.step()


class Task(LightningModule):
    def __init__(self, network, optimizer, backbone=None):
        super().__init__()
        self.network = network
        self.backbone = backbone
        self.optimizer = optimizer

    def training_step(self, batch):
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return optimizer_and_scheduler(self, self.optimizer, partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0))


def optimizer_of(network, optimizer):
    return Task(network, optimizer).configure_optimizers()["optimizer"]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon requires torch 2.9")
def test_muon_matches_torch(monkeypatch):
    monkeypatch.setitem(muon.DTYPES, "cpu", torch.bfloat16)
    ours, torchs = network(), network()
    optimizer = optimizer_of(ours, partial(Muon, lr=0.1, **MUON))
    hidden = [torchs[2].weight, torchs[4].weight]
    rest = [p for p in torchs.parameters() if all(p is not other for other in hidden)]
    of_torch = torch.optim.Muon(hidden, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.1, weight_decay=0.1)
    for count in range(5):
        if count == 3:  # as in a checkpoint
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_of(ours, partial(Muon, lr=0.7, **MUON))
            optimizer.load_state_dict(saved)
        step(ours, optimizer)
        step(torchs, of_torch, adamw)
    assert_same(ours.state_dict(), torchs.state_dict())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_muon_treats_convolution_as_matrix(memory_format):
    convolution, linear = nn.Conv2d(4, 6, 3), nn.Linear(36, 6)
    with torch.no_grad():
        linear.weight.copy_(convolution.weight.flatten(1))
    convolution.to(memory_format=memory_format)
    gradient = torch.randn(6, 36)
    for weight in (convolution.weight, linear.weight):
        weight.grad = gradient.view(weight.shape).contiguous(
            memory_format=memory_format if weight.ndim == 4 else torch.contiguous_format
        )
        Muon([{"params": [weight], "is_hidden": True}], lr=0.1, **MUON).step()
    assert_same(convolution.weight.detach().flatten(1).contiguous(), linear.weight.detach())


def test_hidden_weights_excludes_first_and_last_layer():
    model = nn.Sequential(
        nn.Embedding(5, 4),
        nn.Linear(4, 4),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.LayerNorm(4),
        nn.Linear(4, 2),
    )
    assert hidden_weights(model) == {model[2].weight}


def test_muon_without_hidden_layers_is_refused(train):
    with pytest.raises(SystemExit, match=r"optimizer=muon is for hidden layers, and LinearRegression has none"):
        train("optimizer=muon")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_muon_in_other_precisions(train, small, precision):
    (run,) = train(*small, "optimizer=muon", f"trainer.precision={precision}", "scheduler=one_cycle")
    assert results(run)["metrics"]["test/acc"] > 0.3


# optimizer.no_decay


def test_no_decay_matches_norm_layers_and_name_parts():
    linear, norm = nn.Linear(1, 1), nn.BatchNorm1d(1)
    assert has_name("network.0.bias", linear, "bias")
    assert has_name("network.0.weight", norm, "norm")
    assert has_name("network.0.weight", linear, "network.0")
    assert has_name("token_embedding.weight", linear, "*embedding")
    assert not has_name("network.0.weight", linear, "norm")
    assert not has_name("network.10.weight", linear, "network.1")


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_named_parameters_do_not_decay(train, small, tmp_path, optimizer):
    # With this decay, each step sets decayed parameters to values as small as the learning rate.
    options = [
        *small,
        f"optimizer={optimizer}",
        "optimizer.lr=1e-6",
        "optimizer.weight_decay=1e6",
        "trainer.max_epochs=1",
    ]
    (run,) = train(*options, "+optimizer.no_decay=[bias,norm,network.9]", "trainer.log_every_n_steps=1")
    last = state(run)[0]
    weights, (saved,) = last["state_dict"], last["optimizer_states"]
    assert weights["network.0.weight"].abs().max() < 1e-4
    assert weights["network.4.weight"].abs().max() < 1e-4
    for name in ("network.2.weight", "network.0.bias", "network.9.weight"):
        assert weights[name].abs().max() > 1e-2, name
    assert {group["weight_decay"] for group in saved["param_groups"]} == {0.0, 1e6}
    columns = (run / "csv/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/lr" in columns
    assert "train/lr_backbone" not in columns


def test_unknown_name_in_no_decay_is_refused(train):
    message = r"optimizer.no_decay contains biass, but no parameter has this name.*bias"
    with pytest.raises(SystemExit, match=message) as exit_:
        train("+optimizer.no_decay=[biass]")
    assert len(exit_.value.code.splitlines()) <= 2
    with pytest.raises(SystemExit, match="contains norm, but the model has no normalization layer"):
        train("+optimizer.no_decay=[norm]")


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, Muon])
def test_unfrozen_backbone_has_its_own_groups(tmp_path, optimizer):
    from lightning.pytorch.loggers import CSVLogger

    def fit(epochs, checkpoint=None):
        model = network()
        arguments = MUON if optimizer is Muon else {"weight_decay": 0.1}
        task = Task(model, partial(optimizer, lr=0.1, **arguments, no_decay=["bias", "norm"]), model[:6])
        logger = CSVLogger(tmp_path, name=f"{epochs}")
        callbacks = [FineTuning(1, 0.5), Curves()]
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=callbacks,
            logger=logger,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        generator = torch.Generator().manual_seed(1)
        data = TensorDataset(torch.randn(16, 8, generator=generator), torch.arange(16) % 3)
        trainer.fit(task, DataLoader(data, 8), ckpt_path=checkpoint, weights_only=True)
        logger.save()
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt", weights_only=False)
        lines = (tmp_path / f"{epochs}/version_0/metrics.csv").read_text().splitlines()
        names = lines[0].split(",")
        rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
        return trainer, model, [(row["train/lr"], row.get("train/lr_backbone")) for row in rows if row["train/lr"]]

    trainer, model, logged = fit(3)
    groups = trainer.optimizers[0].param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        for p in group["params"]:
            name = next(name for name, other in model.named_parameters() if other is p)
            is_norm = isinstance(model[int(name[0])], nn.LayerNorm)
            assert group["weight_decay"] == (0.0 if "bias" in name or is_norm else 0.1)
            assert group.get("is_hidden", False) == (optimizer is Muon and name in ("2.weight", "4.weight"))
            assert group["lr"] == (0.1 if name[0] == "6" else 0.05)
    assert logged[:2] == [("0.1", "")] * 2
    assert logged[-1] == ("0.1", "0.05")
    fit(2)
    resumed, parts, _ = fit(3, tmp_path / "2.ckpt")
    assert_same(dict(parts.state_dict()), dict(model.state_dict()))
    assert_same(resumed.optimizers[0].state_dict(), trainer.optimizers[0].state_dict())


# find_lr=true


@pytest.mark.parametrize("scheduler", [pytest.param("constant", marks=pytest.mark.slow), "one_cycle"])
def test_found_rate_matches_typed_rate(train, small, tmp_path, capfd, scheduler):
    options = [*small, f"scheduler={scheduler}", "trainer.max_epochs=2"]
    train(*options, "find_lr=true", "hydra.run.dir=found")
    printed = capfd.readouterr()
    config = read_config(tmp_path / "found")
    rate = config.optimizer.lr
    assert config.find_lr == rate
    assert f"optimizer.lr={rate}" in printed.out
    assert printed.err == ""
    train(*options, f"optimizer.lr={rate}", "hydra.run.dir=typed")
    assert_same(state(tmp_path / "found"), state(tmp_path / "typed"))
    found, typed = (
        {path.relative_to(tmp_path / run).as_posix() for path in (tmp_path / run).rglob("*")}
        for run in ("found", "typed")
    )
    assert found - typed == {"figures", "figures/learning_rate.png"}
    assert typed <= found
    assert not list(tmp_path.rglob(".lr_find*"))
    assert f"optimizer.lr: {rate}" in (tmp_path / "found/csv/version_0/hparams.yaml").read_text()


@pytest.mark.slow
def test_same_command_resumes_with_found_rate(train, small, tmp_path, capfd):
    options = [*small, "find_lr=true", "hydra.run.dir=run", "ckpt_path=last"]
    with pytest.raises(SystemExit):
        train(*options, "+callbacks.interrupt._target_=test_recipes.Interrupt")
    before = (tmp_path / "run/figures/learning_rate.png").stat().st_mtime_ns
    train(*options)
    assert "resuming after epoch 1" in capfd.readouterr().out
    assert results(tmp_path / "run")["epochs"] == 3
    assert (tmp_path / "run/figures/learning_rate.png").stat().st_mtime_ns == before
    assert read_config(tmp_path / "run").find_lr == read_config(tmp_path / "run").optimizer.lr


def test_find_lr_is_refused_for_checkpoint(train, script, small, tmp_path):
    train(*small, "hydra.run.dir=run", "trainer.max_epochs=1")
    for name, *command in (
        ("train.py", *small, "hydra.run.dir=run", "ckpt_path=last", "find_lr=true"),
        ("train.py", *small, "hydra.run.dir=other", "ckpt_path=run/checkpoints/last.ckpt", "find_lr=true"),
        ("resume.py", "run", "trainer.max_epochs=2", "find_lr=true"),
    ):
        with pytest.raises(
            SystemExit, match=r"find_lr is true, but .* has a learning rate, so it would have no effect"
        ):
            script(name, *command)


@pytest.mark.slow
def test_each_multirun_job_finds_its_own_rate(train, script, tmp_path):
    script("train.py", "-m", "find_lr=true", "optimizer=sgd,adam", "trainer.max_epochs=1", "hydra.sweep.dir=jobs")
    sgd, adam = (read_config(tmp_path / f"jobs/{job}") for job in (0, 1))
    assert sgd.optimizer.lr < adam.optimizer.lr
    assert (sgd.find_lr, adam.find_lr) == (sgd.optimizer.lr, adam.optimizer.lr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["+model.slope=0"], "find_lr=true finds no learning rate"),
        (["trainer.devices=2", "trainer.accelerator=cpu"], "one process, but this run has 2"),
    ],
)
def test_find_lr_without_result_prints_one_message(train, tmp_path, options, message):
    if "slope" in options[0]:
        options = ["trainer.limit_train_batches=0"]
    with pytest.raises(SystemExit, match=message):
        train("find_lr=true", *options, "hydra.run.dir=run")
    assert not (tmp_path / "run").exists()
