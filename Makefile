# Each target sets up what it needs; it requires Python 3.11 or newer, git and make. uv downloads every package once per
# machine (PyTorch with CUDA is about 5 GB on Linux) and links it into each environment.

PYTHON ?= python3
VERSIONS := >=3.11
UV := .tools/bin/uv
COOKIECUTTER := .tools/bin/uvx cookiecutter
RUN := $(UV) run --no-project --python .venv
TEMPLATE := {{cookiecutter.project_slug}}
# The folder that contains MNIST/raw: for bench, bench-gpu, bench-demo, faults and screenshots.
DATA ?= data

.PHONY: demo test lint slow bench bench-gpu bench-images bench-demo faults screenshots tutorials clean

demo: build/my_project
	$(UV) venv --quiet --allow-existing --python '$(VERSIONS)' build/my_project/.venv
	$(UV) pip install --quiet --python build/my_project/.venv -e build/my_project
	cd build/my_project && .venv/bin/python train.py
	@echo
	@echo "This project is in build/my_project. Go there and look around:"
	@echo "    cd build/my_project && source .venv/bin/activate"
	@echo "    tensorboard --logdir outputs"
	@echo "    python train.py experiment=mnist"

# The tests of a generated project run on their own, because they already use two processes.
test: .venv/ready
	$(RUN) pytest -n 2 --dist loadfile --ignore tests/test_generated_project.py
	$(RUN) pytest tests/test_generated_project.py

lint: .venv/ready
	$(RUN) ruff check hooks tests benchmarks docs
	$(RUN) ruff format --check hooks tests benchmarks docs
	$(RUN) pyrefly check

# Tests that take minutes: pairs of config keys; deleting parts of a project and running its remaining tests; tutorials as
# notebooks; the update of an old project; and a project's own slow tests.
slow: .venv/ready
	$(RUN) pytest -m slow

bench: .venv/ready build/my_project
	.venv/bin/python benchmarks/speed.py --project build/my_project --data '$(DATA)'

# Needs a GPU; without one it runs the same code on the CPU, in smaller sizes.
bench-gpu: .venv/ready build/my_project
	.venv/bin/python benchmarks/gpu.py --project build/my_project --data '$(DATA)'

bench-images: .venv/ready build/my_project
	.venv/bin/python benchmarks/image_folder.py --project build/my_project

bench-demo: .venv/ready build/my_project
	.venv/bin/python benchmarks/demo.py --project build/my_project --data '$(DATA)'

faults: .venv/ready build/my_project
	.venv/bin/python benchmarks/faults.py --project build/my_project --data '$(DATA)'

screenshots: .venv/ready build/my_project
	.venv/bin/python docs/screenshots.py --project build/my_project --data '$(DATA)'

# Regenerates the figures of tutorials/README.md.
tutorials: .venv/ready
	$(COOKIECUTTER) . --no-input --overwrite-if-exists --output-dir build/tutorials
	cd build/tutorials/my_project && for chapter in tutorials/[1-8]*.py; do ../../../.venv/bin/python $$chapter || exit 1; done
	cp build/tutorials/my_project/outputs/tutorials/*.png '$(TEMPLATE)/tutorials/figures'

clean:
	rm -rf build .venv .tools

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet uv

# The tests run a generated project, so this environment has its packages too.
.venv/ready: pyproject.toml cookiecutter.json $(TEMPLATE)/pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python '$(VERSIONS)' .venv
	$(COOKIECUTTER) . --no-input --overwrite-if-exists --output-dir build/packages
	$(UV) pip install --quiet --python .venv --group dev -r build/packages/my_project/pyproject.toml --all-extras
	touch $@

build/my_project: | $(UV)
	$(COOKIECUTTER) . --no-input --output-dir build
