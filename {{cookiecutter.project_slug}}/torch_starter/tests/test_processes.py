"""Distributed runs use one run folder and produce the results of a single process."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project_for_tests import LIBRARY, ROOT, environment, weights
from torch_starter import processes

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def command(digits):
    """No batch of any split can be divided evenly: 499, 101 and 200 images in batches of 66."""
    mnist = ["experiment=mnist", "model=mlp", "model.network.dropout=0", f"data.root={digits}", "data.num_val=101"]
    return [*mnist, "data.batch_size=66", "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=3"]


def run(*command, cwd, status=0, **variables):
    """Run a command in a new process and return its output."""
    # As in the tests; two processes with two threads each block each other on two cores.
    settings = environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)} | variables
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=cwd, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == status, done.stdout
    return done.stdout


def train_py(*arguments, **kwargs):
    return run(sys.executable, ROOT / "train.py", *arguments, **kwargs)


def run_folders(root):
    """Return all folders that a run or a multirun may have created."""
    return [path.parent for path in sorted(root.glob("outputs/**/.hydra"))]


def files(folder):
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(re.sub(r"tfevents.*", "tfevents", name) for name in names)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def curve(folder, tag):
    return [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars(tag)]


def assert_equal_to_rounding(found, expected):
    metrics, of_one = results(found)["metrics"], results(expected)["metrics"]
    assert metrics.keys() == of_one.keys()
    for name in metrics.keys() - {"train/loss"}:  # of the last batch, whose parts differ in size
        assert metrics[name] == pytest.approx(of_one[name], rel=1e-4), name
    for tag in ("train/loss", "val/loss", "val/acc"):
        steps, values = zip(*curve(found, tag), strict=True)
        steps_of_one, values_of_one = zip(*curve(expected, tag), strict=True)
        assert steps == steps_of_one
        assert tag == "train/loss" or values == pytest.approx(values_of_one, rel=1e-4)
    for key, value in weights(expected).items():
        torch.testing.assert_close(weights(found)[key], value, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def one(command, tmp_path_factory):
    """The run folder of a single-process run."""
    folder = tmp_path_factory.mktemp("one")
    train_py(*command, "trainer.accelerator=cpu", cwd=folder)
    return run_folders(folder)[0]


@pytest.fixture(scope="module")
def two(command, tmp_path_factory):
    """The run folder and the output of a two-process run that Lightning started."""
    folder = tmp_path_factory.mktemp("two")
    printed = train_py(*command, *TWO, cwd=folder)
    (found,) = run_folders(folder)
    return found, printed


def test_two_processes_match_single_process(one, two):
    assert_equal_to_rounding(two[0], one)
    assert results(two[0])["steps"] == results(one)["steps"]


def test_two_processes_write_and_print_like_one(one, two):
    folder, printed = two
    assert files(folder) == files(one)
    assert (folder / "train.log").read_text().count("epoch 3/3") == 1
    assert printed.count("epoch 3/3") == 1
    # Gloo in torch 2.8 reports its connection on standard output.
    first = next(line for line in printed.splitlines() if not line.startswith("[Gloo]"))
    assert first.endswith(f"| 2 x cpu | outputs/mnist/{folder.name}")
    (start,) = json.loads((folder / "environment.json").read_text())
    assert start["processes"] == 2
    assert "process" not in printed, "rank 1 prints nothing"


@pytest.mark.slow
def test_torchrun_matches_lightning_launcher(command, two, tmp_path):
    run(*TORCHRUN, "--standalone", "--nproc-per-node=2", ROOT / "train.py", *command, *TWO, cwd=tmp_path)
    (folder,) = run_folders(tmp_path)
    assert files(folder) == files(two[0])
    assert results(folder)["metrics"] == results(two[0])["metrics"]


@pytest.mark.slow
def test_multirun_has_one_folder_per_job(command, two, tmp_path):
    # With the store of Windows, where torch has no libuv.
    printed = train_py("-m", *command, *TWO, "seed=42,43", cwd=tmp_path, USE_LIBUV="0")
    first, second = run_folders(tmp_path)
    assert (first.name, second.name) == ("0", "1")
    assert first.parent == second.parent
    assert results(first)["metrics"] == results(two[0])["metrics"]
    assert results(second)["metrics"] != results(two[0])["metrics"]
    assert "seed=43" in printed.rpartition("overrides")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("every", "place"), [("null", "after epoch 1"), ("2", "within epoch 2, after step 12")])
def test_killed_run_resumes_on_both_ranks(command, two, tmp_path, every, place):
    # The command ends when neither process writes to its output any more.
    dies = ["+callbacks.dies._target_=test_processes.Death", f"callbacks.last_checkpoint.every={every}"]
    train_py(*command, *TWO, *dies, cwd=tmp_path, status=-signal.SIGKILL)
    (folder,) = run_folders(tmp_path)
    assert not (folder / "results.json").exists()
    printed = run(sys.executable, ROOT / "resume.py", folder, "callbacks.dies=null", cwd=tmp_path)
    assert f"resuming {place}" in printed
    assert run_folders(tmp_path) == [folder]
    assert results(folder)["metrics"] == results(two[0])["metrics"]
    assert all(weights(folder)[key].equal(value) for key, value in weights(two[0]).items())
    # A single process can evaluate it.
    loss = results(folder)["metrics"]["test/loss"]
    assert f"{loss:.4f}" in run(sys.executable, ROOT / "evaluate.py", folder, cwd=tmp_path)


class Death(Callback):
    """Kills one of two processes with SIGKILL in the middle of the second epoch."""

    def __init__(self, rank=0, with_parent=False):
        self.rank = rank
        self.with_parent = with_parent

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx, trainer.global_rank) == (1, 4, self.rank):
            if self.with_parent:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


class SameWeights(Callback):
    """Fails if the ranks end with different weights."""

    def on_train_end(self, trainer, pl_module):
        assert trainer.world_size == 2
        for name, parameter in pl_module.named_parameters():
            first, second = pl_module.all_gather(parameter.detach())
            assert first.equal(second), name


@pytest.mark.slow
def test_unfrozen_backbone_stays_in_sync(image_folder, tmp_path):
    images = ["data=image_folder", f"data.root={image_folder}", "data.image_shape=[3,32,32]", "model=cnn"]
    small = ["data.batch_size=16", "data.num_workers=0", "trainer.max_epochs=2"]
    fine = "+callbacks.fine_tuning"
    check = [
        f"{fine}._target_=torch_starter.callbacks.fine_tuning.FineTuning",
        f"{fine}.unfreeze_backbone_at_epoch=1",
        f"{fine}.backbone_initial_ratio_lr=0.1",
        "+callbacks.same._target_=test_processes.SameWeights",
    ]
    train_py(*images, *small, *check, *TWO, cwd=tmp_path)
    (last,) = tmp_path.rglob("last.ckpt")
    assert len(torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"]) == 2


class TwoPaths(torch.nn.Module):
    """A network that uses only half of its parameters in each step."""

    def __init__(self):
        super().__init__()
        self.paths = torch.nn.ModuleList(torch.nn.Linear(28 * 28, 10) for _ in range(2))

    def forward(self, images):
        return self.paths[int(images.sum() > 0)](images.flatten(1))


@pytest.mark.slow
def test_error_on_all_ranks_is_printed_once(digits, tmp_path):
    paths = ["~model.network", "+model.network._target_=test_processes.TwoPaths"]
    mnist = ["experiment=mnist", *paths, f"data.root={digits}", "data.num_val=100", "data.batch_size=50"]
    printed = train_py(*mnist, *TWO, cwd=tmp_path, status=1)
    assert printed.count("trainer.strategy.find_unused_parameters=true") == 1
    assert "Traceback" not in printed
    train_py(*mnist, *TWO, "trainer.strategy.find_unused_parameters=true", "trainer.max_epochs=1", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["trainer.devices=1000"], {}, r"trainer.devices is 1000; this machine has \d+ CPU cores"),
        (["trainer.devices=2", "data.batch_size=51"], {}, "data.batch_size is 51, .* Nearest: 50, 52"),
        (["trainer.devices=2", "data.batch_size=1"], {}, "data.batch_size is 1, .* Nearest: 2"),
        ([], {"RANK": "0", "WORLD_SIZE": "2"}, r"2 processes were started .*, but trainer\.devices=1 .* means 1"),
        (["-m", "seed=1,2"], {"RANK": "0", "WORLD_SIZE": "2"}, "2 processes were started for one run"),
        ([], {"NODE_RANK": "1"}, "MASTER_ADDR is not set, but NODE_RANK=1.* unset NODE_RANK"),
        (
            ["trainer.num_nodes=2"],
            {},
            r"MASTER_ADDR is not set, but trainer\.num_nodes is more .*: trainer\.num_nodes=1",
        ),
        ([], {"NODE_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT is x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | dict) else "",
)
def test_mismatched_processes_are_refused_before_training(
    train, tmp_path, monkeypatch, free_port, log_levels, arguments, variables, message
):
    if "RANK" in variables:
        variables = variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
        monkeypatch.setattr(
            processes, "SHUTDOWN_TIMEOUT", timedelta(milliseconds=1)
        )  # the other process does not exist
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        train("trainer=ddp", "trainer.accelerator=cpu", *(arguments or ["trainer.devices=1"]))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.fixture
def log_levels():
    """Restore the log levels that ranks other than 0 change, because here they change in this process."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("fabric", "pytorch")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_fsdp_requires_gpu(train):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit, match=r"trainer\.accelerator can be: auto, cpu"):
        train("trainer=fsdp")


