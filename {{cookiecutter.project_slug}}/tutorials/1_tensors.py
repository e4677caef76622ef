# %% [markdown]
# # 1. Tensors and devices
#
# A tensor is a block of numbers of one type, in one or more dimensions, on one device. Everything in PyTorch is
# made of them: data, weights, gradients.

# %%
import time

import numpy
import torch

numbers = torch.tensor([1.0, 2.0, 3.0])
print(numbers, numbers.shape, numbers.dtype)

# %% [markdown]
# ## NumPy and back
#
# `numpy()` and `from_numpy` copy nothing: array and tensor are two views of the same memory, so that who changes
# one changes the other. `torch.tensor(array)` copies. (What lives on another device, see below, comes to NumPy by
# `.cpu().numpy()`, a copy.)
#
# The types that they choose by themselves differ: of `1.5` NumPy makes a `float64`, PyTorch a `float32`, which
# takes half of the memory, is faster, and keeps about 7 digits: enough for training. Weights are `float32`, so
# data that comes from NumPy usually wants a `.float()`.

# %%
array = numbers.numpy()
array[0] = 10
print(numbers, "has changed with the array")

back = torch.from_numpy(array)
print(back.data_ptr() == numbers.data_ptr(), "is whether they share their memory")

print(numpy.array([1.5]).dtype, torch.tensor([1.5]).dtype, torch.finfo(torch.float32).eps)

# %% [markdown]
# ## Devices
#
# A tensor lives on the CPU, on an NVIDIA card (`cuda`; AMD's cards have the same name), or on the graphics part
# of a Mac (`mps`). PyTorch knows which there is. Older texts ask `torch.cuda.is_available()` and
# `torch.backends.mps.is_available()` one after the other, which still works.
#
# `pip install torch` is all that it takes on Linux, where it brings CUDA, and on a Mac with Apple Silicon, where
# it brings MPS. On Windows it brings the CPU alone; https://pytorch.org/get-started says from which address the
# wheel with CUDA comes. A machine without any of these needs no other wheel: each runs on the CPU too.

# %%
accelerated = torch.accelerator.is_available()
device = torch.accelerator.current_accelerator() if accelerated else torch.device("cpu")
print("the best device here is", device)

random = torch.rand(2, 3, device=device)
print(random)

# %% [markdown]
# What is computed from tensors on one device stays there; tensors on two devices are an error, and `.to(device)`
# moves one.
#
# A product of two matrices of 1000 × 1000 is 2 billion multiplications and additions. An accelerator is told what
# to do and goes on alone, while Python is already at the next line, so that who measures has to wait for it.

# %%
left, right = torch.rand(2, 1000, 1000).to(device)
left @ right  # the first time, libraries are loaded
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
# Each line is done when it is reached, as in NumPy. There is no graph to build first and no session to run it in:
# x² + 3 of [1, 2] is there at once, and is [4, 7].

# %%
x = torch.tensor([1.0, 2.0])
y = x**2 + 3
print(y)

# %% [markdown]
# ## Broadcasting
#
# Where a dimension is missing, or is 1, the tensor is read as if it were repeated; as in NumPy, and again nothing
# is copied. Shapes are compared from the right: (3, 2) and (2,) fit, and so do (3, 2) and (3, 1).

# %%
table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]])
print(table - table.mean(dim=0))  # each column without its mean

# %% [markdown]
# ## What NumPy lacks
#
# Two things above all, and they are why PyTorch exists. An array knows no device but the CPU. And an array does
# not know where it came from; a tensor can remember, and then it gives the derivative of a result with respect to
# anything that went into it. Of the sum of x² + 3 that is 2x, here [2, 4]. How, is the next chapter.

# %%
x.requires_grad_()
total = (x**2 + 3).sum()
total.backward()
print(x.grad)

# %% [markdown]
# ## Exercise
#
# Write `standardised(table)`: each column has mean 0 and standard deviation 1 afterwards; without a loop. What
# does it do to a column in which all numbers are equal, and what would you want?
#
# The answer is `test_exercise_1` in `tests/test_tutorials.py`.
