# %% [markdown]
# # 7. Dynamic graphs
#
# PyTorch records while Python runs, so that the network may be any Python: `if`, `for`, recursion. The graph is
# whatever was run this time.

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import computation_graph
from this_project import OUTPUTS


class TwoPaths(nn.Module):
    """Goes through two layers if the sum of its input is positive, and through one if it is not."""

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
# One network, two inputs, two records. What was not run is not in the record, and gets no gradient: after the
# negative input `first` and `second` have none, and an optimizer leaves them alone.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=[2, 1], layout="constrained")
for place, (title, x) in zip(axes, {"sum > 0": positive, "sum ≤ 0": negative}.items(), strict=True):
    output = network(x)
    names = dict(network.named_parameters())
    computation_graph.draw(output, names, place)
    place.set_title(title)
figure.savefig(OUTPUTS / "dynamic_graphs.png")

network(negative).backward()
print({name: parameter.grad is not None for name, parameter in network.named_parameters()})

# %% [markdown]
# In a picture of a `Linear`, `Addmm` is its product and sum, and `T` turns its weight around.
#
# ## A batch goes one way
#
# `x.sum()` is of the whole batch here: all of its samples go the same way, and what one sample gets depends on
# its neighbours. A network that decides for each sample computes both paths and chooses, with `torch.where`, or
# sorts the samples first. `models/dynamic.py` of this project (`python train.py experiment=mnist model=dynamic`)
# does the latter.
#
# ## Under torch.compile
#
# `torch.compile` reads the Python code, makes graphs of it, and gives them to a backend that turns each into
# machine code. The default, inductor, takes its time, seconds to minutes, and on the CPU it needs a C++ compiler.
# Ours only notes what it is given, and runs it as it is.

# %%
graphs = []


def note(graph, inputs):
    graphs.append([node.target for node in graph.graph.nodes if node.op.startswith("call")])
    return graph.forward


compiled = torch.compile(network, backend=note)
for title, x in {"positive": positive, "negative": negative, "positive again": positive}.items():
    before = len(graphs)
    same = torch.equal(compiled(x), network(x))
    print(f"{title}: {len(graphs) - before} new graphs; the same result: {same}")
for number, graph in enumerate(graphs, start=1):
    print(number, [getattr(target, "__name__", str(target)) for target in graph])

# %% [markdown]
# A graph cannot depend on numbers that nobody knows yet. So where Python asks whether the sum is positive, the
# graph breaks: the first graph computes the sum, Python decides, and each path is a graph of its own, made when
# it is taken for the first time. That makes 3 graphs: 2 with the first positive input, 1 more with the first
# negative one, and no more after that. It is as right as before, and less fast: between graphs there is Python,
# and on a GPU the machine waits for the number.
#
# With `fullgraph=True` a break is an error, which is how one finds them.

# %%
torch.compiler.reset()
try:
    torch.compile(network, backend=note, fullgraph=True)(positive)
except Exception as error:
    print(type(error).__name__, "-", str(error).splitlines()[0])

# %% [markdown]
# ## Without a break
#
# `torch.where` takes both, so that there is nothing to decide: 1 graph for all inputs, at the price of both
# paths. An exported file (`python export.py`) has to be such a graph too, for no Python goes with it.

# %%


class BothPaths(TwoPaths):
    def forward(self, x):
        long = self.second(torch.relu(self.first(x)))
        return torch.where(x.sum(dim=1, keepdim=True) > 0, long, self.shortcut(x))


both = BothPaths()
both.load_state_dict(network.state_dict())
graphs_before = len(graphs)
compiled_both = torch.compile(both, backend=note, fullgraph=True)
same = [torch.equal(compiled_both(x), network(x)) for x in (positive, negative)]
graphs_of_both = len(graphs) - graphs_before
print(graphs_of_both, "graph; the same results:", same)

# %% [markdown]
# ## Exercise
#
# Write `halved(x)`: halves x until its absolute value is at most 1, in a `while` loop. What is its derivative at
# 5, and at 0.5? Think of the record, then ask autograd. What is it exactly at 1, and from either side?
#
# The answer is `test_exercise_7` in `tests/test_tutorials.py`.
