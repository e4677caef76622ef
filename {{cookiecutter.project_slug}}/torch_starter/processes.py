"""Distributed runs: rank 0 composes the config and owns the run folder, and the other ranks receive its config.

Lightning, torchrun and SLURM start the same command once per process. If each process composed the config, each would
create its own run folder or multirun.
"""

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from .mistakes import FULL_ERROR, IS_FULL, UserError

if TYPE_CHECKING:
    from lightning import Trainer

# How long other ranks wait for rank 0, which may have to download the data.
RANK_ZERO_TIMEOUT = timedelta(minutes=30)
# How long rank 0 waits for the other ranks to learn that there is nothing to do; they may still import Lightning.
SHUTDOWN_TIMEOUT = timedelta(minutes=1)

# Environment variables that hold the rank of a process.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")

# The key-value store shared by all processes of the current or last run; empty before the first run.
_stores: list[Any] = []


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, according to the variables that torchrun, SLURM or Lightning set."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def _started() -> int | None:
    """Return how many processes torchrun or SLURM have started; None if Lightning has to start them."""
    if "RANK" in os.environ:
        return _number("WORLD_SIZE")
    if _is_srun():
        return _number("SLURM_NTASKS")
    return None


def _number(name: str) -> int:
    """Return the integer value of an environment variable that torchrun or SLURM sets.

    Raises:
        UserError: If the variable is missing or not an integer.
    """
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        raise UserError(
            f"{name} is {os.environ.get(name, 'not set')}, but {_as_assignments(_set_ranks())}. torchrun and srun set "
            f"both. To train with one process: unset {' '.join(_set_ranks())}"
        ) from None


def _is_srun() -> bool:
    """Return whether srun has started this process, rather than a user in a shell or Jupyter session of the job."""
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return False
    # A shell has the job's number of tasks. Lightning needs the tasks per node where srun starts several.
    count = os.environ.setdefault("SLURM_NTASKS", "1")
    return count == "1" or bool({"SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"} & set(os.environ))


def hide_srun() -> None:
    """Set the job name by which Lightning distinguishes a shell of a SLURM job from a task of the job."""
    if "SLURM_NTASKS" in os.environ:
        os.environ["SLURM_JOB_NAME"] = "interactive"


def ignore_ranks() -> None:
    """Run this command as a single process: ignore ranks and world sizes that are left in the environment."""
    for name in (*RANKS, "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    hide_srun()


def run_on_rank_zero(train: Callable[[DictConfig], None]) -> Callable[..., Any]:
    """Return a decorator that runs a command's ``main`` on rank 0 only.

    Args:
        train: Function that the other ranks call with the config of the run once rank 0 has sent it.
    """
    return functools.partial(_run_on_rank_zero, train)


def _run_on_rank_zero(train: Callable[[DictConfig], None], main: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(main)
    def main_of_rank_zero(*args: Any) -> Any:
        if not _is_srun():
            hide_srun()
        if not is_rank_zero():
            _follow(train)
            return None
        if (_started() or 1) == 1:
            return main(*args)
        if {"-m", "--multirun"} & set(sys.argv):
            raise UserError(
                f"{_started()} processes were started for one run, but a multirun has several. Let Lightning start the "
                "processes of each run: python train.py -m … trainer=ddp trainer.devices=…"
            )
        try:
            return main(*args)
        finally:
            if not _stores:  # --help, an error, or a finished run
                _send("")
                _wait_for_other_ranks()

    return main_of_rank_zero


def _follow(train: Callable[[DictConfig], None]) -> None:
    import lightning.pytorch  # noqa: F401  (it sets its log levels)

    logging.basicConfig(format=f"[process {_name()}] %(message)s")
    for name in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)  # rank 0 logs the rest
    _stores[:] = [_store()]
    sent = _stores[0].get(_key("config")).decode()
    _stores[0].set(_key(f"heard by {_name()}"), "")
    if sent:
        train(OmegaConf.create(sent))


@contextlib.contextmanager
def run_on_all_ranks(config: DictConfig, trainer: "Trainer", checkpoint: str | None) -> Iterator[None]:
    """Run the body of the context on all ranks of a run; restore a single process afterwards.

    Args:
        config: Config of the run, which rank 0 sends to the other ranks.
        trainer: Trainer of the run.
        checkpoint: Checkpoint that the run starts from.

    Raises:
        UserError: If the processes do not match the config, or another rank has ended early.
    """
    count = trainer.num_devices * trainer.num_nodes
    _check(config, trainer, count)
    if count == 1:
        yield
        return
    before = dict(os.environ)
    os.environ["LOCAL_WORLD_SIZE"] = str(trainer.num_devices)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack trace from a rank that loses its peers
    if not IS_FULL:
        os.environ.pop(FULL_ERROR, None)  # for Hydra in this process, not for child processes
    if is_rank_zero():
        if _started() is None and trainer.num_nodes == 1:
            from lightning.fabric.plugins.environments.lightning import find_free_network_port

            os.environ["MASTER_ADDR"] = "127.0.0.1"
            os.environ["MASTER_PORT"] = str(find_free_network_port())
        place = {"run_dir": str(Path(config.run_dir).resolve()), "ckpt_path": checkpoint}
        _send(OmegaConf.to_yaml(OmegaConf.merge(config, place)))
    try:
        yield
    except SystemExit:
        _is_first_failure()
        raise
    except Exception as error:
        if not is_rank_zero() or _started() is not None:
            # Rank 0 or torchrun terminates this process when another fails; it may have to report its own error first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _is_first_failure():
            sys.exit(1)  # the process that failed first reports why
        if _is_lost_connection(error):
            raise UserError("Another process of this run has exited.") from error
        raise
    finally:
        _end(trainer)
        os.environ.clear()
        os.environ.update(before)


def _check(config: DictConfig, trainer: "Trainer", count: int) -> None:
    shape = f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}"
    if _started() not in (None, count):
        variables = ("WORLD_SIZE", "RANK") if "RANK" in os.environ else ("SLURM_NTASKS", "SLURM_PROCID")
        alone = "unset RANK WORLD_SIZE" if "RANK" in os.environ else "export SLURM_JOB_NAME=bash"
        raise UserError(
            f"{_started()} processes were started ({_as_assignments(variables)}), but {shape} means {count}. Make them "
            f"equal. If the variables are left over, or in a shell within a job: {alone}"
        )
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.num_devices > (os.cpu_count() or 1):
        raise UserError(f"trainer.devices is {trainer.num_devices}; this machine has {os.cpu_count()} CPU cores.")
    batch_size = OmegaConf.select(config, "data.batch_size")  # a custom data module may have none
    if isinstance(batch_size, int) and batch_size % count:
        below = batch_size // count * count
        nearest = f"{below}, {below + count}" if below else str(count)
        raise UserError(
            f"data.batch_size is {batch_size}, which {shape} cannot split evenly across {count} processes. "
            f"Nearest: {nearest}."
        )


