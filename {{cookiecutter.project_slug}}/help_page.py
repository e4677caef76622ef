"""What `python train.py --help` prints.

(Hydra has a page of that kind, but for it looks through all the configs of its own, which takes most of a second.)
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = """\
python train.py [group=choice …] [key=value …]

Fits a model and then tests its best checkpoint. With nothing behind it: a line through 100 points, in seconds.

Groups and their choices, each a file in configs/GROUP/:

{groups}

Eleven things that people change:

  seed=0                          weights, validation cut, order of the batches
  trainer.max_epochs=10           how long
  trainer.accelerator=cpu         auto, cpu, gpu or mps
  trainer.devices=2               processes, each with a GPU or, without, on the CPU
  trainer.precision=bf16-mixed    less memory, and on many GPUs more speed
  trainer.limit_train_batches=0.1 a tenth of each epoch
  trainer.fast_dev_run=true       one batch of everything: does it work?
  optimizer.lr=0.001              learning rate; with scheduler=one_cycle the highest one
  data.batch_size=512             samples per step, of all processes together
  data.root=FOLDER                where the data sets are, or are downloaded to
  hydra.run.dir=FOLDER            write the run there instead of outputs/NAME/DATE_TIME

Examples:

  python train.py experiment=mnist
  python train.py experiment=mnist optimizer=sgd optimizer.lr=0.1 trainer.max_epochs=5
  python train.py -m optimizer=sgd,adam,adamw      a run each, and a table at the end

Every key, with its value:        python train.py experiment=mnist --cfg job
Go on with a run, ask it, use it: python resume.py, evaluate.py, predict.py, export.py, each with --help
Search for good values:           python sweep.py SPACE, with --help
Hydra's own flags:                python train.py --hydra-help
"""


def has_help_page(main: Callable[..., Any]) -> Callable[..., Any]:
    """``main`` prints the page and does nothing else if it is asked for by ``--help`` or ``-h``."""

    @functools.wraps(main)
    def helpful_main(*args: Any) -> Any:
        if not {"--help", "-h"} & set(sys.argv[1:]):
            return main(*args)
        folders = sorted(path for path in (Path(__file__).parent / "configs").iterdir() if path.is_dir())
        groups = {path.name: ", ".join(sorted(choice.stem for choice in path.glob("*.yaml"))) for path in folders}
        print(PAGE.format(groups="\n".join(f"{name}: {choices}" for name, choices in groups.items())))

    return helpful_main
