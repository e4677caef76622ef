"""Silences what Lightning says about itself, and what runs here do on purpose; importing it is enough."""

import logging
import os
import warnings

import torch
from lightning.pytorch import disable_possible_user_warnings

# Lightning's guesses, such as that data in memory should have more workers.
disable_possible_user_warnings()
# Lightning's own handler would print once more what Hydra's print.
logging.getLogger("lightning").handlers.clear()
# Lightning 2.6 calls what torch has deprecated since; it is not for the user to mend.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
# What a resumed run, and a run that is asked, do on purpose.
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`")
# Lightning has torch ask NVIDIA's library whether there is a GPU, and Adam asks in each step. Without a GPU that means
# looking for the library again: 0.12 ms. torch's own answer takes no time, and does no harm where there is no driver.
if not torch.cuda.is_available():
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
