"""Test pairs of config keys with values at and beyond their limits: a run works, or ends with one message."""

import contextlib
import io
import multiprocessing
import os
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from tempfile import TemporaryDirectory

import hydra
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

SCHEDULERS = ("constant", "cosine", "one_cycle", "plateau", "step")
OPTIMIZERS = ("adam", "sgd", "rmsprop", "adagrad")
CHOICES = [
    [f"scheduler={scheduler}", f"optimizer={optimizer}", f"callbacks={callbacks}"]
    for scheduler in SCHEDULERS
    for optimizer in OPTIMIZERS
    for callbacks in ("default", "early_stopping")
]
# Limits every run, regardless of the number of epochs.
SHORT = ["trainer.max_epochs=3", "trainer.max_time=00:00:00:02"]
# Values that do not start processes or wait for other machines.
SAFE_VALUES = {"trainer.devices": ["-1", "0", "0.5", "foo"], "trainer.num_nodes": ["-1", "0", "0.5", "foo"]}


def leaves(config, parents=()):
    """Yield the dotted key and the value of each leaf of a config."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, (*parents, name))
        else:
            yield ".".join((*parents, name)), value


def keys(project):
    """Return the keys that a user sees and their defaults, for each of CHOICES."""
    sys.path.insert(0, str(project))
    import torch_starter  # noqa: F401  (the resolvers)

    found = []
    with hydra.initialize_config_dir(str(project / "configs"), version_base="1.3"):
        for choices in CHOICES:
            config = OmegaConf.to_container(hydra.compose("train", choices))
            found.append(
                {
                    key: default
                    for key, default in leaves(config)
                    # Users do not set the links between groups or the folder that all tests write to.
                    if not key.endswith(("_target_", "_partial_", "plugins", "run_dir", "trainer.max_time"))
                    and key not in ("model.optimizer", "model.scheduler")
                }
            )
    return found


def train(project, arguments):
    """Run `train.py ARGUMENTS` in this process, and return its final message or None."""
    os.environ.pop("HYDRA_FULL_ERROR", None)
    sys.argv = ["train.py", *arguments]
    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with TemporaryDirectory() as folder, contextlib.chdir(folder), silence[0], silence[1]:
        try:
            runpy.run_path(str(project / "train.py"), run_name="__main__")
        except SystemExit as exit_:
            return exit_.code


def values(default):
    """Return values that a user may type: null, the minimum, fractions, too large values, and other types."""
    if isinstance(default, bool):
        return ["null", "true", "false", "7"]
    if isinstance(default, str) and "${epochs_between" not in default:
        return ["null", "foo", "0"]
    if isinstance(default, list):
        return ["null", "[]", "[0]", "[1,2]", "-1"]
    return ["null", "-1", "0", "0.5", "1", "3", "foo"]


@pytest.fixture(scope="module")
def process(bake):
    project = bake()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield project, executor


@pytest.mark.slow
def test_two_keys_work_or_fail_with_one_message(process):
    project, executor = process
    defaults = executor.submit(keys, project).result()

    @st.composite
    def arguments(draw):
        number = draw(st.integers(0, len(CHOICES) - 1))
        pair = draw(st.lists(st.sampled_from(sorted(defaults[number])), min_size=2, max_size=2, unique=True))
        typed = [
            f"{key}={draw(st.sampled_from(SAFE_VALUES.get(key) or values(defaults[number][key])))}" for key in pair
        ]
        return [*CHOICES[number], *SHORT, *typed]

    @settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(arguments())
    def check(arguments):
        message = executor.submit(train, project, arguments).result()
        assert message is None or isinstance(message, str)
        if message:
            assert "Traceback" not in message
            assert len(message.splitlines()) <= 5

    check()
