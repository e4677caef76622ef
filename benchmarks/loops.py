"""What the project is compared with: the same network and optimizer in plain PyTorch, and PyTorch's own MNIST example.

    python benchmarks/loops.py tutorial FOLDER        until 99 % on the test set; prints the epochs that it took
    python benchmarks/loops.py bare PROJECT FOLDER    one epoch of the project's network, for its memory

FOLDER has MNIST/raw. No metrics, no logging, no checkpoints.
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


def composed(project: Path, *overrides: str) -> DictConfig:
    """What `train.py` would be given."""
    with initialize_config_dir(str(project / "configs"), version_base="1.3"):
        return compose("train", [*overrides])


def network_and_optimizer(config: DictConfig, device: str = "cpu") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(config.seed)
    network = instantiate(config.model, _convert_="all").network.to(device)
    return network, instantiate(config.optimizer)(network.parameters())


def normalized(images: Tensor, data: Any) -> Tensor:
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (data.mean, data.std))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def wait_for(device: str) -> float:
    """The time at which all that was asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def regress(config: DictConfig, data: Any, epochs: int) -> list[float]:
    """Seconds of each epoch of a loop over the tensors of a table, with the network and encoder of the project."""
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


def bare(
    config: DictConfig,
    data: Any,
    epochs: int,
    device: str = "cpu",
    share: float = 1.0,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
) -> list[float]:
    """Seconds of a share of each epoch of the loop that an introduction shows, over the tensors of the data module."""
    network, optimizer = network_and_optimizer(config, device)
    images, labels = (tensor.to(device) for tensor in data.train_set.tensors)
    seconds = []
    for _ in range(epochs):
        start = wait_for(device)
        batches = torch.randperm(len(images), device=device).split(config.data.batch_size)
        for batch in batches[: int(share * len(batches))]:
            loss = cross_entropy(network(normalized(augment(images[batch]), data)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(wait_for(device) - start)
    return seconds


def crop_and_flip(images: Tensor) -> Tensor:
    """What experiment=cifar10 does to images (N, C, H, W): 4 pixels of black around, a place for each, half flipped."""
    n, _, height, width = images.shape
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    rows, columns = (torch.randint(9, (n, 1), device=images.device) + places for places in (rows, columns))
    is_flipped = torch.rand(n, 1, device=images.device) < 0.5
    columns = torch.where(is_flipped, columns.flip(1), columns)
    padded = pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    image = torch.arange(n, device=images.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def conventional(config: DictConfig, root: Path, workers: int, share: float) -> float:
    """Seconds of an epoch of the conventional pipeline, from a share of it, without the start of the workers.

    The training images of MNIST go one by one through ToTensor and Normalize, in a DataLoader.
    """
    network, optimizer = network_and_optimizer(config)
    transform = Compose([ToTensor(), Normalize(tuple(config.data.mean), tuple(config.data.std))])
    dataset = torch.utils.data.Subset(MNIST(root, transform=transform), range(60_000 - config.data.num_val))
    loader = DataLoader(dataset, batch_size=config.data.batch_size, shuffle=True, num_workers=workers)
    count = round(share * len(loader))
    batches = iter(loader)
    next(batches)  # the workers have started
    start = time.perf_counter()
    for images, labels in itertools.islice(batches, count):
        loss = cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - start) / count * len(loader)


def infer(network: nn.Module, kind: str, images: Tensor, labels: Tensor, data: Any) -> float:
    """Seconds for loss and accuracy of all images or, where ``kind`` is predict, for their labels and probabilities."""
    network.eval()
    batches = list(zip(*(tensor.split(data.batch_size) for tensor in (images, labels)), strict=True))
    total, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
    start = time.perf_counter()
    with torch.inference_mode():
        for batch, targets in batches:
            logits = network(normalized(batch, data))
            if kind == "predict":
                logits.softmax(dim=1).max(dim=1)
            else:
                total += cross_entropy(logits, targets, reduction="sum")
                correct += (logits.argmax(dim=1) == targets).sum()
    return time.perf_counter() - start


def line(epochs: int) -> float:
    """Seconds of the loop of an introduction: a line through 100 points, Adam(0.01)."""
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
    """The same for Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(self.linear(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def barebones_line(epochs: int) -> float:
    """Seconds of the same loop under Lightning, without logger, checkpoint, validation and progress."""
    trainer = Trainer(barebones=True, max_epochs=epochs, accelerator="cpu")
    start = time.perf_counter()
    trainer.fit(Line(), DataLoader([points()], batch_size=None))
    return time.perf_counter() - start


def points() -> tuple[Tensor, Tensor]:
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
    """Trains with the published settings until the test set says 99 %; returns the number of epochs.

    Adadelta at 1.0, times 0.7 after each epoch, batches of 64, all 60,000 images.
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
    raise SystemExit("99 % was not reached in 14 epochs")


if __name__ == "__main__":
    if sys.argv[1] == "tutorial":
        tutorial(Path(sys.argv[2]))
    else:
        project, root = (Path(argument).resolve() for argument in sys.argv[2:4])
        sys.path.insert(0, str(project))
        os.chdir(project)
        config = composed(project, "experiment=mnist", f"data.root={root}", "run_dir=nowhere")
        data = instantiate(config.data, _convert_="all")
        data.setup("fit")
        bare(config, data, epochs=1)
