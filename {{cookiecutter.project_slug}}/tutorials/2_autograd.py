# %% [markdown]
# # 2. Autograd
#
# Training means walking downhill, and the gradient tells you which way is down. PyTorch records the operations on
# every tensor that requires a gradient, then walks that record backward.

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
# Each result points to the operation that made it, `grad_fn`, and each operation points to the ones before it. This
# is the computation graph: the result at the top, its inputs at the bottom. (`AccumulateGrad` at the end is the node
# that fills `x.grad`; the figure labels it with the name of its tensor.)
#
# `backward` starts at the top with a 1, the derivative of y with respect to itself. Each operation multiplies the
# gradient from above by its own derivative and passes it on. The power passes on 2x, which is 4, the product passes
# on 3, and where two arrows meet the gradients are added: 7.

# %%
y = x**2 + 3 * x + 1  # once more: backward frees its record to save memory
figure, axes = plt.subplots(figsize=(6, 4))
computation_graph.draw(y, {"x": x}, axes)
axes.set_title("y = x² + 3x + 1 at x = 2, and the gradients on their way down")
figure.savefig(OUTPUTS / "computation_graph.png")

# %% [markdown]
# ## Gradients accumulate
#
# `backward` adds to `grad` instead of replacing it. After a second call x.grad is 14, not 7. This is why every
# training loop calls `optimizer.zero_grad()`. Code that needs no gradient, such as validation, goes into `with
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
# For z = sin(u) with u = x²: dz/dx = dz/du · du/dx = cos(x²) · 2x. Autograd is the chain rule and nothing else: it
# knows the derivative of each operation, and multiplies them. The result is exact up to rounding. A finite difference
# is not: it evaluates the function twice, h to the right and h to the left, and divides by 2h.
#
# The next cell uses `float64` because it subtracts numbers that are nearly equal.

# %%
x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
z = torch.sin(x**2)
(by_autograd,) = torch.autograd.grad(z, x)  # returns the gradient and leaves x.grad unchanged
by_hand = math.cos(2.0**2) * 2 * 2.0


def by_difference(h: float) -> float:
    return (math.sin((2 + h) ** 2) - math.sin((2 - h) ** 2)) / (2 * h)


print(f"autograd {by_autograd:.12f}, by hand {by_hand:.12f}, by a finite difference {by_difference(1e-5):.12f}")

# %% [markdown]
# With a large h the difference is wrong because the function bends; the error falls with h². With a small h it is
# wrong because two nearly equal numbers are subtracted, and only rounding error is left. In between, near h =
# 0.000001, ten digits are right. Finite differences also evaluate the function twice for every weight, and a network
# has millions of weights. Autograd needs one backward pass for all of them.
#
# If you write an operation of your own, check it with `torch.autograd.gradcheck`, which compares it with finite
# differences in this way.

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
# A model predicts w · x + b. For one point, x = 2 and y = 5, with w = 1 and b = 0, its squared error is 9. Find the
# derivatives with respect to w and b, first on paper, then with autograd. In which direction will gradient descent
# move them?
#
# The answer is `test_exercise_2` in `tests/test_tutorials.py`.
