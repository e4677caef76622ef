"""Tests that a resumed run ends with the weights of an uninterrupted run."""

import pytest

from conftest import weights


@pytest.mark.parametrize("experiment", ["linear_regression", pytest.param("mnist", marks=pytest.mark.slow)])
def test_resumed_run_equals_uninterrupted_run(train, script, digits, experiment):
    data = [f"data.root={digits}", "data.num_val=100", "data.batch_size=50"] if experiment == "mnist" else []
    command = [f"experiment={experiment}", *data, "scheduler=constant"]
    (whole,) = train(*command, "trainer.max_epochs=4")
    (interrupted,) = train(*command, "trainer.max_epochs=2")
    script("resume.py", interrupted, "trainer.max_epochs=4")
    expected, found = weights(whole), weights(interrupted)
    assert all(value.equal(found[name]) for name, value in expected.items())
