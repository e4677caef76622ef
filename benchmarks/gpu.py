"""Check a generated project on a GPU, then compare its speed with bare loops over data on the GPU.

    python benchmarks/gpu.py --project build/my_project --data FOLDER

FOLDER contains MNIST/raw and optionally cifar-10-batches-py; without it, random images are used. Prints a line for each
check, a Markdown table with a goal for each row, and a profile of the CNN. --device cpu runs the same code in smaller
sizes. The exit status is 1 if a check fails.
"""

import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import bench as benches
import loops
import torch
from bench import QUICK, Bench, compare, row
from gpu_checks import check
from hydra.utils import instantiate
from image_folder import images_per_second, make_images
from lightning import Callback, Trainer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from printing into the table
STEPS = range(10, 30)  # the profiled steps of an epoch


class Table:
    """Measures and prints the rows. On the CPU, sizes are smaller and goals, which are for a GPU, are left out.

    Args:
        bench: times the runs.
        device: "cuda" or "cpu".
    """

    def __init__(self, bench: Bench, device: str) -> None:
        self.bench, self.device, self.is_gpu = bench, device, device == "cuda"
        self.trainer = "trainer=gpu" if self.is_gpu else "trainer=cpu"

    def compare(self, what: str, ours: list[float], theirs: list[float], **goal: float) -> None:
        """Print a row, with its goal on a GPU; see `bench.compare`."""
        compare(what, ours, theirs, **(goal if self.is_gpu else {}))

    def make(self) -> None:
        """Print all rows and the profile."""
        self.reach_99()
        for batch_size in (512, 2048):
            self.epoch([*self.bench.mnist, f"data.batch_size={batch_size}"], "an MNIST epoch, cnn", batches=20)
        files = f"data.root={self.bench.data}"
        if not (self.bench.data / "cifar-10-batches-py").exists():
            files = "data._target_=random_images.RandomImages"
        for model, batches in (("cnn_wide", 6), ("resnet18", 3)):
            what = f"an epoch of 45,000 images of CIFAR-10's shape with crop and flip, {model}"
            self.epoch(["experiment=cifar10", files, f"model={model}"], what, batches, loops.crop_and_flip)
        self.folder()
        self.profile()

    def reach_99(self) -> None:
        """Time training to 99 % without imports and test, after a warm-up run."""
        overrides = [QUICK, *self.bench.mnist[1:], self.trainer]
        self.bench.train(*overrides, "trainer.limit_train_batches=30")
        clocks = [self.bench.train(*overrides, f"seed={seed}") for seed in range(self.bench.repeats)]
        accuracy = min(clock.accuracy for clock in clocks)
        is_reached = "" if accuracy >= 0.99 else ", **which is not 99 %**"
        what = f"MNIST to 99 %, `{QUICK}` ({accuracy:.2%} or more{is_reached}): seconds of"
        self.compare(f"{what} training, against the goal", [sum(clock.epochs) for clock in clocks], [1], at_most=1)
        self.compare(f"{what} training, validation, figures, and checkpoints", [clock.fit for clock in clocks], [1])

    def epoch(
        self,
        overrides: list[str],
        what: str,
        batches: int,
        augment: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        """Time the epochs after the first, against a bare loop with the data on the device.

        Args:
            overrides: overrides of the run.
            what: description of the row.
            batches: number of batches of an epoch on the CPU.
            augment: augments images on the device in the bare loop.
        """
        config = loops.compose_config(self.bench.project, *overrides, "run_dir=nowhere")
        data = instantiate(config.data, _convert_="all")
        data.prepare_data()
        data.setup("fit")
        share = 1.0 if self.is_gpu else batches / -(-len(data.train_set) // config.data.batch_size)
        epochs = 4 if self.is_gpu else 2
        limits = [f"trainer.limit_{kind}_batches=2" for kind in ("val", "test")]
        limits += [f"trainer.max_epochs={epochs}", *([] if self.is_gpu else [f"trainer.limit_train_batches={batches}"])]
        ours, bare = [], []
        for _ in range(self.bench.repeats):
            clock = self.bench.train(*overrides, self.trainer, *limits)
            ours.append(statistics.median(clock.epochs[1:]) / share)
            seconds = loops.bare_epochs(config, data, epochs, self.device, share, augment)
            bare.append(statistics.median(seconds[1:]) / share)
        what = f"{what}, batch {config.data.batch_size}: seconds, against the bare loop with the data on the device"
        self.compare(what, ours, bare, at_most=1.3)

    def folder(self) -> None:
        """Time training on image files, against the same workers without training."""
        folder = self.bench.new_run()
        folder.mkdir()
        make_images(folder, 1000 if self.is_gpu else 200)
        for path in list(folder.rglob("*.jpg")):
            for copy in range(7 if self.is_gpu else 0):
                os.link(path, path.with_name(f"{copy}_{path.name}"))
        files = ["data=image_folder", f"data.root={folder}", "data.val_share=0.05", "data.test_share=0.05"]
        config = loops.compose_config(self.bench.project, *files, "data.batch_size=128", "run_dir=nowhere")
        data = instantiate(config.data, _convert_="all")
        data.setup("fit")
        loader = data.train_dataloader()
        images_per_second(loader)  # starts the workers and fills the file cache
        models = {"cnn": ["model=cnn"], "resnet18, bf16": ["model=resnet18", "trainer.precision=bf16-mixed"]}
        found: dict[str, list[float]] = {
            name: [] for name in [*models, "decoders"] if self.is_gpu or "bf16" not in name
        }
        for _ in range(self.bench.repeats):
            for name in found:
                if name == "decoders":
                    found[name].append(images_per_second(loader))
                    continue
                overrides = [*files, *models[name], self.trainer, "data.batch_size=128", "trainer.max_epochs=2"]
                clock = self.bench.train(*overrides)
                found[name].append(len(data.train_set) / clock.epochs[-1])
        data.workers.stop()
        decoders = found.pop("decoders")
        for name, speeds in found.items():
            what = f"training on a folder of JPEG of 500 x 375, {name}, {data.workers.count} workers: images/s, against"
            # A larger network may be slower than decoding.
            goal = {"at_least": 0.9} if name == "cnn" else {}
            self.compare(f"{what} the same workers without training", speeds, decoders, **goal)

    def profile(self) -> None:
        """Count synchronizations of `experiment=mnist` and print a profile of its steps."""
        watch = StepProfiler(self.device)
        limit = [] if self.is_gpu else ["trainer.limit_train_batches=40"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.bench.train(*self.bench.mnist, self.trainer, "trainer.max_epochs=3", *limit, watchers=[watch])
        places = Counter(
            f"{warning.filename}:{warning.lineno}"
            for warning in caught
            if str(warning.message).startswith("called a synchronizing")
        )
        count = places.total()
        what = f"synchronizations of host and device in {watch.steps} steps of an epoch of the cnn"
        if self.is_gpu:
            row(what, str(count), "", "", f"none: {'met' if not count else '**not met**'}")
        else:
            row(what, "no device", "", "", "")
        print("".join(f"\n{count} at {place}" for place, count in places.most_common(15)))
        watch.show()


class StepProfiler(Callback):
    """Makes torch warn of synchronizations in the second epoch, and profiles some steps of the third.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self.is_gpu, self.steps = device == "cuda", 0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.is_gpu else [])]
        self.profiler = profile(activities=activities)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Not from the start of the epoch: work done once an epoch may synchronize.
        if trainer.current_epoch == 1 and batch_idx == 0 and self.is_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.current_epoch == 2 and batch_idx == STEPS.start:
            self.profiler.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1:
            self.steps += 1
            if trainer.is_last_batch and self.is_gpu:
                torch.cuda.set_sync_debug_mode("default")
        if trainer.current_epoch == 2 and batch_idx == STEPS.stop - 1:
            self.profiler.stop()

    def show(self) -> None:
        """Print copies, synchronizations, and the most expensive operations of the profiled steps."""
        averages = self.profiler.key_averages()
        words = ("Memcpy", "Memset", "Synchronize", "_local_scalar_dense")
        waits = {event.key: event.count for event in averages if any(word in event.key for word in words)}
        print(f"\nCopies and synchronizations in {len(STEPS)} steps, including one of the profiler: {waits or 'none'}")
        for order in (["self_cuda_time_total"] if self.is_gpu else []) + ["self_cpu_time_total"]:
            print(f"\n{len(STEPS)} steps by {order}:\n")
            print(averages.table(sort_by=order, row_limit=15, max_name_column_width=60))


def main() -> None:
    parser = benches.parser(__doc__ or "")
    devices = ["cuda", "cpu"]
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=devices, default=default, help="default: cuda if available")
    parser.add_argument("--repeats", type=int, help="repeats of each pair (default: 5, or 1 on the CPU)")
    parser.add_argument("--parts", nargs="+", choices=["checks", "table"], default=["checks", "table"])
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (5 if arguments.device == "cuda" else 1)
    bench, begin, failed = benches.open_bench(arguments), time.monotonic(), 0
    if "checks" in arguments.parts:
        failed = check(bench, arguments.device)
        print(f"\n{time.monotonic() - begin:.0f} seconds, {failed} failed\n", flush=True)
    if "table" in arguments.parts:
        name = "CPU, without goals, which are for a GPU"
        if arguments.device == "cuda":
            name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        benches.print_head(name, f"{arguments.repeats} repeats")
        Table(bench, arguments.device).make()
    print(f"\n{(time.monotonic() - begin) / 60:.1f} minutes in total.")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
