# %% [markdown]
# # 8. From loop to Lightning to Hydra
#
# The same training three times: a loop by hand, a LightningModule, a config. All three end with the same weights, on
# the CPU bit for bit. They differ in what you have to write and in what you get.

# %%
import logging
import warnings

import matplotlib.pyplot as plt
import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split
from torch.utils.tensorboard import SummaryWriter
from torchvision import datasets

import drawn_digits
from this_project import OUTPUTS, run, torch_starter

# Hide Lightning's hints; the chapter prints its own results.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="lightning")

# %% [markdown]
# ## What all three share
#
# Images as numbers between 0 and 1, split into training, validation and test; a small convolutional network; the same
# seed. The digits are drawn. For the real ones, set `root = "data"` and pass `download=True` in both calls of
# `datasets.MNIST`.

# %%
root = drawn_digits.write(train=2000, test=500)
digits, test_digits = datasets.MNIST(root, train=True), datasets.MNIST(root, train=False)
images, test_images = digits.data[:, None] / 255, test_digits.data[:, None] / 255
generator = torch.Generator().manual_seed(0)
train_set, val_set = random_split(TensorDataset(images, digits.targets), [0.8, 0.2], generator=generator)
test_set = TensorDataset(test_images, test_digits.targets)


# No shuffle=True, so that all three see the same batches; `random_split` has already shuffled once.
train_loader = DataLoader(train_set, batch_size=50)
val_loader, test_loader = DataLoader(val_set, batch_size=500), DataLoader(test_set, batch_size=500)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5),
        nn.MaxPool2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 6 * 6, 10),
    )


# %% [markdown]
# ## By hand
#
# The five lines of chapter 3 are still there. Now they are surrounded by everything you need to trust a result:
# validation after each epoch, saving the best weights, curves, the final test; and by everything the machine needs:
# devices, training mode, evaluation mode.

# %%
accelerated = torch.accelerator.is_available()
device = torch.accelerator.current_accelerator() if accelerated else torch.device("cpu")
network = small_network().to(device)
optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
writer = SummaryWriter(OUTPUTS / "by_hand")


def accuracy(loader):
    network.eval()
    correct = 0
    with torch.no_grad():
        for images, labels in loader:
            predicted = network(images.to(device)).argmax(dim=1)
            correct += (predicted == labels.to(device)).sum().item()
    return correct / len(loader.dataset)


best, step, losses = -1.0, 0, []
for epoch in range(3):
    network.train()
    for images, labels in train_loader:
        images, labels = images.to(device), labels.to(device)
        loss = cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        writer.add_scalar("train/loss", losses[-1], step)
        step += 1
    val_accuracy = accuracy(val_loader)
    writer.add_scalar("val/acc", val_accuracy, step - 1)
    print(f"epoch {epoch + 1}  loss {losses[-1]:.3f}  validation accuracy {val_accuracy:.3f}")
    if val_accuracy > best:
        best = val_accuracy
        torch.save(network.state_dict(), OUTPUTS / "best.pt")
writer.close()
last_by_hand = {name: weight.cpu().clone() for name, weight in network.state_dict().items()}
network.load_state_dict(torch.load(OUTPUTS / "best.pt"))
test_accuracy = accuracy(test_loader)
print(f"test accuracy {test_accuracy:.3f}")

# %% [markdown]
# ## With Lightning
#
# A LightningModule defines what is specific to your model: the network, the training step, the optimizer. The
# `Trainer` does what is the same in every training. It clears gradients, computes new ones and takes the step; it
# moves batches to the device, switches modes, averages metrics over batches, keeps the best checkpoint, including the
# optimizer state, and plots the curves. (`tensorboard --logdir outputs/tutorials` also shows the curves of the loop
# by hand: they coincide.)

# %%


class Classifier(LightningModule):
    def __init__(self, network, optimizer):
        super().__init__()
        self.network = network
        self.optimizer = optimizer

    def training_step(self, batch):
        return self._step(batch, "train")

    def validation_step(self, batch):
        self._step(batch, "val")

    def test_step(self, batch):
        self._step(batch, "test")

    def _step(self, batch, stage):
        images, labels = batch
        logits = self.network(images)
        loss = cross_entropy(logits, labels)
        self.log(f"{stage}/loss", loss)
        self.log(f"{stage}/acc", (logits.argmax(dim=1) == labels).float().mean())
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


