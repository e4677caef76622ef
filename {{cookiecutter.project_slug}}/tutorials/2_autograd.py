# %% [markdown]
# # 2. Autograd
#
# Training is walking downhill, and the gradient says where down is. PyTorch records what is done to a tensor that
# wants a gradient, and walks the record backwards.

# %%
import math

import matplotlib.pyplot as plt
import torch

import computation_graph
from this_project import OUTPUTS

x = torch.tensor(2.0, requires_grad=True)
y = x**2 + 3 * x + 1
y.backward()
print(f"y = {y.item()}, dy/dx = {x.grad}")

# %% [markdown]
# By hand: y = x² + 3x + 1, so dy/dx = 2x + 3. At x = 2, y is 11 and dy/dx = 7.
#
# ## The record
#
# Each result points to the operation that made it, `grad_fn`, and each operation to those before it. This is the
# computation graph: a result at the top, what it was made from below. (`AccumulateGrad` at its end is where
# `x.grad` is filled; it has the name of its tensor in the picture.)
#
# `backward` comes down with a 1, for y changes with itself one to one. Each operation multiplies what comes from
# above by its own derivative and passes it on. The power passes on 2x, which is 4, the product passes on 3, and
# where two arrows meet they are added: 7.

# %%
y = x**2 + 3 * x + 1  # anew: backward throws its record away, to save memory
figure, axes = plt.subplots(figsize=(6, 4))
computation_graph.draw(y, {"x": x}, axes)
axes.set_title("y = x² + 3x + 1 at x = 2, and the gradients on their way down")
figure.savefig(OUTPUTS / "computation_graph.png")

# %% [markdown]
# ## It adds up
#
# `backward` adds to `grad`; it does not replace it. After a second time x.grad is 14, not 7. This is why every
# training loop has a line `optimizer.zero_grad()`. What needs no gradient, such as a validation, goes into `with
# torch.no_grad():`, where nothing is recorded.

# %%
y.backward()
print(x.grad)
twice = x.grad
with torch.no_grad():
    unrecorded = x**2
print(unrecorded.requires_grad, unrecorded.grad_fn)

# %% [markdown]
# ## The chain rule
#
# For z = sin(u) with u = x²: dz/dx = dz/du · du/dx = cos(x²) · 2x. Autograd is the chain rule, and nothing else:
# it knows the derivative of each single operation, and multiplies. It is exact up to rounding, unlike a finite
# difference, which asks the function twice, h to the right and h to the left, and divides by 2h.
#
# `float64` here, for differences of numbers that are nearly equal.

# %%
x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
z = torch.sin(x**2)
(by_autograd,) = torch.autograd.grad(z, x)  # returns the gradient, and leaves x.grad alone
by_hand = math.cos(2.0**2) * 2 * 2.0


def by_difference(h: float) -> float:
    return (math.sin((2 + h) ** 2) - math.sin((2 - h) ** 2)) / (2 * h)


print(f"autograd {by_autograd:.12f}, by hand {by_hand:.12f}, by a difference {by_difference(1e-5):.12f}")

# %% [markdown]
# With a large h the difference is wrong because the function bends; the error falls with h². With a small one it
# is wrong because two nearly equal numbers are subtracted, and what is left is rounding. In between, near h =
# 0.000001, ten digits are right. A gradient by differences also asks the function twice for each weight, and a
# network has millions; autograd goes back once for all of them.
#
# Who writes an operation of their own checks it with `torch.autograd.gradcheck`, which compares with differences
# in this way.

# %%
steps = [10.0**-exponent for exponent in range(1, 14)]
errors = [abs(by_difference(h) - by_hand) for h in steps]
figure, axes = plt.subplots(figsize=(6, 4))
axes.loglog(steps, errors, "o-", label="finite difference")
axes.axhline(max(abs(by_autograd.item() - by_hand), 1e-16), linestyle="--", color="black", label="autograd")
axes.set(xlabel="h", ylabel="error of dz/dx", title="The best h is neither large nor small")
axes.legend()
figure.savefig(OUTPUTS / "finite_differences.png")
print("checked:", torch.autograd.gradcheck(lambda x: torch.sin(x**2), x))

# %% [markdown]
# ## Exercise
#
# A model says w · x + b. For one point, x = 2 and y = 5, with w = 1 and b = 0, its squared error is 9. Find the
# derivatives with respect to w and b, first on paper, then by autograd. In which direction will gradient descent
# move them?
#
# The answer is `test_exercise_2` in `tests/test_tutorials.py`.
