"""The limit: a plain PyTorch loop over the same tensors, with the network and optimizer of the project's config.

    python bare_loop.py OUTPUT.json EPOCHS OVERRIDE…

Run by speed.py in the folder of a generated project. No metrics, no logging, no checkpoints.
"""

import json
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch.nn.functional import cross_entropy

output, epochs, *overrides = sys.argv[1:]
sys.path.insert(0, ".")
with initialize_config_dir(str(Path("configs").resolve()), version_base="1.3"):
    config = compose("train", overrides)
torch.manual_seed(config.seed)
data = instantiate(config.data)
data.setup("fit")
images, labels = data.train_set.tensors
mean, std = torch.tensor(data.mean).view(-1, 1, 1), torch.tensor(data.std).view(-1, 1, 1)
network = instantiate(config.model.network).to(memory_format=torch.channels_last)
optimizer = instantiate(config.optimizer)(network.parameters())

seconds = []
for _ in range(int(epochs)):
    start = time.perf_counter()
    for batch in torch.randperm(len(images)).split(config.data.batch_size):
        inputs = (images[batch] / 255 - mean) / std
        loss = cross_entropy(network(inputs.contiguous(memory_format=torch.channels_last)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds.append(time.perf_counter() - start)
Path(output).write_text(json.dumps(seconds))
