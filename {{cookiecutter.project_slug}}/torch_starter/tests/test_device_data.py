"""Data sets on the device of the model. (No test has a GPU: here the device with free memory is the CPU.)"""

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
    """Takes the CPU for a device with a gigabyte of free memory."""

    @staticmethod
    def free_memory(device):
        return 2**30


class Watch(Callback):
    """Writes down which data sets serve the batches: those of the data module, or others."""

    served: list[str]

    def __init__(self):
        Watch.served = []

    def look(self, split, trainer, loader):
        own = getattr(trainer.datamodule, f"{split}_set")
        Watch.served.append(f"{split} {'as it is' if loader.dataset is own else 'copy'}")

    def on_train_batch_start(self, trainer, *args):
        self.look("train", trainer, trainer.train_dataloader)

    def on_validation_batch_start(self, trainer, *args):
        self.look("val", trainer, trainer.val_dataloaders)

    def on_test_batch_start(self, trainer, *args):
        self.look("test", trainer, trainer.test_dataloaders)


FORCED = "callbacks.device_data._target_=test_device_data.AlwaysDeviceData"
WATCH = "+callbacks.watch._target_=test_device_data.Watch"
CROP = "+data.augmentation.crop={_target_:torch_starter.data.batch_augmentation.RandomCrop,padding:2}"
IMAGES = "+data.augmentation.crop={_target_:torchvision.transforms.v2.RandomCrop,size:28,padding:2}"


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


def test_a_run_is_the_same_with_and_without_copies(run):
    expected, served = run(CROP, "callbacks.device_data=null")
    assert served == {"train as it is", "val as it is", "test as it is"}
    found, served = run(CROP, FORCED)
    assert served == {"train copy", "val copy", "test copy"}
    assert_same(found, expected)


def test_on_the_cpu_nothing_is_copied(run):
    _, served = run(CROP)
    assert served == {"train as it is", "val as it is", "test as it is"}


@pytest.mark.parametrize("limit", ["trainer.limit_train_batches=2", "trainer.overfit_batches=2"])
def test_limits_change_nothing(run, limit):
    expected, _ = run(limit, "callbacks.device_data=null")
    found, served = run(limit, FORCED)
    assert "train copy" in served
    assert_same(found, expected)


def test_what_does_not_fit_stays(run):
    _, served = run(CROP, FORCED, f"callbacks.device_data.max_share={300 * 785 / 2**30}")
    assert served == {"train as it is", "val copy", "test copy"}, "500, 100 and 200 images"


def test_what_workers_make_stays(run):
    _, served = run(IMAGES, FORCED, "data.num_workers=1")
    assert served == {"train as it is", "val as it is", "test copy"}


def rows(count: int = 10, augment=None) -> TensorBatches:
    return TensorBatches(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), torch.arange(count), augment=augment)


def test_is_copied():
    dataset = rows()
    assert dataset.nbytes == 10 * (16 + 8)
    loader = BatchLoader(dataset, 2)
    assert is_copied(loader, 240)
    assert not is_copied(loader, 239)
    assert not is_copied(torch.utils.data.DataLoader([1, 2]), 2**30)
    assert not is_copied(BatchLoader(dataset, 2, workers=Workers([dataset], 1)), 2**30)
    assert is_copied(BatchLoader(rows(augment=augmentation({"crop": RandomCrop(1)}, 0)), 2), 240)
    per_image = rows(augment=Augmentation({"crop": lambda image: image}, 0))
    assert not is_copied(BatchLoader(per_image, 2), 2**30), "its random numbers are those of the CPU"

    class Own:
        """A data set that stays where it is."""

        def __len__(self):
            return 3

        def batch(self, epoch, indices):
            return (indices,)

    assert not is_copied(BatchLoader(Own(), 2), 2**30)
    assert [batch.tolist() for (batch,) in BatchLoader(Own(), 2)] == [[0, 1], [2]]


def test_a_copy_has_the_same_batches():
    dataset = rows(50, augmentation({"crop": RandomCrop(1)}, seed=1))
    copy = dataset.to(torch.device("cpu"))
    assert copy is not dataset
    for batch, other in zip(BatchLoader(dataset, 8, 3), BatchLoader(copy, 8, 3), strict=True):
        assert all(map(torch.equal, batch, other))


def test_the_loader_has_its_data_set_again_at_the_end():
    class Model(BoringModel):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0], batch_idx)

    dataset = TensorBatches(torch.ones(8, 32))
    loader = BatchLoader(dataset, 2, 0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=[AlwaysDeviceData(1.0)], enable_model_summary=False, **quiet)
    trainer.fit(Model(), loader)
    assert loader.dataset is dataset