SLURM_SCRIPT = LIBRARY.parent / "scripts/train.slurm"
SRUN = """#!/bin/bash
# Runs two tasks on this machine, as SLURM's srun does.
[ "$1" = --kill-on-bad-exit=1 ] && shift
for task in 1 0; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & done
wait -n && wait -n
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux")
@pytest.mark.skipif(not SLURM_SCRIPT.exists(), reason="scripts/train.slurm does not exist")
@pytest.mark.parametrize(("every", "place"), [("null", "after epoch 1"), ("1000", "within epoch 2, after step 9")])
def test_requeued_slurm_job_resumes(command, two, tmp_path, free_port, every, place):
    """Runs the script with a fake srun; a requeued job keeps its job id."""
    for name, content in (("srun", SRUN), ("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "127.0.0.1"}
    job |= {"MASTER_PORT": str(free_port), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    for path in (*ROOT.glob("*.py"), ROOT / "configs"):
        (tmp_path / path.name).symlink_to(path)
    script = ["bash", SLURM_SCRIPT, *command, "trainer.accelerator=cpu"]
    script.append(f"callbacks.last_checkpoint.every={every}")
    preempted = "+callbacks.stop._target_=test_processes.Preemption"
    run(*script, preempted, cwd=tmp_path, status=143, **job)
    printed = run(*script, cwd=tmp_path, **job)
    assert f"resuming {place}" in printed
    (folder,) = run_folders(tmp_path)
    assert folder == tmp_path / "outputs/slurm/7"
    assert results(folder)["metrics"] == results(two[0])["metrics"]
    assert "is finished" in run(*script, cwd=tmp_path, **job)


class Preemption(Callback):
    """Sends SIGTERM to all processes in the second epoch."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


