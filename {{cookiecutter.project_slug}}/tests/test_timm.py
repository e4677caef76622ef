"""Tests of timm's networks and pretrained weights."""

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
    """Return a model in eval mode."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["run_dir=nowhere", "model=timm", *overrides])
    return instantiate(config.model, _convert_="all").eval()


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """Return an empty cache folder for huggingface_hub, in offline mode."""
    folder = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def pretrained(hub):
    """Return a function that puts random weights into the cache."""
    from safetensors.torch import save_file

    def pretrained(name):
        torch.manual_seed(0)
        network = timm.create_model(name)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics that differ from those of a new network
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        folder, commit = hub / f"models--timm--{name}", "0" * 40
        for path in (folder / "refs", folder / "snapshots" / commit):
            path.mkdir(parents=True)
        (folder / "refs/main").write_text(commit)
        save_file(network.state_dict(), folder / "snapshots" / commit / "model.safetensors")
        return network.eval()

    return pretrained


# Networks by name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_convnext", "test_efficientnet", "test_nfnet"])
def test_network_trains_by_name(train, digits, name):
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
        (["model.name=test_mambaout", "model.weights=DEFAULT"], ["the choices for test_mambaout are: null."]),
        (["model.name=nest_tiny", "model.image_size=50"], ["image_size is 50", "model.image_size=null uses 224"]),
    ],
    ids=lambda value: " ".join(value) if "=" in str(value) and "model.name=" in value[0] else "",
)
def test_invalid_network_is_explained(train, digits, arguments, messages):
    with pytest.raises(SystemExit) as exit_:
        train(*SMALL, f"data.root={digits}", *arguments)
    for message in messages:
        assert message in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 2


@pytest.mark.slow
def test_missing_package_names_install_command(train, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    with pytest.raises(SystemExit, match=re.escape('pip install -e ".[timm]"')):
        train(*SMALL, f"data.root={digits}", "model.name=test_resnet")


@pytest.mark.slow
def test_module_does_not_import_timm():
    code = f"import sys, {PACKAGE}.models.timm_classifier; sys.exit('timm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True)


def test_images_are_resized_for_the_network():
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
def test_grayscale_images_match_rgb_images(pretrained, monkeypatch, name):
    # timm's messages must not go to the log file of an earlier test, which may no longer exist.
    monkeypatch.setattr(logging.getLogger("timm"), "propagate", False)
    network = pretrained(f"{name}.r160_in1k")
    arguments = [f"model.name={name}", "model.weights=DEFAULT"]
    gray, color = make("data=mnist", *arguments), make("data=cifar10", *arguments)
    for model in (gray, color):
        model.backbone.load_state_dict(model.pretrained_backbone().state_dict())
    images = torch.randint(256, (2, 1, 160, 160), dtype=torch.uint8)
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network(images.repeat(1, 3, 1, 1) / 127.5 - 1)  # these weights expect values from -1 to 1
        assert color.backbone(color.normalize(images.repeat(1, 3, 1, 1))).allclose(expected, atol=1e-4)
        assert gray.backbone(gray.normalize(images)).allclose(expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_training_loads_pretrained_weights_only_once(pretrained, hub, train, script, image_folder, name):
    network = pretrained(f"{name}.r160_in1k")
    small = ["data=image_folder", f"data.root={image_folder}", "data.image_shape=[3,32,32]", "model.image_size=160"]
    quick = ["optimizer=sgd", "optimizer.lr=0", "trainer.max_epochs=1", "data.num_workers=0"]
    (run,) = train(*small, "model=timm", f"model.name={name}", "model.weights=r160_in1k", *quick)
    for key, value in network.named_parameters():
        if not key.startswith(("fc.", "head.")):
            assert weights(run)[f"network.backbone.{key}"].equal(value)
    assert weights(run)["mean"].flatten().tolist() == [0.5, 0.5, 0.5]
    wanted = f"{name}.r160_in1k expects images of data.image_shape=[3,160,160] data.center_crop_share=0.95"
    assert wanted in (run / "train.log").read_text()

    shutil.rmtree(hub)  # as on another machine
    script("evaluate.py", run)
    script("export.py", run, "--format", "pt2")
    script("predict.py", run, image_folder / "red/0_00.jpg")
    script("resume.py", run, "trainer.max_epochs=2")


@pytest.mark.slow
def test_offline_message_names_weights_folder(hub, train, image_folder):
    with pytest.raises(SystemExit) as exit_:
        train(*TRANSFER, "model.name=test_resnet", f"data.root={image_folder}")
    assert f"are not in {hub / 'models--timm--test_resnet.r160_in1k'} and could not be downloaded" in exit_.value.code
    assert "hf download timm/test_resnet.r160_in1k" in exit_.value.code
    assert "model.weights=null" in exit_.value.code
    assert len(exit_.value.code.splitlines()) == 2


@pytest.mark.slow
def test_offline_message_names_weights_file(train, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    # Unreachable.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(SystemExit) as exit_:
        train(*TRANSFER, "model.name=legacy_seresnet18", f"data.root={image_folder}")
    file = os.path.basename(timm.get_pretrained_cfg("legacy_seresnet18").url)
    assert str(tmp_path / "torch/hub/checkpoints" / file) in exit_.value.code
    assert len(exit_.value.code.splitlines()) == 2


@pytest.mark.slow
def test_fine_tuning_trains_head_before_backbone(pretrained, train, script, image_folder):
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
