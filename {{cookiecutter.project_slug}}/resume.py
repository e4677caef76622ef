"""Continue an interrupted run in its own folder: `python resume.py [RUN] [key=value …]`."""

import argparse
import sys

sys.path.insert(0, __file__.removesuffix("resume.py"))  # even with PYTHONSAFEPATH or python -P
from torch_starter import processes, run_folder, run_lookup
from torch_starter.compat import instantiate_only_targets_of
from torch_starter.explanations import explain_errors
from torch_starter.saved_config import read_config
from train import train


@explain_errors
@processes.run_on_rank_zero(train)
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python resume.py [RUN] [key=value …]",
        description="Continue an interrupted run in its own folder, from checkpoints/last.ckpt.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); overrides")
    arguments = parser.parse_args()

    run, overrides = run_lookup.find_with_overrides(arguments.words, run_lookup.is_resumable)
    config = read_config(run, overrides)
    config.ckpt_path = "last"
    with instantiate_only_targets_of(config), run_folder.open_run_folder(config, overrides):
        run_folder.configure_logging(run)
        train(config)


if __name__ == "__main__":
    main()
