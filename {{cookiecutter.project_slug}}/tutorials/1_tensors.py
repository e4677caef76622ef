# %% [markdown]
# # 1. Tensors and devices
#
# A tensor is a block of numbers of one type, with any number of dimensions, on one device. Everything in PyTorch is
# made of tensors: data, weights, gradients.

# %%
import time

import numpy
import torch

numbers = torch.tensor([1.0, 2.0, 3.0])
print(numbers, numbers.shape, numbers.dtype)

# %% [markdown]
# ## NumPy and back
#
# `numpy()` and `from_numpy` copy nothing: the array and the tensor share memory, so a change to one changes the
# other. `torch.tensor(array)` copies. (A tensor on another device, see below, goes to NumPy with `.cpu().numpy()`, a
# copy.)
#
# The default types differ: from `1.5` NumPy makes a `float64`, PyTorch a `float32`. A `float32` takes half the
# memory, is faster, and keeps about 7 digits: enough for training. Weights are `float32`, so data from NumPy usually
# needs a `.float()`.

# %%
array = numbers.numpy()
array[0] = 10
print(numbers, "has changed with the array")

back = torch.from_numpy(array)
print("shared memory:", back.data_ptr() == numbers.data_ptr())

print(numpy.array([1.5]).dtype, torch.tensor([1.5]).dtype, torch.finfo(torch.float32).eps)

# %% [markdown]
# ## Devices
#
# A tensor lives on the CPU, on an NVIDIA GPU (`cuda`; AMD GPUs go by the same name), or on the GPU of a Mac (`mps`).
# PyTorch knows which of them is available. Older code asks `torch.cuda.is_available()` and
# `torch.backends.mps.is_available()` in turn, which still works.
#
# `pip install torch` is all you need on Linux, where it includes CUDA, and on a Mac with Apple Silicon, where it
# includes MPS. On Windows it installs the CPU version; https://pytorch.org/get-started gives the address of the wheel
# with CUDA. A machine without a GPU needs no special wheel: every wheel runs on the CPU too.

# %%
accelerated = torch.accelerator.is_available()
device = torch.accelerator.current_accelerator() if accelerated else torch.device("cpu")
print("the best device here is", device)

random = torch.rand(2, 3, device=device)
print(random)

# %% [markdown]
# The result of an operation stays on the device of its inputs. Mixing devices is an error; `.to(device)` moves a
# tensor.
#
# A product of two matrices of 1000 × 1000 takes 2 billion multiplications and additions. An accelerator works on its
# own: Python hands it the operation and moves on to the next line. To measure the time, wait for the accelerator
# first.

# %%
left, right = torch.rand(2, 1000, 1000).to(device)
left @ right  # warm-up: the first call loads libraries
start = time.perf_counter()
product = left @ right
if accelerated:
    torch.accelerator.synchronize()
seconds = time.perf_counter() - start
billions = 2 * 1000**3 / 1e9
print(f"{tuple(product.shape)} in {seconds * 1000:.1f} ms: {billions / seconds:.0f} billion operations per second")

# %% [markdown]
# ## Eager execution
#
# Each line runs as soon as it is reached, as in NumPy. There is no graph to build first and no session to run it in:
# x² + 3 at x = [1, 2] is computed at once, and is [4, 7].

# %%
x = torch.tensor([1.0, 2.0])
y = x**2 + 3
print(y)

# %% [markdown]
# ## Broadcasting
#
# PyTorch treats a tensor as if it were repeated along a dimension that is missing or has size 1. As in NumPy, nothing
# is copied. Shapes are compared from the right: (3, 2) and (2,) fit, and so do (3, 2) and (3, 1).

# %%
table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]])
print(table - table.mean(dim=0))  # subtract the mean of each column

# %% [markdown]
# ## What NumPy lacks
#
# Two things above all, and they are why PyTorch exists. First, a NumPy array lives only on the CPU. Second, an array
# does not know how it was computed. A tensor can remember, and then it gives you the derivative of a result with
# respect to anything that went into it. For the sum of x² + 3 the derivative is 2x, here [2, 4]. The next chapter
# shows how this works.

# %%
x.requires_grad_()
total = (x**2 + 3).sum()
total.backward()
print(x.grad)

# %% [markdown]
# ## Exercise
#
# Write `standardize(table)` without a loop: in its result each column has mean 0 and standard deviation 1. What does
# it do to a column in which all numbers are equal, and what would you want instead?
#
# The answer is `test_exercise_1` in `tests/test_tutorials.py`.
