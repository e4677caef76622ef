"""Silences, on import, Lightning's messages about itself and warnings about intended behavior."""

import logging
import os
import warnings

import torch
from lightning.pytorch import disable_possible_user_warnings

# Lightning's guesses, such as advice to use more workers for data in memory.
disable_possible_user_warnings()
# Hydra's handlers already print these records.
logging.getLogger("lightning").handlers.clear()
# Lightning 2.6 uses an API that torch has since deprecated; users cannot fix this.
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
# Resuming and evaluating runs do this on purpose.
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`")
# Lightning makes torch query NVIDIA's library for a GPU, and Adam queries in every step. Without a GPU, each query
# searches for the library again, which takes 0.12 ms. torch's default check is free, and safe without a driver.
if not torch.cuda.is_available():
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
