"""Search the configuration with Optuna: `python sweep.py SPACE [--trials N] [--study NAME] [key=value …]`.

outputs/sweeps/STUDY/
├── study.json        what is searched, and by which metric
├── study.log         Optuna's journal: every trial, its parameters, the metric after each epoch
├── 0/, 1/, …         a run folder for each trial
├── history.png       the metric of each trial, and the best one so far
└── importance.png    how much of the difference is due to each key

A SPACE is a file in configs/sweep/, or any such file. Trials are compared by what best.ckpt is chosen by, which is a
validation metric: the test set has no part in the choice.
"""

import argparse
import gc
import json
import logging
import math
import os
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

sys.path.insert(0, __file__.removesuffix("sweep.py"))  # which PYTHONSAFEPATH and python -P leave out
import processes
import runs
import train
from compat import VERSION_BASE
from errors import Mistake, explained, explanation, nearest, printable
from trust import refuse_links

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from lightning import Callback, LightningModule, Trainer
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial
    from rich.table import Table

log = logging.getLogger(__name__)

SPACES = Path(runs.CONFIGS, "sweep")
# Of study.json. A study with a higher one is from a newer version of this file.
FORMAT = 1
# What a trial may not choose: it would not be comparable with the others, or not be in its folder.
FIXED = ("callbacks.best_checkpoint", "ckpt_path", "run_dir", "hydra")
# What Hydra would not take for text.
WORDS = ("null", "true", "false", "nan", "inf")


@explained
@processes.led_by_the_first
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python sweep.py SPACE [--trials N] [--study NAME] [key=value …]",
        description="Search the configuration. The same command goes on with a study that was stopped.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="SPACE key=value", help="a file in configs/sweep/, or a path; what all trials have"
    )
    parser.add_argument("--trials", type=int, default=20, help="of the study in total; default: 20")
    parser.add_argument("--study", help="its folder is outputs/sweeps/STUDY; default: the name of the space")
    arguments = parser.parse_intermixed_args()
    if arguments.trials < 1:
        raise Mistake(f"--trials is {arguments.trials}: it must be at least 1.")

    path = find_space(arguments.words)
    name = arguments.study or path.stem
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise Mistake(f"{name} cannot be the name of a study: use letters, digits, _, - and dots, as in --study first")
    space, overrides = read_space(path, arguments.words[1:])
    folder = Path("outputs/sweeps", name)
    # job_name: a trial is a run of train.py.
    with hydra.initialize_config_dir(runs.CONFIGS, job_name="train", **VERSION_BASE):
        config = compose_all(path, space, overrides)
        metric = config.callbacks.best_checkpoint.monitor
        study = open_study(folder, space, overrides, config)
        if len(study.trials) >= arguments.trials and all(trial.state.is_finished() for trial in study.trials):
            print(f"{folder} has {len(study.trials)} trials; --trials is how many it shall have in total")
        try:
            search(study, folder, space, overrides, config.seed, arguments.trials, metric)
        except SystemExit:
            print("stopped; the same command goes on with the study", file=sys.stderr)
            raise
    report(study, folder, space, overrides, metric)


# What is searched


def find_space(words: Sequence[str]) -> Path:
    """The file that the first of ``words`` names.

    Raises:
        Mistake: if there is none.
    """
    names = sorted(path.stem for path in SPACES.glob("*.yaml"))
    if not words or "=" in words[0]:
        raise Mistake(f"Say which space to search: python sweep.py SPACE\nChoices: {', '.join(names)}, or a file")
    for path in (SPACES / f"{words[0]}.yaml", Path(words[0])):
        if path.is_file():
            return runs.shown(path)
    raise Mistake(f"{words[0]}: there is no such file, and no such space in configs/sweep." + nearest(words[0], names))


