"""Tests of data sets on the device of the model; without a GPU, the CPU acts as the device with free memory."""

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from test_resume import assert_same, state
from torch_starter.callbacks.device_data import DeviceData, is_copied
from torch_starter.data.augmentation import Augmentation, augmentation
from torch_starter.data.batch_augmentation import RandomCrop
from torch_starter.data.batches import BatchLoader, TensorBatches, Workers


class AlwaysDeviceData(DeviceData):
    """Treats the CPU as a device with a gigabyte of free memory."""

    @staticmethod
    def free_memory(device):
        return 2**30


class Watch(Callback):
    """Records whether batches come from the data sets of the data module or from copies."""

    served: list[str]

    def __init__(self):
        Watch.served = []

    def record(self, split, trainer, loader):
        own = getattr(trainer.datamodule, f"{split}_set")
        Watch.served.append(f"{split} {'original' if loader.dataset is own else 'copy'}")

    def on_train_batch_start(self, trainer, *args):
        self.record("train", trainer, trainer.train_dataloader)

    def on_validation_batch_start(self, trainer, *args):
        self.record("val", trainer, trainer.val_dataloaders)

    def on_test_batch_start(self, trainer, *args):
        self.record("test", trainer, trainer.test_dataloaders)


FORCED = "callbacks.device_data._target_=test_device_data.AlwaysDeviceData"
WATCH = "+callbacks.watch._target_=test_device_data.Watch"
CROP = "+data.augmentation.crop={_target_:torch_starter.data.batch_augmentation.RandomCrop,padding:2}"
PER_IMAGE_CROP = "+data.augmentation.crop={_target_:torchvision.transforms.v2.RandomCrop,size:28,padding:2}"


@pytest.fixture
def run(train, digits):
    def run(*options):
        mnist = ["experiment=mnist", "model=mlp", f"data.root={digits}", "data.num_val=100", "data.batch_size=50"]
        (folder,) = train(
            *mnist,
            "trainer.max_epochs=2",
            "trainer.num_sanity_val_steps=1",
            "trainer.log_every_n_steps=1",
            WATCH,
            *options,
        )
        return state(folder), set(Watch.served)

    return run


def test_copies_do_not_change_the_run(run):
    expected, served = run(CROP, "callbacks.device_data=null")
    assert served == {"train original", "val original", "test original"}
    found, served = run(CROP, FORCED)
    assert served == {"train copy", "val copy", "test copy"}
    assert_same(found, expected)


def test_cpu_run_copies_nothing(run):
    _, served = run(CROP)
    assert served == {"train original", "val original", "test original"}


@pytest.mark.parametrize("limit", ["trainer.limit_train_batches=2", "trainer.overfit_batches=2"])
def test_copies_do_not_change_a_limited_run(run, limit):
    expected, _ = run(limit, "callbacks.device_data=null")
    found, served = run(limit, FORCED)
    assert "train copy" in served
    assert_same(found, expected)


def test_too_large_data_set_is_not_copied(run):
    _, served = run(CROP, FORCED, f"callbacks.device_data.max_share={300 * 785 / 2**30}")
    assert served == {"train original", "val copy", "test copy"}, "500, 100, and 200 images"


def test_data_set_with_workers_is_not_copied(run):
    _, served = run(PER_IMAGE_CROP, FORCED, "data.num_workers=1")
    assert served == {"train original", "val original", "test copy"}


def rows(count: int = 10, augment=None) -> TensorBatches:
    return TensorBatches(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count), augment=augment)


def test_is_copied_accepts_only_copyable_data_sets():
    dataset = rows()
    assert dataset.nbytes == 10 * (16 + 8)
    loader = BatchLoader(dataset, 2)
    assert is_copied(loader, 240)
    assert not is_copied(loader, 239)
    assert not is_copied(torch.utils.data.DataLoader([1, 2]), 2**30)
    assert not is_copied(BatchLoader(dataset, 2, workers=Workers([dataset], 1)), 2**30)
    assert is_copied(BatchLoader(rows(augment=augmentation({"crop": RandomCrop(1)}, 0)), 2), 240)
    per_image = rows(augment=Augmentation({"crop": lambda image: image}, 0))
    assert not is_copied(BatchLoader(per_image, 2), 2**30), "its random numbers come from the CPU"

    class NotCopyable:
        """A data set without a ``to`` method."""

        def __len__(self):
            return 3

        def batch(self, epoch, indices):
            return (indices,)

    assert not is_copied(BatchLoader(NotCopyable(), 2), 2**30)
    assert [batch.tolist() for (batch,) in BatchLoader(NotCopyable(), 2)] == [[0, 1], [2]]


def test_copy_has_the_same_batches():
    dataset = rows(50, augmentation({"crop": RandomCrop(1)}, seed=1))
    copy = dataset.to(torch.device("cpu"))
    assert copy is not dataset
    for batch, other in zip(BatchLoader(dataset, 8, 3), BatchLoader(copy, 8, 3), strict=True):
        assert all(map(torch.equal, batch, other))


def test_fit_restores_the_data_set_of_the_loader():
    class Model(BoringModel):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0], batch_idx)

    dataset = TensorBatches(torch.ones(8, 32))
    loader = BatchLoader(dataset, 2, 0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=[AlwaysDeviceData(1.0)], enable_model_summary=False, **quiet)
    trainer.fit(Model(), loader)
    assert loader.dataset is dataset
