"""Says what to type next. Whatever a file name can decide is decided there, not here."""

print(
    """
Next:
    cd {{ cookiecutter.project_slug }}
    pip install -e .
    python train.py
"""
)