def read_space(path: Path, words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What differs between the trials, and the overrides that all of them have.

    Args:
        path: a YAML file with ``space`` and, if there are any, ``overrides``.
        words: more overrides, from the command line. They win over those of the file.

    Returns:
        By key, a list of choices or a dict with ``low``, ``high`` and perhaps ``log`` and ``step``; and overrides.

    Raises:
        Mistake: if the file is not of that form, or a key is in the space and in the overrides.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))  # which reads 1e-4 as a number; PyYAML does not
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        raise Mistake(f"{path} cannot be read: {error}") from error
    keys = content if isinstance(content, dict) else {}
    for key in keys:
        if key not in ("overrides", "space"):
            raise Mistake(f"{path}: {key}: there is no such key." + nearest(str(key), ["overrides", "space"]))
    space, overrides = keys.get("space"), keys.get("overrides") or []
    if not isinstance(space, dict) or not space:
        raise Mistake(f"{path} has no space. It needs, for example:\nspace:\n  optimizer: [sgd, adam]")
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise Mistake(f"{path}: overrides is {overrides}: write a list, as in overrides: [experiment=mnist]")
    for key, values in space.items():
        if problem := problem_of(key, values) if isinstance(key, str) else "write a key, as in optimizer.lr":
            raise Mistake(f"{path}: {key}: {problem}")

    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise Mistake(f"{word}: write key=value after the space, as in trainer.max_epochs=5")
    parser = OverridesParser.create()
    said = {override.key_or_group for override in parser.parse_overrides(list(words))}
    kept = [line for line in overrides if parser.parse_override(line).key_or_group not in said]
    for override in parser.parse_overrides([*kept, *words]):
        if override.key_or_group in space:
            source = "on the command line" if override.key_or_group in said else "in its overrides"
            raise Mistake(
                f"{override.key_or_group} is in the space of {path} and {source} ({override.input_line}): "
                "take it out of one of them."
            )
        if override.key_or_group.split(".")[0] in ("hydra", "run_dir"):
            raise Mistake(f"{override.input_line}: a study has its own folders. --study NAME chooses where.")
    return space, [*kept, *words]


def problem_of(key: str, values: Any) -> str | None:
    """What is wrong with an entry of a space."""
    if key.startswith(FIXED):
        return "it must be the same in all trials"
    if isinstance(values, list):
        return None if values else "there are no choices; write a list, as in [sgd, adam]"
    if Path(runs.CONFIGS, key).is_dir():
        return f"it is {values}; a group takes a list of its choices"
    if not isinstance(values, dict):
        return f"it is {values}; write a list of choices, or {{low: 1, high: 10}}"
    for name, value in values.items():
        if name not in ("low", "high", "log", "step"):
            return f"{name}: there is no such key." + nearest(str(name), ["low", "high", "log", "step"])
        if name == "log" and not isinstance(value, bool):
            return f"log is {value}; it is true or false"
        if name != "log" and (type(value) not in (int, float) or not math.isfinite(value)):
            return f"{name} is {value}; it must be a number"
    if not {"low", "high"} <= values.keys():
        return "it needs low and high"
    low, high = values["low"], values["high"]
    if low > high:
        return f"low is {low}, above high, which is {high}"
    if values.get("log") and low <= 0:
        return f"low is {low}; with log: true it must be above 0"
    if values.get("log") and "step" in values:
        return "log: true and step do not go together; leave out one of them"
    if values.get("step", 1) <= 0:
        return f"step is {values['step']}; it must be above 0"
    if "step" in values and abs(math.remainder(high - low, values["step"])) > 1e-9 * values["step"]:
        return f"steps of {values['step']} from low, {low}, do not meet high, {high}"
    return None


def as_text(value: Any) -> str:
    """A value of a YAML file in Hydra's grammar for overrides."""
    if isinstance(value, list):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_text(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, str):
        is_word = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value.lower() not in WORDS
        return value if is_word else QuotedString(value, Quote.single).with_quotes()
    return json.dumps(value)  # null, true, false and numbers


