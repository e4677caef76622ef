"""Report a search: a table of its trials, figures, and the command of the best trial."""

import math
import shlex
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..comparison.runs import from_results
from ..comparison.settings import shown_metrics
from ..comparison.table import Column, metric_columns, print_table, setting_columns, short_names
from ..files import read_json, replace_atomically
from ..mistakes import UserError, printable
from ..results import final_metrics

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from rich.table import Table


def assignments(parameters: dict[str, Any]) -> list[str]:
    """Return the overrides of a trial; floats keep all their digits."""
    return [f"{key}={value}" for key, value in parameters.items()]


def best_value(study: "Study", trial: "FrozenTrial") -> float | None:
    """Return the best value of a trial over all epochs so far, which is the value of best.ckpt."""
    values = trial.intermediate_values.values()
    return (min if study.direction.name == "MINIMIZE" else max)(values, default=None)


def ranked(study: "Study") -> "list[FrozenTrial]":
    """Return the trials: complete, then pruned, running and failed ones, each best first."""
    order = ["COMPLETE", "PRUNED", "RUNNING", "WAITING", "FAIL"]
    sign = 1 if study.direction.name == "MINIMIZE" else -1

    def rank(trial: "FrozenTrial") -> tuple[int, float]:
        value = best_value(study, trial)
        return order.index(trial.state.name), math.inf if value is None else sign * value

    return sorted(study.get_trials(deepcopy=False), key=rank)


def table(study: "Study", space: dict[str, Any], metric: str, rows: int | None = None) -> "Table":
    """Return a table of all trials, or of as many as fit into ``rows``: the running and the best ones."""
    import rich.box
    import rich.markup
    import rich.table

    trials = ranked(study)
    shown = trials
    if rows and len(trials) > rows:
        running = [trial for trial in trials if trial.state.name == "RUNNING"]
        others = [trial for trial in trials if trial.state.name != "RUNNING"]
        shown = [*running, *others][: max(rows, 1)]
    result = rich.table.Table("trial", "state", *short_names(list(space)), metric, "epoch", box=rich.box.SIMPLE)
    if len(shown) < len(trials):
        result.caption = f"and {len(trials) - len(shown)} more"
    for trial in shown:
        # Rich would read the brackets of a list as a style.
        result.add_row(*(rich.markup.escape(printable(cell)) for cell in cells_of(study, trial, space)))
    return result


def state_of(trial: "FrozenTrial") -> str:
    """Return the state of a trial in lower case, with ``failed`` for ``FAIL``."""
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def cells_of(study: "Study", trial: "FrozenTrial", space: dict[str, Any]) -> list[str]:
    """Return the cells of a trial: its number, state, parameters, best value and last epoch."""
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
    """Return the line that reports a finished trial where there is no table."""
    best = best_value(study, trial)
    reason = trial.user_attrs.get("reason", "").partition("\n")[0]
    parts = [f"trial {trial.number}", state_of(trial), "" if best is None else f"{metric} {best:.5g}"]
    parts += [f"epoch {trial.last_step}" if trial.last_step else "", *assignments(trial.params), reason]
    return printable("  ".join(part for part in parts if part))


def report(study: "Study", folder: Path, space: dict[str, Any], overrides: list[str], metric: str) -> None:
    """Print the trials, best first, and the command of the best one, and draw two figures.

    Raises:
        UserError: If all trials failed.
    """
    from filelock import FileLock

    trials = ranked(study)
    print_table(columns_of(study, folder, space, metric))
    count = Counter(trial.state.name for trial in trials)
    reasons = Counter(trial.user_attrs.get("reason", "") for trial in trials if trial.state.name == "FAIL")
    failed = f"{count['FAIL']} of {len(trials)} trials failed; see error.txt and train.log in their folders.\n"
    failed += "\n".join(f"  {number} x  {reason}" for reason, number in reasons.most_common(3))
    if count["FAIL"] == len(trials):
        raise UserError(failed + f"\nDelete {folder} to start again.")
    if reasons:
        print(printable(failed))
    if count["RUNNING"]:
        print(f"still running in other processes: {count['RUNNING']}")
    if not count["COMPLETE"]:
        return
    with FileLock(folder / ".lock"):  # another process may finish at the same time
        draw(study, folder, metric)
    print(f"study folder  {folder}")
    print(f"best trial    {folder / str(trials[0].number)}")
    command = shlex.join(["python", "train.py", *overrides, *assignments(trials[0].params)])
    print(f"its command   {printable(command)}")


def columns_of(study: "Study", folder: Path, space: dict[str, Any], metric: str) -> list[Column]:
    """Return the columns of the trials, best first: state, parameters, the compared metric, test metrics, epochs."""
    trials, runs = ranked(study), []
    for trial in trials:
        path = folder / str(trial.number) / "results.json"
        results = (read_json(path) if state_of(trial) == "complete" else None) or {}
        value = best_value(study, trial)
        metrics = final_metrics(results) | ({} if value is None else {metric: value})
        found = {"metrics": metrics, "overrides": assignments(trial.params), "epochs": trial.last_step}
        runs.append([from_results(path.parent, found)])
    numbers = Column("trial", [str(trial.number) for trial in trials], "name")
    states = Column("state", [state_of(trial) for trial in trials], "name")
    names = [metric, *(name for name in shown_metrics(run for (run,) in runs) if name != metric)]
    epochs = Column("epoch", [str(trial.last_step or "") for trial in trials], "number")
    return [numbers, states, *setting_columns(runs, list(space)), *metric_columns(runs, names), epochs]


def draw(study: "Study", folder: Path, metric: str) -> None:
    """Draw history.png and importance.png."""
    import matplotlib
    from optuna.importance import PedAnovaImportanceEvaluator  # the only one without scikit-learn

    matplotlib.use("agg")
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    def importances() -> Any:
        return plots.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target_name=metric)

    def history() -> Any:
        return plots.plot_optimization_history(study, target_name=metric)

    for name, plot in (("history.png", history), ("importance.png", importances)):
        with warnings.catch_warnings(), pyplot.style.context("default"):
            warnings.simplefilter("ignore")
            try:
                axes = plot()
            except (ValueError, RuntimeError) as error:
                print(f"Optuna cannot draw {name}: {error}")
                continue
            axes.figure.set_size_inches(8, 4.5)
            with replace_atomically(folder / name) as unfinished:
                axes.figure.savefig(unfinished, format="png", dpi=150, bbox_inches="tight")
            pyplot.close("all")
