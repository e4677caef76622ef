"""Go on with a run in its own folder: `python resume.py [RUN] [key=value …]`."""

import argparse
import sys

sys.path.insert(0, __file__.removesuffix("resume.py"))  # which PYTHONSAFEPATH and python -P leave out
import processes
import runs
from compat import instantiate_only_targets_of
from errors import explained
from train import train


@explained
@processes.led_by_the_first
def main() -> None:
    parser = argparse.ArgumentParser(
        usage="python resume.py [RUN] [key=value …]",
        description="Go on with a run, in its own folder, from checkpoints/last.ckpt.",
    )
    parser.add_argument("words", nargs="*", metavar="RUN key=value", help="a run folder (default: latest); changes")
    arguments = parser.parse_args()

    run, overrides = runs.find_with_overrides(arguments.words, runs.can_go_on)
    config = runs.read_config(run, overrides)
    config.ckpt_path = "last"
    with instantiate_only_targets_of(config), runs.opened(config, overrides):
        runs.log_to(run)
        train(config)


if __name__ == "__main__":
    main()