def compose_all(path: Path, space: dict[str, Any], overrides: list[str]) -> DictConfig:
    """The config of one trial, once it is known that each choice of a group has each key of the space.

    Raises:
        Mistake: if it does not, or the trials would not have a metric in common.
    """
    first = {key: as_text(values[0] if isinstance(values, list) else values["low"]) for key, values in space.items()}
    groups = [key for key in space if Path(runs.CONFIGS, key).is_dir()]
    others = [first | {group: as_text(choice)} for group in groups for choice in space[group][1:]]
    config, metric = None, ""
    for values in (first, *others):
        choices = " ".join(f"{group}={values[group]}" for group in groups)
        where = f"\nThis is for {path}" + (f" with {choices}." if choices else ".")
        try:
            composed = hydra.compose("train", [*overrides, *(f"{key}={value}" for key, value in values.items())])
        except Exception as error:
            message = explanation(error)
            if message is None:
                raise
            raise Mistake(message + where) from error
        best = composed.callbacks.get("best_checkpoint")
        if not best or not best.monitor:
            raise Mistake("callbacks.best_checkpoint is left out: its monitor is what trials are compared by." + where)
        if best.mode not in ("min", "max"):
            raise Mistake(f"callbacks.best_checkpoint.mode is {best.mode}; it must be min or max." + where)
        if config is None:
            config, metric = composed, f"{best.mode} {best.monitor}"
        elif metric != f"{best.mode} {best.monitor}":
            raise Mistake(
                f"callbacks.best_checkpoint looks for {best.mode} {best.monitor}, and in other trials for {metric}: "
                f"they could not be compared." + where
            )
    assert config is not None
    return config


