"""Compare finished runs: `python compare.py [FOLDER|RUN …] [--sort METRIC] [--where KEY=VALUE] [--plot FILE]`."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, __file__.removesuffix("compare.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter.comparison import curves, settings, table
from torch_starter.comparison.runs import find_finished
from torch_starter.explanations import explain_errors
from torch_starter.mistakes import UserError, printable


@explain_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python compare.py [FOLDER|RUN …] [--sort METRIC] [--reverse] [--best N] [--where KEY=VALUE] "
        "[--output FILE] [--plot FILE]",
        description="Compare finished runs: print the settings that differ and the metrics, as mean and standard "
        "deviation over seeds and folds, ordered by the metric that selects best.ckpt.",
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER|RUN", help="folders to search for runs; default: outputs")
    parser.add_argument(
        "--sort",
        metavar="METRIC",
        help="a metric, epochs or seconds; descending if best.ckpt maximizes it (test/acc: as val/acc), else ascending",
    )
    parser.add_argument("--reverse", action="store_true", help="reverse the order")
    parser.add_argument("--best", type=int, metavar="N", help="number of settings to show; default: 30")
    where = parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE")
    where.help = "only runs with this value, such as optimizer=adam; repeatable"
    parser.add_argument("--output", type=Path, metavar="FILE", help=".csv or .json: all of each run; .md: the table")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".png: curves of the best settings")
    arguments = parser.parse_intermixed_args()
    if arguments.best is not None and arguments.best < 1:
        raise UserError(f"--best is {arguments.best}; it must be at least 1.")
    table.refuse_output(arguments.output, (".csv", ".json", ".md"), "--output")
    table.refuse_output(arguments.plot, (".png",), "--plot")

    found = find_finished(arguments.folders)
    runs = settings.select(found.runs, arguments.where)
    settings.check_sort(runs, arguments.sort)
    keys = settings.differing_keys(runs)
    groups = settings.best_first(settings.group_by(runs, keys), arguments.sort, arguments.reverse)
    best = groups[: arguments.best or 30]
    folder = settings.folder_of_all(run for group in best for run in group)
    tables = table.tables_of(best, keys, folder, arguments.sort, arguments.reverse)
    for columns in tables:
        table.print_table(columns)
    print(printable(table.remarks(found, groups, len(best), folder)))
    if arguments.output:
        table.write_table(arguments.output, [run for group in groups[: arguments.best] for run in group], tables)
    if arguments.plot:
        curves.plot(arguments.plot, best, keys, curves.plotted_metric(runs, arguments.sort))


if __name__ == "__main__":
    main()