NODES = {"a": "10.77.0.1", "b": "10.77.0.2"}


@pytest.fixture
def nodes():
    """Emulate two nodes with connected network namespaces."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux, the ip command, and root")
    names = {node: f"test-{os.getpid()}-{node}" for node in NODES}
    try:
        for name in names.values():
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        cable = [
            "ip",
            "link",
            "add",
            "cable",
            "netns",
            names["a"],
            "type",
            "veth",
            "peer",
            "cable",
            "netns",
            names["b"],
        ]
        subprocess.run(cable, check=True, capture_output=True)
        for node, name in names.items():
            for command in (["addr", "add", f"{NODES[node]}/24", "dev", "cable"], ["link", "set", "cable", "up"]):
                subprocess.run(["ip", "-n", name, *command], check=True, capture_output=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not available: {error.stderr.decode().strip()}")
    else:
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.slow
def test_two_node_run_resumes_after_node_dies(command, two, nodes, tmp_path):
    settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable", "PYTHONPATH": str(Path(__file__).parent)}

    def start(rank, *more):
        torchrun = [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", f"--master-addr={NODES['a']}"]
        both = ["trainer.accelerator=cpu", "trainer.num_nodes=2", "hydra.run.dir=outputs/two_nodes", "ckpt_path=last"]
        node = ["ip", "netns", "exec", nodes["ab"[rank]]]
        return subprocess.Popen(
            [*node, *torchrun, str(ROOT / "train.py"), *command, *both, *more],
            cwd=tmp_path,
            env=environment() | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_both(*more):
        with start(1, *more) as second, start(0, *more) as first:
            printed = first.communicate()[0], second.communicate()[0]
        return first.returncode, second.returncode, *printed

    # Kill torchrun and its worker.
    death = "+callbacks.dies={_target_:test_processes.Death,rank:1,with_parent:true}"
    first, second, printed, _ = start_both(death)
    assert (first, second) == (1, -signal.SIGKILL), printed
    folder = Path(tmp_path, "outputs/two_nodes")
    assert not (folder / "results.json").exists()

    first, second, printed, printed_by_second = start_both()
    assert (first, second) == (0, 0), printed + printed_by_second
    assert "resuming after epoch 1" in printed
    assert run_folders(tmp_path) == [folder]
    assert results(folder)["metrics"] == results(two[0])["metrics"]
