"""Search the configuration with Optuna: `python sweep.py SPACE [--trials N] [--study NAME] [key=value …]`.

SPACE is a file in configs/sweep/ or the path of such a file. Trials are compared by the validation metric that selects
best.ckpt; the test set is not used.
"""

import argparse
import sys

sys.path.insert(0, __file__.removesuffix("sweep.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter import processes
from torch_starter.explanations import explain_errors
from torch_starter.job import job_context
from torch_starter.mistakes import UserError
from torch_starter.search.report import report
from torch_starter.search.space import compose_all, find_space, read_space
from torch_starter.search.study import open_study, study_folder
from torch_starter.search.trial import search
from train import train


@explain_errors
@processes.run_on_rank_zero(train)
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python sweep.py SPACE [--trials N] [--study NAME] [key=value …]",
        description="Search the configuration. Run the same command again to continue an interrupted study.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="SPACE key=value", help="a file in configs/sweep/, or a path; common overrides"
    )
    parser.add_argument("--trials", type=int, default=20, help="total number of trials in the study; default: 20")
    parser.add_argument("--study", help="name of the study, in outputs/sweeps/STUDY; default: the name of the space")
    arguments = parser.parse_intermixed_args()
    if arguments.trials < 1:
        raise UserError(f"--trials is {arguments.trials}; it must be at least 1.")

    path = find_space(arguments.words)
    folder = study_folder(arguments.study or path.stem)
    space, overrides = read_space(path, arguments.words[1:])
    with job_context():
        config = compose_all(path, space, overrides)
        metric = config.callbacks.best_checkpoint.monitor
        study = open_study(folder, space, overrides, config)
        if len(study.trials) >= arguments.trials and all(trial.state.is_finished() for trial in study.trials):
            print(f"{folder} already has {len(study.trials)} trials; --trials is the total number of trials")
        try:
            search(train, study, folder, space, overrides, config.seed, arguments.trials, metric)
        except SystemExit:
            print("stopped; run the same command again to continue the study", file=sys.stderr)
            raise
    report(study, folder, space, overrides, metric)


if __name__ == "__main__":
    main()
