"""Compare the speed of a generated project with references, measured alternately in one run.

    python benchmarks/speed.py --project build/my_project --data FOLDER

FOLDER contains MNIST/raw. Prints a Markdown table with the goal of each row. `make bench` leaves out the slow rows
`--rows table growth watched`; growth writes growth.png beside this file.
"""

import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench as benches
import folders
import growth
import loops
import numpy
from bench import AUGMENTED, QUICK, Bench, Clock, compare, quiet, row
from hydra.utils import instantiate
from omegaconf import OmegaConf

HERE = Path(__file__).parent.resolve()
TEMPLATE = HERE.parent


def start(bench: Bench) -> None:
    """Time commands from start to exit."""
    quick = {
        "`train.py --help`": (0, "train.py", "--help"),
        "`train.py --cfg job`": (0, "train.py", "--cfg", "job"),
        "`train.py optimizer=adamm`, an error": (1, "train.py", "optimizer=adamm"),
        "`train.py trainer.max_epoch=1`, an error": (1, "train.py", "trainer.max_epoch=1"),
        "`import hydra`": (0, "-c", "import hydra"),
    }
    slow = {
        "`train.py trainer.fast_dev_run=true`": (0, "train.py", "trainer.fast_dev_run=true"),
        "`import lightning.pytorch, torchvision`": (0, "-c", "import lightning.pytorch, torchvision"),
        "`import torch`": (0, "-c", "import torch"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*quick, *slow]}
    for commands, repeats in ((quick, 3 * bench.repeats), (slow, bench.repeats)):
        for repeat in range(repeats + 1):
            for name, (status, *command) in commands.items():
                if name.startswith("`train.py trainer.fast"):
                    command = [*command, f"hydra.run.dir={bench.new_run()}"]
                found = bench.process(*command, status=status)
                if repeat:  # the first fills the file cache
                    seconds[name].append(found)
    hydra = seconds["`import hydra`"]
    for name in list(quick)[:-1]:
        compare(
            f"{name}: seconds, against 1.5 times `import hydra` and 0.2 s",
            seconds[name],
            [1.5 * s + 0.2 for s in hydra],
            at_most=1,
        )
    fast, lightning, only_torch = (seconds[name] for name in slow)
    compare(
        "`train.py trainer.fast_dev_run=true`: seconds, against `import lightning.pytorch, torchvision`",
        fast,
        lightning,
        at_most=1.25,
    )
    compare("the same, against `import torch`", fast, only_torch)


def epochs(bench: Bench) -> None:
    """Time the second epoch of a run, because the first also draws the model's graph."""
    # A fifth of an epoch of the CNN is long enough to measure.
    for model, share, at_most, times_faster in (("cnn", 1 / 5, 1.08, 1.5), ("mlp", 1.0, 1.2, 5)):
        overrides = [*bench.mnist, f"model={model}"]
        config = loops.compose_config(bench.project, *overrides, "run_dir=nowhere")
        data = instantiate(config.data, _convert_="all")
        data.setup("fit")
        default = OmegaConf.merge(config, {"optimizer": {**config.optimizer, "fused": None}})
        found: dict[str, list[float]] = {name: [] for name in ("ours", "bare", "0", "2")}
        limits = ["trainer.max_epochs=2", f"trainer.limit_train_batches={share}", "trainer.limit_test_batches=1"]
        for _ in range(2 * bench.repeats):
            found["ours"].append(bench.train(*overrides, *limits).epochs[-1] / share)
            found["bare"].append(loops.bare_epochs(config, data, 2, share=share)[-1] / share)
            for workers in (0, 2):
                found[str(workers)].append(loops.conventional(default, bench.data, workers, share=1 / 10))
        what = f"an MNIST epoch, {model}, batch {config.data.batch_size}: seconds, against"
        compare(f"{what} the bare loop", found["ours"], found["bare"], at_most=at_most)
        for workers in (0, 2):
            name = f"{what} the conventional pipeline, {workers} workers: theirs by ours"
            compare(name, found["ours"], found[str(workers)], times_faster=times_faster)


