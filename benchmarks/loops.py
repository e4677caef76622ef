"""Reference loops: the project's network and optimizer in plain PyTorch, and PyTorch's own MNIST example.

    python benchmarks/loops.py tutorial FOLDER        train to 99 % on the test set, and print each accuracy
    python benchmarks/loops.py bare PROJECT FOLDER    train the project's network for one epoch, to measure memory

FOLDER contains MNIST/raw. The loops have no metrics, logging or checkpoints.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, max_pool2d, mse_loss, nll_loss, pad, relu
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor


def compose_config(project: Path, *overrides: str) -> DictConfig:
    """Return the config that `train.py` would receive."""
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        return compose("train", [*overrides])


def network_and_optimizer(config: DictConfig, device: str = "cpu") -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the initialized network of a config on a device, and its optimizer."""
    torch.manual_seed(config.seed)
    network = instantiate(config.model, _convert_="all").network.to(device)
    return network, instantiate(config.optimizer)(network.parameters())


def normalize(images: Tensor, data: Any) -> Tensor:
    """Return uint8 images `(N, C, H, W)` as floats, normalized by the mean and std of a data module."""
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (data.mean, data.std))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def wait_for(device: str) -> float:
    """Wait until the device is idle, and return the time."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def regress(config: DictConfig, data: Any, epochs: int) -> list[float]:
    """Return the seconds of each epoch over the tensors of a table, with the project's network and encoder."""
    torch.manual_seed(config.seed)
    model = instantiate(config.model, _convert_="all")
    optimizer = instantiate(config.optimizer)(model.parameters())
    rows, targets = data.train_set.tensors
    targets = (targets - model.target_mean) / model.target_std
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        for indices in torch.randperm(len(rows)).split(config.data.batch_size):
            outputs = model.network(model.encoder(rows.index_select(0, indices))).squeeze(1)
            loss = mse_loss(outputs, targets.index_select(0, indices))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def bare_epochs(
    config: DictConfig,
    data: Any,
    epochs: int,
    device: str = "cpu",
    share: float = 1.0,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
) -> list[float]:
    """Return the seconds of each epoch of a plain PyTorch loop over the tensors of a data module.

    Args:
        config: config of a run.
        data: data module, set up for fitting.
        epochs: number of epochs.
        device: "cuda" or "cpu".
        share: share of the batches of each epoch to train on, in (0, 1].
        augment: augments the images of a batch on the device.
    """
    network, optimizer = network_and_optimizer(config, device)
    images, labels = (tensor.to(device) for tensor in data.train_set.tensors)
    seconds = []
    for _ in range(epochs):
        start = wait_for(device)
        batches = torch.randperm(len(images), device=device).split(config.data.batch_size)
        for batch in batches[: int(share * len(batches))]:
            loss = cross_entropy(network(normalize(augment(images[batch]), data)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(wait_for(device) - start)
    return seconds


def crop_and_flip(images: Tensor) -> Tensor:
    """Augment images `(N, C, H, W)` like experiment=cifar10: random crops after padding by 4 black pixels, flips."""
    n, _, height, width = images.shape
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    rows, columns = (torch.randint(9, (n, 1), device=images.device) + places for places in (rows, columns))
    is_flipped = torch.rand(n, 1, device=images.device) < 0.5
    columns = torch.where(is_flipped, columns.flip(1), columns)
    padded = pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    image = torch.arange(n, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def conventional(config: DictConfig, root: Path, workers: int, share: float) -> float:
    """Return the seconds of an epoch of the conventional pipeline, extrapolated from a share of it.

    A DataLoader passes each training image of MNIST through ToTensor and Normalize. The start of the workers does not
    count.
    """
    network, optimizer = network_and_optimizer(config)
    transform = Compose([ToTensor(), Normalize(tuple(config.data.mean), tuple(config.data.std))])
    dataset = torch.utils.data.Subset(MNIST(root, transform=transform), range(60_000 - config.data.num_val))
    loader = DataLoader(dataset, batch_size=config.data.batch_size, shuffle=True, num_workers=workers)
    count = round(share * len(loader))
    batches = iter(loader)
    next(batches)  # starts the workers
    start = time.perf_counter()
    for images, labels in itertools.islice(batches, count):
        loss = cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / count * len(loader)


def infer(network: nn.Module, kind: str, images: Tensor, labels: Tensor, data: Any) -> float:
    """Return the seconds to compute loss and accuracy, or labels and probabilities if ``kind`` is "predict"."""
    network.eval()
    batches = list(zip(*(tensor.split(data.batch_size) for tensor in (images, labels)), strict=True))
    total, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    start = time.perf_counter()
    with torch.inference_mode():
        for batch, targets in batches:
            logits = network(normalize(batch, data))
            if kind == "predict":
                logits.softmax(dim=1).max(dim=1)
            else:
                total += cross_entropy(logits, targets, reduction="sum")
                correct += (logits.argmax(dim=1) == targets).sum()
    return time.perf_counter() - start


def line(epochs: int) -> float:
    """Return the seconds of a plain PyTorch loop that fits a line to 100 points with Adam(0.01)."""
    x, y = points()
    model = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    start = time.perf_counter()
    for _ in range(epochs):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


class Line(LightningModule):
    """The model of `line` for Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.linear(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def barebones_line(epochs: int) -> float:
    """Return the seconds of the same loop in Lightning, without logger, checkpoint, validation or progress bar."""
    trainer = Trainer(barebones=True, max_epochs=epochs, accelerator="cpu")
    start = time.perf_counter()
    trainer.fit(Line(), DataLoader([points()], batch_size=None))
    return time.perf_counter() - start


def points() -> tuple[Tensor, Tensor]:
    """Return 100 noisy points on a line, as inputs and targets `(100, 1)`."""
    x = torch.linspace(-10, 10, 100)[:, None]
    return x, 3 * x + 2 + 2 * torch.randn(100, 1)


class TutorialNetwork(nn.Module):
    """The network of https://github.com/pytorch/examples/tree/main/mnist."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution1, self.convolution2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.linear1, self.linear2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(relu(self.convolution2(relu(self.convolution1(x)))), 2)
        x = self.dropout2(relu(self.linear1(self.dropout1(x).flatten(1))))
        return log_softmax(self.linear2(x), dim=1)


def tutorial(root: Path) -> int:
    """Train with the published settings until the test accuracy is 99 %, and return the number of epochs.

    The settings are Adadelta with a learning rate of 1.0, multiplied by 0.7 after each epoch, batches of 64, and all
    60,000 images.
    """
    transform = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
    train = DataLoader(MNIST(root, transform=transform), batch_size=64, shuffle=True)
    test = DataLoader(MNIST(root, train=False, transform=transform), batch_size=1000)
    network = TutorialNetwork()
    optimizer = torch.optim.Adadelta(network.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(1, 15):
        network.train()
        for images, labels in train:
            optimizer.zero_grad()
            nll_loss(network(images), labels).backward()
            optimizer.step()
        scheduler.step()
        network.eval()
        with torch.inference_mode():
            correct = sum(int((network(images).argmax(dim=1) == labels).sum()) for images, labels in test)
        print(f"epoch {epoch}: {correct / 100:.2f} %", flush=True)
        if correct >= 9900:
            return epoch
    raise SystemExit("The test accuracy did not reach 99 % in 14 epochs.")


if __name__ == "__main__":
    if sys.argv[1] == "tutorial":
        tutorial(Path(sys.argv[2]))
    else:
        project, root = (Path(argument).resolve() for argument in sys.argv[2:4])
        sys.path.insert(0, str(project))
        os.chdir(project)
        config = compose_config(project, "experiment=mnist", f"data.root={root}", "run_dir=nowhere")
        data = instantiate(config.data, _convert_="all")
        data.setup("fit")
        bare_epochs(config, data, epochs=1)