def _send(config: str) -> None:
    _stores[:] = [_store()]
    _stores[0].set(_key("config"), config)


def _wait_for_other_ranks() -> None:
    """Wait until the other ranks know that there is nothing to do, if this process owns the store."""
    if _has_store():
        keys = [_key(f"heard by {rank}") for rank in range(1, _started() or 1)]
        with contextlib.suppress(RuntimeError):  # one of them has exited
            _stores[0].wait(keys, SHUTDOWN_TIMEOUT)


def _store() -> Any:
    """Return the key-value store that all ranks of a run connect to; rank 0 or torchrun owns it."""
    from torch.distributed import TCPStore

    if "RANK" not in os.environ and (_started() or 1) > 1:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        environment = SLURMEnvironment()
        address, port = environment.main_address, environment.main_port
    else:
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError):
            name = "MASTER_PORT" if "MASTER_ADDR" in os.environ else "MASTER_ADDR"
            ranks = " ".join(_set_ranks())
            why = _as_assignments(_set_ranks()) or "trainer.num_nodes is more than 1"
            end = f"To train with one process, unset them: unset {ranks}" if ranks else "One node: trainer.num_nodes=1"
            raise UserError(
                f"{name} is {os.environ.get(name, 'not set')}, but {why}. Set MASTER_ADDR and MASTER_PORT of the first "
                f"node, and NODE_RANK, on each node; or use torchrun. {end}"
            ) from None
    # torch.distributed will use the same port (multi_tenant), so the settings must match: Windows has no libuv.
    libuv = os.environ.get("USE_LIBUV", "0" if sys.platform == "win32" else "1") == "1"
    return TCPStore(
        address, port, None, _has_store(), RANK_ZERO_TIMEOUT, wait_for_workers=False, multi_tenant=True, use_libuv=libuv
    )


def _has_store() -> bool:
    """Return whether this process owns the store."""
    return is_rank_zero() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _key(name: str) -> str:
    """Return a key that is unique to this start, because torchrun keeps its store when it restarts the processes."""
    return f"{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


def _name() -> str:
    names = ("RANK", "SLURM_PROCID")
    node = f"{os.environ.get('NODE_RANK', 0)}.{os.environ.get('LOCAL_RANK', 0)}"
    return next((os.environ[name] for name in names if name in os.environ), node)


def _set_ranks() -> list[str]:
    return [name for name in RANKS if name in os.environ]


def _as_assignments(names: Sequence[str]) -> str:
    return " ".join(f"{name}={os.environ.get(name)}" for name in names)


def _is_first_failure() -> bool:
    """Return whether this process is the first of the run to fail; processes that wait for it fail later."""
    try:
        return _stores[0].add(_key("failed"), 1) == 1
    except RuntimeError:  # rank 0, which owns the store, has exited and reported why
        return False


def _is_lost_connection(error: Exception) -> bool:
    """Return whether an error means that another process has exited."""
    return any(text in str(error) for text in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))


def _end(trainer: "Trainer") -> None:
    """Stop the other processes, so that the next run of a multirun can start."""
    from torch import distributed

    has_failed = sys.exc_info()[0] is not None
    processes = getattr(trainer.strategy.launcher, "procs", [])
    for process in processes if has_failed else []:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=5 if has_failed else 60)
        except subprocess.TimeoutExpired:
            process.kill()  # it waits for this process, ignores signals, and writes no files that could be lost
            process.wait()
    if distributed.is_initialized():
        distributed.destroy_process_group()