def accuracy(bench: Bench) -> None:
    """Measure the time to 99 %, memory, and the accuracy of whole experiments with five seeds."""
    # The reference takes minutes, so it runs once.
    theirs = [bench.process(str(HERE / "loops.py"), "tutorial", str(bench.data))]
    ours = [bench.train_py(QUICK, *bench.mnist[1:], f"seed={seed}") for seed in range(bench.repeats)]
    lowest = min(results["metrics"]["test/acc"] for _, results in ours)
    is_reached = "" if lowest >= 0.99 else ", **which is not 99 %**"
    what = f"time to 99 %, whole process, `train.py {QUICK}` ({lowest:.2%} or more{is_reached})"
    seconds = [seconds for seconds, _ in ours]
    compare(f"{what}: seconds, against PyTorch's example: theirs by ours", seconds, theirs, times_faster=20)
    memory = bench.peak_memory("train.py", *bench.mnist, "trainer.max_epochs=1", f"hydra.run.dir={bench.new_run()}")
    bare = bench.peak_memory(str(HERE / "loops.py"), "bare", str(bench.project), str(bench.data))
    compare("peak memory of a process that trains the cnn: MB, against the bare loop's", [memory], [bare])

    # One run of each at a time, with one thread each.
    sides = {name: [name, *bench.mnist[1:]] for name in (bench.mnist[0], AUGMENTED)}
    jobs = [(name, *overrides, f"seed={seed}") for seed in range(5) for name, overrides in sides.items()]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda job: (job[0], bench.train_py(*job[1:])), jobs))
    del os.environ["OMP_NUM_THREADS"]
    final = {name: [found for side, found in runs if side == name] for name in sides}
    for (name, found), goal in zip(final.items(), (0.994, 0.996), strict=True):
        accuracies = [results["metrics"]["test/acc"] for _, results in found]
        mean, spread = statistics.mean(accuracies), f"{min(accuracies):.2%} to {max(accuracies):.2%}"
        what = f"`train.py {name}`, {found[0][1]['epochs']} epochs, seeds 0 to 4: mean test accuracy"
        row(what, f"{mean:.2%}", "", spread, f"at least {goal:.1%}: {'met' if mean >= goal else '**not met**'}")
    seconds = {name: [seconds for seconds, _ in found] for name, found in final.items()}
    what = f"`train.py {AUGMENTED}`: seconds, against `train.py {bench.mnist[0]}`, each with one thread"
    compare(what, seconds[AUGMENTED], seconds[bench.mnist[0]], at_most=2)


def linear_regression(bench: Bench) -> None:
    """Time the default run, including its figures."""
    ours, lightning, bare = [], [], []
    for _ in range(bench.repeats):
        ours.append(bench.train_py()[0] - bench.train_py("trainer.max_epochs=1")[0])
        lightning.append(loops.barebones_line(500) - loops.barebones_line(1))
        bare.append(loops.line(499))
    what = "`train.py`, less the same with `trainer.max_epochs=1`: seconds, against the bare loop of 499 steps"
    compare(what, ours, bare, at_most=5)
    compare("Lightning alone, `Trainer(barebones=True)`: seconds, against the bare loop of 499 steps", lightning, bare)


def table(bench: Bench) -> None:
    """Time a table of a million rows and 50 columns: the second epoch of a run, and its startup."""
    import polars

    file, generator = bench.folder / "table.csv", numpy.random.default_rng(0)
    columns = {f"x{number}": generator.normal(size=1_000_000).round(4) for number in range(50)}
    target = sum(weight * column for weight, column in zip(generator.normal(size=50), columns.values(), strict=True))
    polars.DataFrame(columns | {"y": target + generator.normal(size=1_000_000)}).write_csv(file)
    overrides = ["experiment=table", f"data.file={file}", "data.target=y"]
    short = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", "trainer.limit_test_batches=1"]
    for model in ("linear_regression", "mlp"):
        run = bench.new_run()
        bench.process("train.py", *overrides, f"model={model}", *short, f"hydra.run.dir={run}")
        config = OmegaConf.merge(OmegaConf.load(run / ".hydra/config.yaml"), {"run_dir": str(run)})
        data = instantiate(config.data, _convert_="all")
        data.setup("fit")
        found, bare = [], []
        for _ in range(bench.repeats):
            found.append(bench.train(*overrides, f"model={model}", *short).epochs[-1])
            bare.append(loops.regress(config, data, 2)[-1])
        batch = config.data.batch_size
        what = (
            f"an epoch of 700,000 rows of a table of 50 columns, {model}, batch {batch}: seconds, against the bare loop"
        )
        compare(what, found, bare, at_most=1 / 0.7)
    few = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
    begun, reading = [], []
    read = "import polars, sys; polars.read_csv(sys.argv[1])"
    for _ in range(bench.repeats):
        seconds = bench.process("train.py", *overrides, *few, "trainer.limit_test_batches=1")
        begun.append(seconds - bench.process("train.py", *few, "trainer.limit_test_batches=1"))
        reading.append(bench.process("-c", read, str(file)))
    compare("startup time added by that table, a CSV file of 400 MB: seconds, against reading it", begun, reading)


