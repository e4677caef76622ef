"""timm's networks and pretrained weights."""

import logging
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from conftest import PACKAGE, ROOT, environment, weights

timm = pytest.importorskip("timm", reason='it is not installed: pip install -e ".[timm]"')

SMALL = ["experiment=mnist", "model=timm", "data.num_val=100", "data.batch_size=50", "trainer.max_epochs=1"]
TRANSFER = ["experiment=transfer", "model=timm", "data.image_shape=[3,32,32]", "data.num_workers=0"]


def make(*overrides):
    """A model in eval mode."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["run_dir=nowhere", "model=timm", *overrides])
    return instantiate(config.model, _convert_="all").eval()


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """An empty folder where huggingface_hub looks for what it has downloaded; and it downloads nothing."""
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def pretrained(hub):
    """Puts weights there. (Their numbers are random.)"""
    from safetensors.torch import save_file

    def pretrained(name):
        torch.manual_seed(0)
        network = timm.create_model(name)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics that are not those of a new network
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        folder, commit = hub / f"models--timm--{name}", "0" * 40
        for path in (folder / "refs", folder / "snapshots" / commit):
            path.mkdir(parents=True)
        (folder / "refs/main").write_text(commit)
        save_file(network.state_dict(), folder / "snapshots" / commit / "model.safetensors")
        return network.eval()

    return pretrained


# Any network by its name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_any_classifier_by_its_name(train, digits, name):
    train(*SMALL, f"model.name={name}", f"data.root={digits}", "trainer.fast_dev_run=true")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ([], ["model.name has no default"]),
        (["model.name=resnet19"], ["model.name is resnet19", "Nearest: resnet"]),
        (["model.name=hf-hub:somebody/network"], ["model.name is hf-hub:somebody/network", "Nearest: none"]),
        (["model.name=resnet18.a1_in1k"], ["write model.name=resnet18 model.weights=a1_in1k"]),
        (["model.name=test_resnet", "model.weights=BEST"], ["model.weights is BEST", "DEFAULT, r160_in1k, null"]),
        (["model.name=test_mambaout", "model.weights=DEFAULT"], ["test_mambaout has: null for none"]),
        (["model.name=nest_tiny", "model.image_size=50"], ["image_size is 50", "model.image_size=null takes 224"]),
    ],
    ids=lambda value: " ".join(value) if "=" in str(value) and "model.name=" in value[0] else "",
)
def test_a_network_that_is_not_there_is_explained(train, digits, arguments, messages):
    with pytest.raises(SystemExit) as exit_:
        train(*SMALL, f"data.root={digits}", *arguments)
    for message in messages:
        assert message in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 2


@pytest.mark.slow
def test_without_the_package_it_says_how_to_install_it(train, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(SystemExit, match=re.escape('pip install -e ".[timm]"')):
        train(*SMALL, f"data.root={digits}", "model.name=test_resnet")


@pytest.mark.slow
def test_what_does_not_need_the_package_does_not_import_it():
    code = f"import sys, {PACKAGE}.models.timm_classifier; sys.exit('timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True)


def test_images_come_in_a_size_that_the_network_takes():
    vit, resnet = "model.name=test_vit", "model.name=test_resnet"
    for overrides, shape, size in (
        ([vit], (28, 28), (160, 160)),
        ([vit, "model.image_size=64"], (28, 28), (64, 64)),
        ([vit, "model.weights=DEFAULT"], (200, 180), (160, 160)),
        ([vit], (160, 160), (160, 160)),
        ([resnet], (28, 28), (32, 32)),
        ([resnet], (200, 180), (200, 180)),
        ([resnet, "model.image_size=64"], (28, 28), (64, 64)),
        ([resnet, "model.weights=DEFAULT"], (28, 28), (160, 160)),
        ([resnet, "model.weights=r160_in1k", "model.image_size=96"], (28, 28), (96, 96)),
        (["model.name=halonet26t"], (28, 28), (256, 256)),
    ):
        model = make("data=mnist", f"data.image_shape=[1,{shape[0]},{shape[1]}]", *overrides)
        seen = []
        model.backbone.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].shape))
        assert model(torch.zeros(1, 1, *shape, dtype=torch.uint8)).shape == (1, 10)
        assert seen == [(1, 1, *size)], overrides


# Pretrained weights


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_grey_images_give_what_they_give_in_color(pretrained, monkeypatch, name):
    # What it says must not go to the log of an earlier test, which may be gone.
    monkeypatch.setattr(logging.getLogger("timm"), "propagate", False)
    network = pretrained(f"{name}.r160_in1k")
    arguments = [f"model.name={name}", "model.weights=DEFAULT"]
    grey, color = make("data=mnist", *arguments), make("data=cifar10", *arguments)
    for model in (grey, color):
        model.backbone.load_state_dict(model.pretrained_backbone().state_dict())
    images = torch.randint(256, (2, 1, 160, 160), dtype=torch.uint8)
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network(images.repeat(1, 3, 1, 1) / 127.5 - 1)  # for all that these weights want is from -1 to 1
        assert color.backbone(color.normalize(images.repeat(1, 3, 1, 1))).allclose(expected, atol=1e-4)
        assert grey.backbone(grey.normalize(images)).allclose(expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_training_starts_from_the_weights_and_needs_them_once(pretrained, hub, train, script, image_folder, name):
    network = pretrained(f"{name}.r160_in1k")
    small = ["data=image_folder", f"data.root={image_folder}", "data.image_shape=[3,32,32]", "model.image_size=160"]
    quick = ["optimizer=sgd", "optimizer.lr=0", "trainer.max_epochs=1", "data.num_workers=0"]
    (run,) = train(*small, "model=timm", f"model.name={name}", "model.weights=r160_in1k", *quick)
    for key, value in network.named_parameters():
        if not key.startswith(("fc.", "head.")):
            assert weights(run)[f"network.backbone.{key}"].equal(value)
    assert weights(run)["mean"].flatten().tolist() == [0.5, 0.5, 0.5]
    wanted = f"{name}.r160_in1k is made for pictures of data.image_shape=[3,160,160] data.center_crop_share=0.95"
    assert wanted in (run / "train.log").read_text()

    shutil.rmtree(hub)  # on another machine, say
    script("evaluate.py", run)
    script("export.py", run, "--format", "pt2")
    script("predict.py", run, image_folder / "red/0_00.jpg")
    script("resume.py", run, "trainer.max_epochs=2")


@pytest.mark.slow
def test_without_a_network_the_message_says_which_folder_belongs_where(hub, train, image_folder):
    with pytest.raises(SystemExit) as exit_:
        train(*TRANSFER, "model.name=test_resnet", f"data.root={image_folder}")
    assert f"are not in {hub / 'models--timm--test_resnet.r160_in1k'} and could not be downloaded" in exit_.value.code
    assert "hf download timm/test_resnet.r160_in1k" in exit_.value.code
    assert "model.weights=null" in exit_.value.code
    assert len(exit_.value.code.splitlines()) == 2


@pytest.mark.slow
def test_weights_that_are_a_file_are_named_with_their_address(train, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # Where nobody answers.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as exit_:
        train(*TRANSFER, "model.name=legacy_seresnet18", f"data.root={image_folder}")
    file = os.path.basename(timm.get_pretrained_cfg("legacy_seresnet18").url)
    assert str(tmp_path / "torch/hub/checkpoints" / file) in exit_.value.code
    assert len(exit_.value.code.splitlines()) == 2


@pytest.mark.slow
def test_the_head_is_trained_first_and_then_all(pretrained, train, script, image_folder):
    network = pretrained("test_resnet.r160_in1k")
    small = ["model.name=test_resnet", "model.image_size=32", "data.batch_size=16"]
    command = [*TRANSFER, *small, f"data.root={image_folder}", "callbacks.fine_tuning.unfreeze_backbone_at_epoch=1"]
    (run,) = train(*command, "trainer.max_epochs=1")
    before = {f"network.backbone.{name}": value for name, value in network.state_dict().items()}
    common = before.keys() & weights(run).keys()
    assert len(common) > 20
    assert all(weights(run)[name].equal(before[name]) for name in common), "weights and statistics"
    script("resume.py", run, "trainer.max_epochs=2")
    for name in ("conv1.0.weight", "layer4.0.bn1.running_mean"):
        assert not weights(run)[f"network.backbone.{name}"].equal(network.state_dict()[name])
