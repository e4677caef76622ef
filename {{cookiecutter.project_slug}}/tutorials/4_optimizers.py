# %% [markdown]
# # 4. Optimizers
#
# Five ways to walk down the same valley. The valley is steep across and flat along, 50 times as curved in one
# direction as in the other. The losses of most models have such valleys.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, RMSprop

from this_project import OUTPUTS

START = (-8.0, 1.5)


def valley(position, steepness=50, scale=1, turn=0):
    """Return the loss at a position (2,); the minimum, 0, is in the middle."""
    cos, sin = math.cos(turn), math.sin(turn)
    along = cos * position[0] - sin * position[1]
    across = sin * position[0] + cos * position[1]
    return scale * (along**2 + steepness * across**2) / 2


def walk(make_optimizer, turn=0, scale=1, steepness=50, steps=400):
    """Return the path, and the step after which the loss stays below ``scale / 1000``, or None if it never does."""
    cos, sin = math.cos(turn), math.sin(turn)
    start = [cos * START[0] + sin * START[1], -sin * START[0] + cos * START[1]]  # the same point of a turned valley
    position = nn.Parameter(torch.tensor(start))
    optimizer = make_optimizer([position])
    path, arrival = [], 0
    for step in range(steps):
        path.append(position.tolist())
        loss = valley(position, steepness, scale, turn)
        if not loss.item() < scale / 1000:  # written this way, it is also true for NaN
            arrival = step + 1
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return path, arrival if arrival < steps else None


# %% [markdown]
# - **SGD** moves against the gradient.
# - **Momentum** behaves like a rolling ball: it keeps nine tenths of its speed. Across the valley the pushes cancel;
#   along it they add up.
# - **RMSprop** divides each coordinate of the gradient by its recent size, so both directions advance at the same
#   pace.
# - **Adagrad** divides by the size of all gradients so far, so its steps get shorter and shorter.
# - **Adam** combines both: momentum, and the division of RMSprop.

# %%
OPTIMIZERS = {
    "SGD": lambda parameters: SGD(parameters, lr=0.03),
    "momentum": lambda parameters: SGD(parameters, lr=0.01, momentum=0.9),
    "RMSprop": lambda parameters: RMSprop(parameters, lr=0.1),
    "Adagrad": lambda parameters: Adagrad(parameters, lr=1.0),
    "Adam": lambda parameters: Adam(parameters, lr=0.3),
}
VALLEYS = {
    "valley": {},
    "loss times 1000": {"scale": 1000},
    "turned by 45°": {"turn": math.pi / 4},
    "round": {"steepness": 1},
}
steps = {name: {title: walk(make, **kind)[1] for title, kind in VALLEYS.items()} for name, make in OPTIMIZERS.items()}
print("steps until the loss stays below 0.001")
print(" " * 10, *(f"{title:>16}" for title in VALLEYS))
for name, row in steps.items():
    print(f"{name:10}", *(f"{number or 'never':>16}" for number in row.values()))

# %%
figure, every_axes = plt.subplots(2, 3, figsize=(10, 5), layout="constrained")
across, along = torch.meshgrid(torch.linspace(-3, 3, 80), torch.linspace(-9, 5, 80), indexing="ij")
heights = valley(torch.stack([along, across]))
*path_axes, loss_axes = every_axes.flat
for axes, (name, make), style in zip(path_axes, OPTIMIZERS.items(), ("-", ":", "--", "-.", "-"), strict=True):
    path = torch.tensor(walk(make)[0])
    axes.contour(along, across, heights, levels=[0.5, 2, 8, 32, 128], colors="#999999", linewidths=0.8)
    axes.plot(*path.T, ".-", color="#0072B2", linewidth=1, markersize=4)
    axes.plot(*START, "ks")
    axes.plot(0, 0, "k*", markersize=10)
    axes.set_title(f"{name}: {steps[name]['valley']} steps")
    loss_axes.semilogy(valley(path.T)[:180], style, label=name)
loss_axes.set(title="loss after each step", ylim=(1e-4, 1e2))
loss_axes.legend(fontsize=8)
figure.savefig(OUTPUTS / "optimizers.png")

# %% [markdown]
# ## The valley
#
# SGD takes 171 steps with the learning rate 0.03. A larger rate would be faster along the valley, but from 2/50 =
# 0.04 on, SGD bounces out of the valley sideways. Momentum takes 107, RMSprop 83, Adagrad 101, Adam 102, each with a
# learning rate that suits it.
#
# ## When Adam helps
#
# Multiply the loss by 1000, as if it were measured in another unit. SGD and momentum diverge because their steps are
# 1000 times as long. Adam takes the same 102 steps, and RMSprop and Adagrad take the same as before, because they
# divide by the size of the gradient. This is the strength of Adam: its learning rate is roughly the length of a step,
# regardless of the size of the loss and of the sizes of the gradients in the many layers of a network. If you know
# nothing about a problem, start with its default, 0.001.
#
# ## When it does not
#
# Turn the valley by 45°, so that both coordinates are equally steep. SGD and momentum do not notice: 171 and 107
# steps again. But Adam divides coordinate by coordinate, which helps only if the steep direction is a coordinate: it
# needs 136, Adagrad 312, and RMSprop never settles.
#
# In a round bowl there is nothing to correct. Adam takes 96 steps. SGD with the learning rate 1 reaches the middle in
# 1 step. If you can afford to search for the learning rate, as for a convolutional network that is trained a hundred
# times, SGD with momentum is often as good as Adam, and keeps one buffer less in memory.

# %%
in_a_round_bowl = walk(lambda parameters: SGD(parameters, lr=1.0), steepness=1)[1]
print("SGD in a round bowl, with the learning rate 1:", in_a_round_bowl)

# %% [markdown]
# In this project: `python train.py -m optimizer=sgd,adam,adamw,rmsprop,adagrad` trains one model with each optimizer
# and prints a table.
#
# ## Exercise
#
# Momentum keeps nine tenths of its speed here. In theory there is a best value for this valley: with κ = 50, the
# ratio of the curvatures, it is ((√κ − 1) / (√κ + 1))². The learning rate that goes with it is (2 / (1 + √κ))²,
# because the flat curvature is 1. How many steps does it take then?
#
# The answer is `test_exercise_4` in `tests/test_tutorials.py`.
