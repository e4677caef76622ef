"""Draw the computation graph that autograd has recorded."""

from collections import defaultdict

import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.autograd.graph import Node


def draw(output: Tensor, names: dict[str, Tensor], axes: Axes) -> None:
    """Draw the operations that made ``output``, down to the tensors that require a gradient.

    A gradient that is a single number is printed beside its arrow.

    Args:
        output: a tensor with one element.
        names: the tensors that require a gradient, keyed by the label to print.
        axes: where to draw.
    """
    levels: dict[Node, int] = {}
    below: dict[Node, list[Node]] = {}

    def visit(node: Node, level: int) -> None:
        levels[node] = max(level, levels.get(node, 0))
        below[node] = [child for child, _ in node.next_functions if child]
        for child in below[node]:
            visit(child, level + 1)

    assert output.grad_fn
    visit(output.grad_fn, 0)

    # Record the gradients that each operation passes down, in the order of its inputs.
    gradients: dict[Node, list[Tensor]] = {}
    for node in levels:
        node.register_hook(lambda passed, _, node=node: gradients.update({node: [g for g in passed if g is not None]}))
    torch.autograd.grad(output, list(names.values()), retain_graph=True, allow_unused=True)

    rows = defaultdict(list)
    for node, level in levels.items():
        rows[level].append(node)
    places = {
        node: ((column + 0.5) / len(row), -level) for level, row in rows.items() for column, node in enumerate(row)
    }
    for node, (x, y) in places.items():
        for number, child in enumerate(below[node]):
            child_x, child_y = places[child]
            arrow = {"arrowstyle": "->", "color": "#999999", "shrinkA": 14, "shrinkB": 14}
            axes.annotate("", (child_x, child_y), (x, y), arrowprops=arrow)
            if number < len(gradients.get(node, [])) and gradients[node][number].numel() == 1:
                middle = (x + child_x) / 2, (y + child_y) / 2
                axes.text(*middle, f" {gradients[node][number].item():g} ", color="#D55E00")
        leaf = getattr(node, "variable", None)
        name = next((name for name, tensor in names.items() if tensor is leaf), None)
        label = name or type(node).__name__.removesuffix("Backward0")
        box = {"boxstyle": "round", "facecolor": "#cce5f2" if name else "white", "edgecolor": "#0072B2"}
        axes.text(x, y, label, ha="center", va="center", fontsize=9, bbox=box)
    axes.set(xlim=(0, 1), ylim=(-max(rows) - 0.5, 0.5))
    axes.axis("off")
