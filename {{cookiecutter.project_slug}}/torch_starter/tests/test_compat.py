"""Compatibility with Hydra 1.3 and 1.4, Python 3.14, and private names of other libraries."""

import argparse
import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from project_for_tests import ROOT
from torch_starter import compat, quiet  # noqa: F401
from torch_starter.callbacks.global_batch import GlobalBatch


@pytest.mark.slow
def test_train_and_resume_print_no_deprecation_warning(tmp_path):
    command = [sys.executable, "-W", "always::DeprecationWarning:hydra", str(ROOT / "train.py"), "trainer.max_epochs=1"]
    run = subprocess.run([*command, "hydra.run.dir=run"], cwd=tmp_path, capture_output=True, encoding="utf-8")
    resumed = [sys.executable, str(ROOT / "resume.py"), "run", "trainer.max_epochs=2"]
    resume = subprocess.run(resumed, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == resume.returncode == 0, run.stderr + resume.stderr
    for word in ("version_base", "whitelist", "already registered", "badly formed help"):
        assert word not in run.stderr + resume.stderr


def test_argparse_checks_help_texts_after_hydra_builds_its_parser():
    if not hasattr(argparse._ActionsContainer, "_check_help"):
        pytest.skip("Python before 3.14 does not check help texts")
    parser = sys.modules["hydra.main"].get_args_parser()
    assert parser.parse_args(["seed=1"]).overrides == ["seed=1"]
    with pytest.raises(ValueError, match="badly formed help"):
        argparse.ArgumentParser().add_argument("--mine", help="%(missing)s")


@pytest.mark.skipif(compat.IS_HYDRA_1_3, reason="Hydra 1.3 has no whitelist")
def test_run_folder_instantiates_only_checked_targets():
    checked = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGD", "_partial_": True}})
    added = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    with compat.instantiate_only_targets_of(checked):
        assert instantiate(checked.optimizer)
        with pytest.raises(InstantiationException, match="whitelist"):
            instantiate(added)
    assert instantiate(added)


def test_composed_configs_may_use_any_class():
    assert instantiate({"_target_": "collections.Counter"}) == {}


# Private names of other libraries


def test_stop_workers_stops_workers_and_allows_restart():
    loader = DataLoader(range(4), num_workers=1, persistent_workers=True)
    before = set(multiprocessing.active_children())  # from other tests
    next(iter(loader))
    (worker,) = set(multiprocessing.active_children()) - before
    compat.stop_workers(loader)
    assert worker not in multiprocessing.active_children()
    assert len(list(loader)) == 4
    compat.stop_workers(loader)


@pytest.mark.parametrize("is_unscaled", [True, False])
def test_fused_optimizer_allows_clipping_in_mixed_precision(is_unscaled):
    optimizer = torch.optim.Adam(torch.nn.Linear(1, 1).parameters(), fused=True)
    precision = MixedPrecision("bf16-mixed", "cpu")
    if not is_unscaled:
        with pytest.raises(RuntimeError, match="gradient clipping"):
            precision.clip_gradients(optimizer, 1.0)
        return
    precision.clip_gradients(compat.unscale_before_step(optimizer), 1.0)


def test_file_writer_reopens_closed_event_file(tmp_path):
    experiment = SummaryWriter(str(tmp_path))
    experiment.close()
    compat.file_writer(experiment).flush()
    experiment.close()
    assert len(list(tmp_path.glob("events.*"))) == 2


@pytest.mark.slow
def test_compiled_module_can_be_traced():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    model[0].compile()
    with compat.disable_compiled_modules(model):
        traced = torch.jit.trace(model, torch.ones(1, 1))
        assert traced(torch.ones(1, 1)).equal(model(torch.ones(1, 1)))
    assert model[0]._compiled_call_impl


def test_has_version_counter_reads_model_checkpoint():
    assert compat.has_version_counter(ModelCheckpoint())
    assert not compat.has_version_counter(ModelCheckpoint(enable_version_counter=False))


class BatchCounter(Callback):
    def __init__(self):
        self.batches = 0

    def on_predict_batch_end(self, *args):
        self.batches += 1


@pytest.mark.parametrize("profiler", [None, "simple"])
def test_overridden_hooks_are_called_and_profiled(tmp_path, profiler):
    callback, later = BatchCounter(), LambdaCallback(on_predict_batch_start=lambda *args: None)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", callbacks=[callback, later], profiler=profiler, default_root_dir=tmp_path, **options
    )
    compat.skip_empty_hooks(trainer)
    assert callback.on_predict_batch_start is callback.on_train_batch_end is None
    trainer.predict(BoringModel())
    assert callback.batches == 64
    if profiler:
        actions = trainer.profiler.recorded_durations
        assert any("BatchCounter.on_predict_batch_end" in name for name in actions)
        assert any("LambdaCallback.on_predict_batch_start" in name for name in actions)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, Lightning's default check is used")
def test_nvml_is_not_loaded_in_each_step_without_gpu():
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "0"


@pytest.fixture
def single_process(tmp_path):
    """Initialize a process group of one process."""
    torch.distributed.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="gloo finds no network interface on some machines")
@pytest.mark.filterwarnings("ignore")  # FSDP warns that it shards nothing
def test_single_process_fsdp_computes_correct_gradients(single_process):
    expected = nn.Conv2d(3, 4, 3)
    images = torch.rand(2, 3, 6, 6)
    expected(images).square().sum().backward()

    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    model.load_state_dict(expected.state_dict())
    compat.use_contiguous_weights(model)
    wrapped = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    wrapped(images).square().sum().backward()
    weight, _ = wrapped.parameters()
    torch.testing.assert_close(weight.grad, expected.weight.grad)
    assert weight.stride() == weight.grad.stride(), "a fused optimizer requires equal strides"


def test_fsdp_receives_contiguous_weights():
    model = BoringModel()
    model.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    for strategy, is_contiguous in ((SingleDeviceStrategy(), False), (FSDPStrategy(), True)):
        GlobalBatch().setup(SimpleNamespace(strategy=strategy, world_size=2), model, "fit")
        assert model.conv.weight.is_contiguous() == is_contiguous


def test_reopened_trial_keeps_its_values():
    optuna = pytest.importorskip("optuna", reason='needs pip install -e ".[sweep]"')
    study = optuna.create_study()
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    resumed = compat.reopen_trial(study, study.trials[0])
    assert resumed.suggest_float("x", 0, 1) == value
    study.tell(resumed, value)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_get_job_error_returns_exception_of_failed_job():
    error = ValueError("wrong")
    assert compat.get_job_error(JobReturn(status=JobStatus.FAILED, _return_value=error)) is error
    assert compat.get_job_error(JobReturn(status=JobStatus.COMPLETED, _return_value=1)) is None
