# Each target sets up what it needs, given Python 3.11 or newer, git and make. uv downloads every package once per
# machine (PyTorch with CUDA is some 5 GB on Linux) and links it into each environment.

PYTHON ?= python3
# Hydra 1.3 does not start on Python 3.14; uv finds another Python where that is the only one.
VERSIONS := >=3.11,<3.14
UV := .tools/bin/uv
COOKIECUTTER := .tools/bin/cookiecutter
TEMPLATE := {{cookiecutter.project_slug}}
# A folder that has MNIST/raw, for `make bench`, `make faults` and `make screenshots`.
DATA ?= data

.PHONY: demo test lint bench bench-pictures faults screenshots clean

demo: build/my_project
	$(UV) venv --quiet --allow-existing --python '$(VERSIONS)' build/my_project/.venv
	$(UV) pip install --quiet --python build/my_project/.venv -e build/my_project
	cd build/my_project && .venv/bin/python train.py
	@echo
	@echo "This project is in build/my_project. Go there and look around:"
	@echo "    cd build/my_project && source .venv/bin/activate"
	@echo "    tensorboard --logdir outputs"
	@echo "    python train.py experiment=mnist"

test: .venv/ready
	.venv/bin/python -m pytest

lint: .venv/ready
	.venv/bin/ruff check tests benchmarks docs
	.venv/bin/ruff format --check tests benchmarks docs

bench: .venv/ready build/my_project
	.venv/bin/python benchmarks/speed.py --project build/my_project --data '$(DATA)'

bench-pictures: .venv/ready build/my_project
	.venv/bin/python benchmarks/pictures.py --project build/my_project

faults: .venv/ready build/my_project
	.venv/bin/python benchmarks/faults.py --project build/my_project --data '$(DATA)'

screenshots: .venv/ready build/my_project
	.venv/bin/python docs/screenshots.py --project build/my_project --data '$(DATA)'

clean:
	rm -rf build .venv .tools

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet uv cookiecutter

# What the tests run is a generated project, so its packages belong here too.
.venv/ready: pyproject.toml cookiecutter.json $(TEMPLATE)/pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python '$(VERSIONS)' .venv
	$(UV) pip install --quiet --python .venv --group dev
	$(COOKIECUTTER) . --no-input --overwrite-if-exists --output-dir build/packages
	$(UV) pip install --quiet --python .venv -r build/packages/my_project/pyproject.toml --extra dev --extra export --extra sweep
	touch $@

build/my_project: | $(UV)
	$(COOKIECUTTER) . --no-input --output-dir build