def open_study(folder: Path, space: dict[str, Any], overrides: list[str], config: DictConfig) -> "Study":
    """Makes the study of that folder, or goes on with it.

    Raises:
        Mistake: if optuna is not installed, or the folder holds another study, or one that cannot be read here.
    """
    try:
        import optuna
        from filelock import FileLock
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise Mistake(f'{error}. Install what sweep.py needs: pip install -e ".[sweep]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)

    best = config.callbacks.best_checkpoint
    search = {"metric": best.monitor, "mode": best.mode, "overrides": overrides, "space": space}
    path, journal = folder / "study.json", folder / "study.log"
    folder.mkdir(parents=True, exist_ok=True)
    refuse_links(folder)
    # The system takes such a lock from a process that dies, even by kill -9.
    with FileLock(folder / ".lock"):
        if path.exists():
            refuse_another(path, search, optuna.__version__)
        if not journal.exists() and any(folder.glob("[0-9]*")):
            raise Mistake(f"{folder} has trials and no study.log. Delete it, or choose another by --study NAME.")
        runs.write_json(path, {"format": FORMAT, "optuna": optuna.__version__, **search})
        lock = FileLock(folder / ".study.log.lock")
        try:
            with lock:
                drop_unfinished_line(journal)
            return optuna.create_study(
                # Optuna asks of a lock what those of filelock have.
                # pyrefly: ignore[bad-argument-type]
                storage=JournalStorage(JournalFileBackend(str(journal), lock_obj=lock)),
                study_name="sweep",
                direction="minimize" if best.mode == "min" else "maximize",
                pruner=optuna.pruners.MedianPruner(5, n_warmup_steps=max(config.trainer.max_epochs or 0, 0) // 5),
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise Mistake(
                f"{journal} cannot be read: it is damaged, or from a newer optuna than {optuna.__version__} "
                f"({type(error).__name__}: {error}).\nStart another study: --study NAME"
            ) from error


def refuse_another(path: Path, search: dict[str, Any], version: str) -> None:
    """Makes sure that the study that ``path``, a study.json, describes is this search, and can be read.

    Raises:
        Mistake: if it is not; it says what differs.
    """
    remedy = "\nStart another study: --study NAME"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        newer = saved["format"] > FORMAT
        newer_optuna = int(saved["optuna"].partition(".")[0]) > int(version.partition(".")[0])
        differences = list(differences_of({key: saved.get(key) for key in search}, search)) if not newer else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{path} cannot be read: {type(error).__name__}: {error}{remedy}") from error
    if newer:
        raise Mistake(f"{path} has format {saved['format']}, of a newer sweep.py; this one reads {FORMAT}.{remedy}")
    if newer_optuna:
        raise Mistake(f"{path} is from optuna {saved['optuna']}; {version} is installed. Update it.{remedy}")
    if differences:
        raise Mistake(f"{path.parent} is another search:\n" + "\n".join(differences) + remedy)


def differences_of(saved: Any, now: Any, key: str = "") -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict) and "low" not in saved.keys() | now.keys():
        for name in saved | now:
            yield from differences_of(saved.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif saved != now:
        yield f"  {key.removeprefix('space.')}: it has {json.dumps(saved)}, not {json.dumps(now)}"


def drop_unfinished_line(journal: Path) -> None:
    """Of a process that died, or met a full disk, while it wrote; Optuna would append to it."""
    content = journal.read_bytes() if journal.exists() else b""
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


# The trials


def search(
    study: "Study", folder: Path, space: dict[str, Any], overrides: list[str], seed: int, total: int, metric: str
) -> None:
    """Runs trials, in this process, until the study has ``total``, and shows how they do meanwhile."""
    import rich
    from rich.live import Live

    console = rich.console.Console()
    # The table is the only thing on the screen: no bar of a run within it.
    rich.reconfigure(force_terminal=False)
    live = Live(
        get_renderable=lambda: table(study, space, metric, rows=console.height - 6),
        console=console,
        refresh_per_second=1,
        transient=True,
    )
    try:
        with live if console.is_terminal else nullcontext():
            while claimed := claim(study, folder, space, seed, total):
                trial, lock, goes_on = claimed
                try:
                    run(study, trial, folder / str(trial.number), overrides, metric, goes_on)
                finally:
                    lock.release()
                if not console.is_terminal:
                    print(line(study, study.trials[trial.number], metric), flush=True)
    finally:
        rich.reconfigure()


def claim(
    study: "Study", folder: Path, space: dict[str, Any], seed: int, total: int
) -> "tuple[Trial, BaseFileLock, bool] | None":
    """The next trial for this process: one whose process died, otherwise a new one, unless there are ``total``.

    Returns:
        The trial, with all its parameters; the lock that says that this process runs it; whether it was begun before.
    """
    import numpy
    from filelock import FileLock, Timeout
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    def lock_of(number: int) -> "BaseFileLock":
        (folder / str(number)).mkdir(exist_ok=True)
        lock = runs.lock_of((folder / str(number)).resolve())
        lock.acquire(timeout=0)
        return lock

    with FileLock(folder / ".lock"):
        trials = study.get_trials(deepcopy=False)
        found = None
        for frozen in trials:
            if frozen.state == TrialState.RUNNING:
                with suppress(Timeout):
                    lock = lock_of(frozen.number)
                    if study.trials[frozen.number].state == TrialState.RUNNING:
                        found = Trial(study, frozen._trial_id), lock, True  # as Study.ask does it
                        break
                    lock.release()  # its process has just finished it
        if not found:
            if sum(frozen.state != TrialState.WAITING for frozen in trials) >= total:
                return None
            trial = study.ask()
            found = trial, lock_of(trial.number), False
        # Anew for each trial: then neither a stop nor what was drawn before changes what the sampler proposes.
        state = numpy.random.SeedSequence([seed, found[0].number]).generate_state(1)
        study.sampler = TPESampler(seed=int(state[0]), constant_liar=True)
        suggest(found[0], space)
        return found


def suggest(trial: "Trial", space: dict[str, Any]) -> None:
    """Chooses a value for each key, except those that have one from before the trial was stopped."""
    for key, values in space.items():
        if isinstance(values, list):
            trial.suggest_categorical(key, [as_text(value) for value in values])
            continue
        low, high, step, is_log = values["low"], values["high"], values.get("step"), values.get("log", False)
        if all(isinstance(number, int) for number in (low, high, step or 1)):
            trial.suggest_int(key, low, high, step=step or 1, log=is_log)
        else:
            trial.suggest_float(key, low, high, step=step, log=is_log)


def run(study: "Study", trial: "Trial", folder: Path, overrides: list[str], metric: str, goes_on: bool) -> None:
    """Trains one trial into ``folder``, as train.py would, and tells the study how it ended."""
    import torch
    from optuna import TrialPruned
    from optuna.trial import TrialState

    state = TrialState.COMPLETE

    def fail(error: Exception, in_log: bool) -> None:
        nonlocal state
        state, message = TrialState.FAIL, explanation(error)
        reason = message or f"{type(error).__name__}: {error}"
        runs.write_text(folder / "error.txt", reason + "\n")
        trial.set_user_attr("reason", reason)
        if in_log:
            log.error(reason, exc_info=None if message else error)

    def task(config: DictConfig) -> None:
        nonlocal state
        # To train.log alone: the console has the table.
        logging.root.handlers = [entry for entry in logging.root.handlers if isinstance(entry, logging.FileHandler)]
        logging.captureWarnings(True)
        if goes_on and runs.has_checkpoint(folder):
            config.ckpt_path = "last"
        try:
            with runs.opened(config, is_kept=True):
                train.train(config, watch(study, trial, metric))
            if not study.trials[trial.number].intermediate_values:
                raise Mistake(f"{metric} was never measured: there was no validation.")
        except TrialPruned as pruned:
            state = TrialState.PRUNED
            log.info(str(pruned))
        except Exception as error:
            fail(error, in_log=True)

    job = GlobalHydra.instance().hydra
    assert job is not None
    try:
        job.run("train", task, [*overrides, *assignments(trial.params), f"hydra.run.dir={folder}"])
    except Exception as error:  # a combination of choices that cannot be composed
        fail(error, in_log=False)  # there is no train.log yet
    finally:
        logging.captureWarnings(False)
    value = best_value(study, study.trials[trial.number]) if state == TrialState.COMPLETE else None
    study.tell(trial, value, state)
    # The next one may need all the memory, also after one that ran out of it.
    gc.collect()
    torch.cuda.empty_cache()


def watch(study: "Study", trial: "Trial", metric: str) -> "Callback":
    """Tells the study the metric after each validation, and ends the run that is worse than half of those before."""
    import optuna
    from lightning.pytorch.callbacks import LambdaCallback

    reported = set(study.trials[trial.number].intermediate_values)  # of a trial that was stopped and goes on

    def tell(trainer: "Trainer", model: "LightningModule") -> None:
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        if metric not in trainer.callback_metrics:
            raise Mistake(f"{metric} is not measured." + nearest(metric, trainer.callback_metrics))
        value = float(trainer.callback_metrics[metric])
        if not math.isfinite(value):
            raise Mistake(f"{metric} is {value} after epoch {epoch}.")
        if epoch not in reported:
            trial.report(value, epoch)
            reported.add(epoch)

    def prune(trainer: "Trainer", model: "LightningModule") -> None:
        # At the start of the next epoch, when the checkpoints of this one are there.
        if trainer.world_size == 1 and trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {trainer.current_epoch}: {metric} is worse than the median")

    return LambdaCallback(on_validation_end=tell, on_train_epoch_start=prune)


# What is shown


def assignments(parameters: dict[str, Any]) -> list[str]:
    """The overrides of a trial; a float with all its digits."""
    return [f"{key}={value}" for key, value in parameters.items()]


def best_value(study: "Study", trial: "FrozenTrial") -> float | None:
    """Of all epochs, so far; it is that of best.ckpt."""
    values = trial.intermediate_values.values()
    return (min if study.direction.name == "MINIMIZE" else max)(values, default=None)


def ranked(study: "Study") -> "list[FrozenTrial]":
    """Complete ones before pruned, running and failed ones; each best first."""
    order = ["COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL"]
    sign = 1 if study.direction.name == "MINIMIZE" else -1

    def rank(trial: "FrozenTrial") -> tuple[int, float]:
        value = best_value(study, trial)
        return order.index(trial.state.name), math.inf if value is None else sign * value

    return sorted(study.get_trials(deepcopy=False), key=rank)


def table(study: "Study", space: dict[str, Any], metric: str, rows: int | None = None) -> "Table":
    """All trials, or as many as fit into ``rows``: those that run, and the best ones."""
    import rich.box
    import rich.markup
    import rich.table

    trials = ranked(study)
    shown = trials
    if rows and len(trials) > rows:
        running = [trial for trial in trials if trial.state.name == "RUNNING"]
        others = [trial for trial in trials if trial.state.name != "RUNNING"]
        shown = [*running, *others][: max(rows, 1)]
    result = rich.table.Table("trial", "state", *short_names(space), metric, "epoch", box=rich.box.SIMPLE)
    if len(shown) < len(trials):
        result.caption = f"and {len(trials) - len(shown)} more"
    for trial in shown:
        # Rich would take the brackets of a list for a style.
        result.add_row(*(rich.markup.escape(printable(cell)) for cell in cells_of(study, trial, space)))
    return result


def short_names(keys: Iterable[str]) -> list[str]:
    """Without the groups before the last dot, where that is clear."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return [key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in keys]


def state_of(trial: "FrozenTrial") -> str:
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def cells_of(study: "Study", trial: "FrozenTrial", space: dict[str, Any]) -> list[str]:
    values = [trial.params.get(key, "") for key in space]
    texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    best = best_value(study, trial)
    return [
        str(trial.number),
        state_of(trial),
        *texts,
        "" if best is None else f"{best:.5g}",
        str(trial.last_step or ""),
    ]


def line(study: "Study", trial: "FrozenTrial", metric: str) -> str:
    """What a finished trial says where there is no table."""
    best = best_value(study, trial)
    reason = trial.user_attrs.get("reason", "").partition("\n")[0]
    parts = [f"trial {trial.number}", state_of(trial), "" if best is None else f"{metric} {best:.5g}"]
    parts += [f"epoch {trial.last_step}" if trial.last_step else "", *assignments(trial.params), reason]
    return printable("  ".join(part for part in parts if part))


def report(study: "Study", folder: Path, space: dict[str, Any], overrides: list[str], metric: str) -> None:
    """Ends with the trials, best first, two pictures, and the command of the best one.

    Raises:
        Mistake: if all trials failed.
    """
    import rich
    from filelock import FileLock

    trials = ranked(study)
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 160  # of a file or a pipe, whose width is not known
    console.print(table(study, space, metric))
    count = Counter(trial.state.name for trial in trials)
    reasons = Counter(trial.user_attrs.get("reason", "") for trial in trials if trial.state.name == "FAIL")
    failed = f"{count['FAIL']} of {len(trials)} trials failed; their folders have error.txt and train.log.\n"
    failed += "\n".join(f"  {number} x  {reason}" for reason, number in reasons.most_common(3))
    if count["FAIL"] == len(trials):
        raise Mistake(failed + f"\nDelete {folder} to start once more.")
    if reasons:
        print(printable(failed))
    if count["RUNNING"]:
        print(f"still run by other processes: {count['RUNNING']}")
    if not count["COMPLETE"]:
        return
    with FileLock(folder / ".lock"):  # another process may be ready at the same time
        draw(study, folder, metric)
    print(f"study folder  {folder}")
    print(f"best trial    {folder / str(trials[0].number)}")
    command = shlex.join(["python", "train.py", *overrides, *assignments(trials[0].params)])
    print(f"its command   {printable(command)}")


def draw(study: "Study", folder: Path, metric: str) -> None:
    """Writes history.png and importance.png."""
    import matplotlib
    from optuna.importance import PedAnovaImportanceEvaluator  # of Optuna's, the one that needs no scikit-learn

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    def importances() -> Any:
        return plots.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target_name=metric)

    def history() -> Any:
        return plots.plot_optimization_history(study, target_name=metric)

    for name, plot in (("history.png", history), ("importance.png", importances)):
        unfinished = folder / f".{name}.unfinished"
        with warnings.catch_warnings(), pyplot.style.context("default"):
            warnings.simplefilter("ignore")
            try:
                axes = plot()
            except (ValueError, RuntimeError) as error:
                print(f"There is no {name}: {error}")
                continue
            axes.figure.set_size_inches(8, 4.5)
            axes.figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight")
            pyplot.close("all")
        os.replace(unfinished, folder / name)


if __name__ == "__main__":
    main()
