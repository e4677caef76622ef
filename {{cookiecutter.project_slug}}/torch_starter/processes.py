"""One run in several processes: the first composes the config and has the run folder, the others follow it.

Lightning, torchrun or SLURM start the same command once for each process. If each of them composed the config, each
would have a run folder, or a multirun, of its own.
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

# How long a process waits for the first one, which may have to download the data.
RANK_ZERO_TIMEOUT = timedelta(minutes=30)
# How long the first one, if there is nothing to do, waits for the others to hear of it, who may still import Lightning.
SHUTDOWN_TIMEOUT = timedelta(minutes=1)

# Environment variables that tell a process its rank.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")

# Of the run, or of the last one: what all its processes can write to and read from; empty as long as none was begun.
_stores: list[Any] = []


def is_rank_zero() -> bool:
    """Whether this process is rank 0, by what torchrun, SLURM or Lightning have put into the environment."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def _started() -> int | None:
    """How many processes torchrun or SLURM have started; None if Lightning shall start them."""
    if "RANK" in os.environ:
        return _number("WORLD_SIZE")
    if _is_srun():
        return _number("SLURM_NTASKS")
    return None


def _number(name: str) -> int:
    """A number that torchrun or SLURM puts into the environment.

    Raises:
        Mistake: if it is not there, or none.
    """
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        raise UserError(
            f"{name} is {os.environ.get(name, 'not set')}, but {_as_assignments(_set_ranks())}. torchrun and srun set "
            f"both. To train with one process: unset {' '.join(_set_ranks())}"
        ) from None


def _is_srun() -> bool:
    """Whether srun has started this process, and not somebody who types in a shell of the job, or in its Jupyter."""
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return False
    # A shell has the number of tasks of the job. Lightning wants them per node where srun starts several.
    count = os.environ.setdefault("SLURM_NTASKS", "1")
    return count == "1" or bool({"SLURM_NTASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"} & set(os.environ))


def hide_srun() -> None:
    """Keeps Lightning from taking a shell of a SLURM job for one of its tasks, by the name that it knows for that."""
    if "SLURM_NTASKS" in os.environ:
        os.environ["SLURM_JOB_NAME"] = "interactive"


def ignore_ranks() -> None:
    """Runs this command as a single process, ignoring ranks and world sizes that the shell still has."""
    for name in (*RANKS, "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    hide_srun()


def run_on_rank_zero(train: Callable[[DictConfig], None]) -> Callable[..., Any]:
    """Runs a command's ``main`` in rank 0 alone; the other ranks wait for the config of its run, and call ``train``."""
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
                f"{_started()} processes were started for one run, and a multirun is many. Let Lightning start the "
                "processes of each: python train.py -m … trainer=ddp trainer.devices=…"
            )
        try:
            return main(*args)
        finally:
            if not _stores:  # help, a mistake, or a run that is finished
                _send("")
                _wait_for_other_ranks()

    return main_of_rank_zero


def _follow(train: Callable[[DictConfig], None]) -> None:
    import lightning.pytorch  # noqa: F401, for it sets the levels of its logs

    logging.basicConfig(format=f"[process {_name()}] %(message)s")
    for name in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)  # the first process says it
    _stores[:] = [_store()]
    sent = _stores[0].get(_key("config")).decode()
    _stores[0].set(_key(f"heard by {_name()}"), "")
    if sent:
        train(OmegaConf.create(sent))


@contextlib.contextmanager
def run_on_all_ranks(config: DictConfig, trainer: "Trainer", checkpoint: str | None) -> Iterator[None]:
    """What is done within is done by all processes of the run; afterwards this one is alone again.

    Args:
        config: of the run, which the first process sends to the others.
        trainer: with which it is done.
        checkpoint: what the run starts from.

    Raises:
        Mistake: if the processes are not as the config has it, or one of the others has ended before its time.
    """
    count = trainer.num_devices * trainer.num_nodes
    _check(config, trainer, count)
    if count == 1:
        yield
        return
    before = dict(os.environ)
    os.environ["LOCAL_WORLD_SIZE"] = str(trainer.num_devices)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no stack of C++ from a process that finds itself alone
    if not IS_FULL:
        os.environ.pop(FULL_ERROR, None)  # it is for Hydra in this process, not for those that are started here
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
            # As soon as another fails, this one is stopped, by the first or by torchrun; it may have to say why before.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _is_first_failure():
            sys.exit(1)  # the process that failed first says why
        if _is_lost_connection(error):
            raise UserError("Another process of this run has ended.") from error
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
            f"agree; or, if these are left over, and for a shell within a job: {alone}"
        )
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.num_devices > (os.cpu_count() or 1):
        raise UserError(f"trainer.devices is {trainer.num_devices}; this machine has {os.cpu_count()} CPU cores.")
    batch_size = OmegaConf.select(config, "data.batch_size")  # a data module of your own may have none
    if isinstance(batch_size, int) and batch_size % count:
        below = batch_size // count * count
        nearest = f"{below}, {below + count}" if below else str(count)
        raise UserError(
            f"data.batch_size is {batch_size}, which {shape} cannot share evenly among {count} processes. "
            f"Nearest: {nearest}."
        )


def _send(config: str) -> None:
    _stores[:] = [_store()]
    _stores[0].set(_key("config"), config)


def _wait_for_other_ranks() -> None:
    """Until they know that there is nothing to do, if the store ends with this process."""
    if _has_store():
        keys = [_key(f"heard by {rank}") for rank in range(1, _started() or 1)]
        with contextlib.suppress(RuntimeError):  # one of them has ended
            _stores[0].wait(keys, SHUTDOWN_TIMEOUT)


def _store() -> Any:
    """Of torch.distributed, where the processes of a run meet: the first one has it, or torchrun."""
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
                f"{name} is {os.environ.get(name, 'not set')}, but {why}. Each node needs MASTER_ADDR and MASTER_PORT, "
                f"those of the first node, and its NODE_RANK; or start it by torchrun. {end}"
            ) from None
    # As torch.distributed will ask for it at the same port (multi_tenant): on Windows it is built without libuv.
    libuv = os.environ.get("USE_LIBUV", "0" if sys.platform == "win32" else "1") == "1"
    return TCPStore(
        address, port, None, _has_store(), RANK_ZERO_TIMEOUT, wait_for_workers=False, multi_tenant=True, use_libuv=libuv
    )


def _has_store() -> bool:
    """Whether the store is in this process."""
    return is_rank_zero() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _key(name: str) -> str:
    """Of this start: torchrun keeps its store when it starts the processes anew."""
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
    """Whether no other process of the run has failed before, as all do that wait for one that has."""
    try:
        return _stores[0].add(_key("failed"), 1) == 1
    except RuntimeError:  # the first process, with the store, is gone, and has said why
        return False


def _is_lost_connection(error: Exception) -> bool:
    """Whether a process noticed that another is no longer there."""
    return any(text in str(error) for text in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))


def _end(trainer: "Trainer") -> None:
    """So that the next run, of a multirun, can begin as this one did."""
    from torch import distributed

    has_failed = sys.exc_info()[0] is not None
    processes = getattr(trainer.strategy.launcher, "procs", [])
    for process in processes if has_failed else []:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=5 if has_failed else 60)
        except subprocess.TimeoutExpired:
            process.kill()  # it waits for this one, deaf to signals, and has nothing to lose: it writes no files
            process.wait()
    if distributed.is_initialized():
        distributed.destroy_process_group()