def throughput(bench: Bench) -> None:
    """Time evaluation of a run that trained in batches of 128, as in `evaluate.py` and `predict.py`."""
    from torch_starter import load_run

    for model, goal in (("cnn", 0.9), ("mlp", 0.8)):
        run = bench.new_run()
        short = ["trainer.max_epochs=1", "trainer.limit_train_batches=5", f"hydra.run.dir={run}"]
        bench.process("train.py", *bench.mnist, f"model={model}", *short)
        loaded = load_run(run, "last")
        config, data, ours, trainer = loaded.config, loaded.data, loaded.model, loaded.trainer
        clock = Clock()
        trainer.callbacks.append(clock)
        data.setup("fit")
        data.setup("test")
        for kind, dataset in (("validate", data.val_set), ("test", data.test_set), ("predict", data.test_set)):
            images, labels = dataset.tensors
            found, bare = [], []
            for repeat in range(2 * bench.repeats + 1):
                with quiet():
                    if kind == "predict":
                        trainer.predict(ours, iter(images.split(data.batch_size)))
                    else:
                        getattr(trainer, kind)(ours, data, verbose=False)
                seconds = loops.infer(ours.network, kind, images, labels, data)
                if repeat:
                    found.append(len(dataset) / clock.seconds)
                    bare.append(len(dataset) / seconds)
            what = f"{kind}, {model}, batch {config.data.batch_size}: images/s, against a bare loop in inference mode"
            compare(what, found, bare, at_least=0.85 if kind == "predict" else goal)


def watched(bench: Bench) -> None:
    """Time all figures and loggers. The difference is small and the runs are long, so this is not a default row."""
    callbacks = ("curves", "run_description", "regression_figures", "classifier_figures")
    sides = {
        "all": ["logger=[tensorboard,csv]"],
        "none": ["~logger", *(f"callbacks.{name}=null" for name in callbacks)],
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(3 * bench.repeats):  # each side is first equally often
        for name in sides if repeat % 2 else reversed(sides):
            found[name].append(bench.train_py(*bench.mnist, *sides[name])[0])
    what = "`train.py experiment=mnist` with all figures and loggers: seconds, against none"
    compare(what, found["all"], found["none"], at_most=1.1)


def generation(bench: Bench) -> None:
    """Time the generation of a project."""
    command = ["-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir"]
    ours = [bench.process(*command, str(bench.new_run())) for _ in range(bench.repeats)]
    imports = [bench.process("-c", "import cookiecutter.main") for _ in ours]
    compare("`cookiecutter . --no-input`: seconds, against `import cookiecutter.main`", ours, imports)


def main() -> None:
    parser = benches.parser(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each pair (default: 3)")
    rows = [start, generation, linear_regression, throughput, epochs, accuracy, folders.latest, folders.million]
    rows += [folders.jpeg]
    slow_rows = [table, growth.growth, watched]
    names = [row.__name__ for row in rows]
    choices = [row.__name__ for row in [*rows, *slow_rows]]
    omitted = ", ".join(row.__name__ for row in slow_rows)
    parser.add_argument("--rows", nargs="+", choices=choices, default=names, help=f"default: all but {omitted}")
    arguments = parser.parse_args()
    bench = benches.open_bench(arguments)
    benches.print_head(f"{arguments.repeats} repeats")
    begin = time.monotonic()
    for measure in [*rows, *slow_rows]:
        if measure.__name__ in arguments.rows:
            began = time.monotonic()
            measure(bench)
            print(f"{measure.__name__}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(f"\n{(time.monotonic() - begin) / 60:.0f} minutes in total.")


if __name__ == "__main__":
    main()
