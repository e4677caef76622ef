"""Remove the tutorials if the answer is no, and print the next commands.

A conditional folder name cannot leave the tutorials out: rendered to nothing, it would name the project itself.
"""

from pathlib import Path

# Files are removed one by one: when a project is regenerated, the folder may hold the user's own files.
TUTORIALS = """
    tests/test_tutorials.py
    tutorials/1_tensors.py
    tutorials/2_autograd.py
    tutorials/3_model_and_loop.py
    tutorials/4_optimizers.py
    tutorials/5_linear_regression.py
    tutorials/6_torchvision.py
    tutorials/7_dynamic_graphs.py
    tutorials/8_lightning_and_hydra.py
    tutorials/README.md
    tutorials/README.vi.md
    tutorials/computation_graph.py
    tutorials/drawn_digits.py
    tutorials/figures/computation_graph.png
    tutorials/figures/digits.png
    tutorials/figures/dynamic_graphs.png
    tutorials/figures/finite_differences.png
    tutorials/figures/linear_regression.png
    tutorials/figures/loop.png
    tutorials/figures/model_and_loop.png
    tutorials/figures/optimizers.png
    tutorials/figures/rgb_and_bgr.png
    tutorials/this_project.py
    tutorials/vi/1_tensors.md
    tutorials/vi/2_autograd.md
    tutorials/vi/3_model_and_loop.md
    tutorials/vi/4_optimizers.md
    tutorials/vi/5_linear_regression.md
    tutorials/vi/6_torchvision.md
    tutorials/vi/7_dynamic_graphs.md
    tutorials/vi/8_lightning_and_hydra.md
    tutorials/vi/weave.py
"""

if "{{ cookiecutter.tutorials }}" == "no":
    for name in TUTORIALS.split():
        Path(name).unlink()
    for folder in (Path("tutorials/figures"), Path("tutorials/vi"), Path("tutorials")):
        if not any(folder.iterdir()):
            folder.rmdir()

print(
    """
Next:
    cd {{ cookiecutter.project_slug }}
    pip install -e .      # or, with uv: uv run train.py
    python train.py
{% if cookiecutter.tutorials == "yes" %}
New to PyTorch? Start with tutorials/README.md.
{% endif %}"""
)
