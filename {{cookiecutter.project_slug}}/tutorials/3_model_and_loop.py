# %% [markdown]
# # 3. A model and a loop
#
# Four points lie on the line y = 2x + 1. Your task: train a model to find the line from the points alone.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

from this_project import OUTPUTS

x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
y = 2 * x + 1

# %% [markdown]
# ## A model
#
# An `nn.Module` holds its layers as attributes and says in `forward` how a batch passes through them. The first
# dimension of a batch counts the samples: here (4, 1), four samples of one number each. You call the model itself,
# not its `forward`.

# %%


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x)


torch.manual_seed(0)  # the initial weights are random; the seed makes them the same in every run
model = Line()
print(model, dict(model.named_parameters()))

# %% [markdown]
# ## A loop
#
# Five lines, and every training loop in the world is a variation of them: predict, measure the loss, clear the old
# gradients, compute the new ones, take a step. The learning rate, 0.01, says how far: each parameter changes by minus
# 0.01 times its gradient.

# %%
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

lines = []
for epoch in range(200):
    prediction = model(x)
    loss = criterion(prediction, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if epoch + 1 in (1, 5, 50, 200):
        lines.append((epoch + 1, model.linear.weight.item(), model.linear.bias.item()))
        print(f"epoch {epoch + 1:3}  loss {loss.item():.5f}  y = {lines[-1][1]:.3f} x + {lines[-1][2]:.3f}")

with torch.no_grad():
    at_5 = model(torch.tensor([[5.0]])).item()
print(f"f(5) = {at_5:.3f}")

# %% [markdown]
# f(5) is near 11, which is 2 · 5 + 1, although there was no point at 5. After 50 epochs the line is y = 1.94 x +
# 1.17, and 150 epochs later it is only y = 1.96 x + 1.11: fast at first, then slow. Gradient descent first goes down
# the steep walls of a valley, then along its flat floor. The next chapter plots this.

# %%
figure, axes = plt.subplots(figsize=(6, 4))
axes.plot(x, y, "ko", label="points")
ends = torch.tensor([0.0, 5.0])
for (epoch, weight, bias), style in zip(lines, (":", "-.", "--", "-"), strict=True):
    axes.plot(ends, weight * ends + bias, style, label=f"after epoch {epoch}")
axes.plot(5, at_5, "s", label=f"f(5) = {at_5:.2f}")
axes.set(xlabel="x", ylabel="y")
axes.legend()
figure.savefig(OUTPUTS / "model_and_loop.png")

# %% [markdown]
# ## Shapes
#
# `nn.Linear(3, 2)` takes 3 numbers per sample and returns 2. Its weight is (2, 3), outputs before inputs, because the
# layer computes x Wᵀ + b; its bias is (2,). That is 8 parameters, no matter how large the batch is.

# %%
layer = nn.Linear(3, 2)
batch = torch.rand(5, 3)
print(layer.weight.shape, layer.bias.shape, layer(batch).shape)
print("equals x Wᵀ + b:", torch.allclose(layer(batch), batch @ layer.weight.T + layer.bias))

# %% [markdown]
# ## Save and load
#
# `state_dict` holds the parameters by name, without the code. To load them, create the model, then fill it. A file
# from an untrusted source could contain code that runs when you open it. `torch.load` refuses such files by default
# (`weights_only=True` is its default since PyTorch 2.6), and a `state_dict` contains no code.

# %%
print(model.state_dict())
torch.save(model.state_dict(), OUTPUTS / "line.pt")

copy = Line()
copy.load_state_dict(torch.load(OUTPUTS / "line.pt"))
print("same f(5):", copy(torch.tensor([[5.0]])).item() == at_5)

# %% [markdown]
# ## Exercise
#
# With the learning rate 0.2 the loss grows without end. Find the rate at which this starts, by trial and error. Then
# compute it: the loss is a quadratic function of weight and bias, and gradient descent diverges beyond 2 divided by
# the largest eigenvalue of its matrix of second derivatives (`torch.autograd.functional.hessian`).
#
# The answer is `test_exercise_3` in `tests/test_tutorials.py`.
