"""Environment variables of the shell do not affect a run."""

import subprocess
import sys

import pytest

from project_for_tests import ROOT, environment

SLURM = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    "variables",
    [
        {"MPLBACKEND": "a_backend_that_is_not_installed", "PYTHONSAFEPATH": "1", "HYDRA_FULL_ERROR": "0"},
        pytest.param(
            SLURM | {"SLURM_PROCID": "0", "SLURM_JOB_NAME": "jupyter", "WANDB_MODE": "offline"}, marks=pytest.mark.slow
        ),
        pytest.param(SLURM | {"SLURM_JOB_NAME": "salloc", "PL_TRAINER_MAX_EPOCHS": "7"}, marks=pytest.mark.slow),
    ],
    ids=["Colab", "a shell of srun", "a shell of salloc"],
)
def test_train_and_evaluate_ignore_environment_variables(variables, tmp_path):
    for command in (["train.py", "trainer.max_epochs=2"], ["evaluate.py"]):
        command = [sys.executable, str(ROOT / command[0]), *command[1:]]
        subprocess.run(command, cwd=tmp_path, env=environment() | variables, check=True, timeout=300)


def test_invalid_torch_logs_is_reported(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "trainer.max_epochs=1"]
    variables = environment() | {"TORCH_LOGS": "nonsense"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == "TORCH_LOGS is nonsense, which is invalid. To unset it: unset TORCH_LOGS\n"
