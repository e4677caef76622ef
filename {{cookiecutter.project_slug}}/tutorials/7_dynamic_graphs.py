# %% [markdown]
# # 7. Dynamic graphs
#
# PyTorch records while Python runs, so a network may be any Python code: `if`, `for`, recursion. The graph is
# whatever ran this time.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import computation_graph
from this_project import OUTPUTS


class TwoPaths(nn.Module):
    """A network that uses two layers if the sum of its input is positive, and one layer if it is not."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 1)
        self.shortcut = nn.Linear(4, 1)

    def forward(self, x):
        if x.sum() > 0:
            return self.second(torch.relu(self.first(x)))
        return self.shortcut(x)


torch.manual_seed(0)
network = TwoPaths()
positive, negative = torch.ones(1, 4), -torch.ones(1, 4)

# %% [markdown]
# ## Its two graphs
#
# One network, two inputs, two records. A layer that did not run is not in the record and gets no gradient: `first`
# and `second` are skipped after the negative input and have none, and an optimizer leaves them alone.

# %%
figure, both_axes = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=[2, 1], layout="constrained")
for axes, (title, x) in zip(both_axes, {"sum > 0": positive, "sum ≤ 0": negative}.items(), strict=True):
    output = network(x)
    names = dict(network.named_parameters())
    computation_graph.draw(output, names, axes)
    axes.set_title(title)
figure.savefig(OUTPUTS / "dynamic_graphs.png")

network(negative).backward()
print({name: parameter.grad is not None for name, parameter in network.named_parameters()})

# %% [markdown]
# In the graph of a `Linear`, `Addmm` is the product and the sum, and `T` transposes the weight.
#
# ## A batch takes one path
#
# Here `x.sum()` is the sum of the whole batch: all samples take the same path, and the result for one sample depends
# on the others in its batch. A network that decides per sample either computes both paths and selects with
# `torch.where`, or sorts the samples first. `models/dynamic.py` of this project (`python train.py experiment=mnist
# model=dynamic`) does the latter.
#
# ## With torch.compile
#
# `torch.compile` reads the Python code, turns it into graphs, and passes them to a backend that compiles each to
# machine code. The default backend, inductor, takes seconds to minutes, and on the CPU it needs a C++ compiler. The
# backend below only records each graph and runs it unchanged.

# %%
graphs = []


def record(graph, inputs):
    graphs.append([node.target for node in graph.graph.nodes if node.op.startswith("call")])
    return graph.forward


compiled = torch.compile(network, backend=record)
for title, x in {"positive": positive, "negative": negative, "positive again": positive}.items():
    before = len(graphs)
    same = torch.equal(compiled(x), network(x))
    print(f"{title}: {len(graphs) - before} new graphs; same result: {same}")
for number, graph in enumerate(graphs, start=1):
    print(number, [getattr(target, "__name__", str(target)) for target in graph])

# %% [markdown]
# A graph cannot depend on numbers that are not known yet. So where Python asks whether the sum is positive, the graph
# breaks: the first graph computes the sum, Python decides, and each path is a graph of its own, compiled the first
# time it is taken. That makes 3 graphs: 2 with the first positive input, 1 more with the first negative one, and none
# after that. The result is as correct as before, but slower to compute: Python runs between the graphs, and a GPU has
# to wait for the decision.
#
# With `fullgraph=True` a graph break is an error. That is how you find them.

# %%
torch.compiler.reset()
try:
    torch.compile(network, backend=record, fullgraph=True)(positive)
except Exception as error:
    print(type(error).__name__, "-", str(error).splitlines()[0])

# %% [markdown]
# ## Without a graph break
#
# `torch.where` computes both paths, so there is nothing to decide: 1 graph for all inputs, at the cost of both paths.
# An exported file (`python export.py`) must be such a graph too, because it contains no Python.

# %%


class BothPaths(TwoPaths):
    def forward(self, x):
        long = self.second(torch.relu(self.first(x)))
        return torch.where(x.sum(dim=1, keepdim=True) > 0, long, self.shortcut(x))


both = BothPaths()
both.load_state_dict(network.state_dict())
graphs_before = len(graphs)
compiled_both = torch.compile(both, backend=record, fullgraph=True)
same = [torch.equal(compiled_both(x), network(x)) for x in (positive, negative)]
graphs_of_both = len(graphs) - graphs_before
print(graphs_of_both, "graph; same results:", same)

# %% [markdown]
# ## Exercise
#
# Write `halve(x)`, which halves x in a `while` loop until its absolute value is at most 1. What is its derivative at
# 5, and at 0.5? Think of the record, then ask autograd. What is it exactly at 1, and on either side of it?
#
# The answer is `test_exercise_7` in `tests/test_tutorials.py`.