# %%
model = Classifier(small_network(), lambda parameters: torch.optim.AdamW(parameters, lr=0.01))
keep_best = ModelCheckpoint(monitor="val/acc", mode="max")
logger = TensorBoardLogger(OUTPUTS, name="with_lightning")
trainer = Trainer(max_epochs=3, devices=1, callbacks=[keep_best], logger=logger, log_every_n_steps=1)
trainer.fit(model, train_loader, val_loader)
last_by_lightning = {name: weight.cpu().clone() for name, weight in model.network.state_dict().items()}
(with_lightning,) = trainer.test(model, test_loader, ckpt_path="best", weights_only=True)

# %% [markdown]
# ## With Hydra
#
# A config holds everything that you may want to change: the class, `_target_`, and its arguments. `instantiate`
# creates the object. With `_partial_` it stores the arguments for later; the optimizer needs this because it also
# takes the parameters of the model. Now no line of Python names AdamW any more, and to change the optimizer you
# change the config.

# %%
config = OmegaConf.create("""
optimizer:
  _target_: torch.optim.AdamW
  _partial_: true
  lr: 0.01
trainer:
  _target_: lightning.Trainer
  max_epochs: 3
  devices: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
""")


def train(*overrides):
    chosen = OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides)))
    model = Classifier(small_network(), instantiate(chosen.optimizer))
    trainer = instantiate(chosen.trainer)
    trainer.fit(model, train_loader, val_loader)
    (metrics,) = trainer.test(model, test_loader, verbose=False)
    return model.network, metrics


network_by_config, with_hydra = train()
_, with_sgd = train("optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1", "optimizer.momentum=0.9")
print(f"test accuracy: AdamW {with_hydra['test/acc']:.3f}, SGD {with_sgd['test/acc']:.3f}")

# %%
largest = max(
    (weight.cpu() - last_by_hand[name]).abs().max().item()
    for weights in (last_by_lightning, network_by_config.state_dict())
    for name, weight in weights.items()
)
print(f"by hand, with Lightning and with Hydra, the weights differ by at most {largest}")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot(losses, linewidth=1)
axes.set(xlabel="step", ylabel="loss", title=f"three epochs; test accuracy {test_accuracy:.1%}")
figure.savefig(OUTPUTS / "loop.png")

# %% [markdown]
# ## In this project
#
# Hydra reads the config from files, one for each choice, so that you write `optimizer=sgd` instead of the path of a
# class. It takes overrides from the command line, refuses names that do not exist, and saves the final config with
# the run. `train.py` is the function `train` above, in 60 lines:

# %%
small = [f"data.root={root}", "data.num_val=400", "data.batch_size=50", "trainer.max_epochs=2"]
print(run("train.py", "experiment=mnist", *small, "optimizer=sgd", "optimizer.lr=0.05"))

# %% [markdown]
# The run leaves a folder that `python predict.py` can read. So can your own Python code, with `import torch_starter`:
# load the model with its best weights, and predict images that it has never seen.

# %%
trained = torch_starter.load_run("latest")
print(f"test accuracy {trained.metrics['test/acc']:.3f}")
for row, label in zip(trained.predict(test_digits.data[:5, None]), test_digits.targets[:5].tolist(), strict=True):
    print(f"a {label} is predicted as {row['label']}, with probability {row['probability']:.3f}")

# %% [markdown]
# ## What each step gains
#
# | | lines | and what you get for them, in addition to the rows above |
# | --- | --- | --- |
# | by hand | 36 | training, validation, best weights, curves, test; on one device |
# | with Lightning | 27 | more devices and processes, 16-bit precision, resuming: arguments of `Trainer` |
# | with Hydra | 24 | every class and number from the command line; the next experiment is 0 lines of Python |
# | in this project | 0 | a folder per run with config, figures, results; sweeps; prediction; export |
#
# (Lines of the cells above that are neither empty nor comments; the lines of Hydra come on top of the 20 of the
# LightningModule.)
#
# The cost: you have to know where things are. The table of folders in `README.md` tells you, and from the command
# line to the loss there are only three hops: `main` in `train.py`, `training_step`, `_step`. The last two are the
# same as above.
#
# ## Exercise
#
# Train the network of this project on the drawn digits with SGD: learning rate 0.1, rising and falling in one cycle,
# and 8 and 16 channels. Then train it with Adam, with the learning rate from its config file. Do not change any file.
# (`python train.py --help` lists the groups.)
#
# The answer is `test_exercise_8` in `tests/test_tutorials.py`.
