"""Tests of torchvision's networks, pretrained weights and torch.compile."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision import models
from torchvision.transforms.v2.functional import pil_to_tensor

from conftest import ROOT, draw_digits, environment

SMALL = ["experiment=mnist", "data.num_val=100", "data.batch_size=50", "trainer.max_epochs=1"]


def make(*overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", ["run_dir=nowhere", *overrides])
    return instantiate(config.data, _convert_="all"), instantiate(config.model, _convert_="all")


def weights(run, name="last"):
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture
def pretrained(tmp_path_factory, monkeypatch):
    """Return a function that puts random weights where torch looks for downloaded weights."""
    home = tmp_path_factory.mktemp("torch")
    monkeypatch.setenv("TORCH_HOME", str(home))
    (home / "hub/checkpoints").mkdir(parents=True)

    def pretrained(name):
        torch.manual_seed(0)
        network = models.get_model(name)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # statistics that differ from those of a new network
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        file = models.get_model_weights(name).DEFAULT.url.rsplit("/", 1)[1]
        torch.save(network.state_dict(), home / "hub/checkpoints" / file)
        return network.eval()

    return pretrained


# Networks by name


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet34", "squeezenet1_1", "googlenet", "densenet121", "efficientnet_b0", "shufflenet_v2_x0_5"]
)
def test_network_trains_by_name(train, digits, name):
    quick = ["trainer.fast_dev_run=true", "data.batch_size=4", f"data.root={digits}"]
    train(*SMALL, "model=torchvision", f"model.name={name}", *quick)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["model=torchvision"], ["model.name has no default"]),
        (["model=torchvision", "model.name=resnet19"], ["model.name is resnet19", "resnet18"]),
        (["model=torchvision", "model.name=raft_small"], ["model.name is raft_small", "no classifier"]),
        (["model=resnet18", "model.weights=BEST"], ["model.weights is BEST", "IMAGENET1K_V1, DEFAULT"]),
        (
            ["model=torchvision", "model.image_size=64", "model.name=vit_b_16"],
            ["vit_b_16 does not take", "Expected 224"],
        ),
    ],
    ids=lambda value: value[-1] if "=" in value[0] else "",
)
def test_invalid_network_is_explained(train, photos, arguments, messages):
    with pytest.raises(SystemExit) as exit_:
        train("experiment=cifar10", f"data.root={photos}", "data.num_val=100", *arguments)
    for message in messages:
        assert message in exit_.value.code
    assert len(exit_.value.code.splitlines()) <= 4


# Pretrained weights


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_preprocessing_matches_torchvision_transforms(pretrained, image_folder, name):
    """Pixels and features of a file equal the output of torchvision's own transforms and network."""
    network = pretrained(name)
    data, model = make(
        "data=image_folder", f"data.root={image_folder}", "data.num_classes=3", f"model={name}", "model.weights=DEFAULT"
    )
    model.backbone.load_state_dict(network.state_dict(), strict=False)
    model.eval()
    path = image_folder / "red/0_00.jpg"
    preset = models.get_model_weights(name).DEFAULT.transforms()
    with torch.no_grad(), Image.open(path) as image:
        expected = preset(pil_to_tensor(image))
        found = model.normalize(data.read_input(str(path))[None])
        assert found[0].sub(expected).abs().max() < 0.02, "at most one of 256 levels, because of rounding"
        last = next(module for module in reversed(list(network.modules())) if isinstance(module, torch.nn.Linear))
        features = []
        last.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
        network(found)
        assert model.backbone(found).allclose(features[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_loads_pretrained_weights_only_once(pretrained, train, script, image_folder):
    network = pretrained("resnet18")
    small = ["data=image_folder", f"data.root={image_folder}", "data.image_shape=[3,32,32]", "model.image_size=32"]
    quick = ["optimizer=sgd", "optimizer.lr=0", "trainer.max_epochs=1", "data.num_workers=0"]
    (run,) = train(*small, "model=resnet18", "model.weights=DEFAULT", *quick)
    for name, value in network.named_parameters():
        if not name.startswith("fc."):
            assert weights(run)[f"network.backbone.{name}"].equal(value)
    assert weights(run)["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])

    shutil.rmtree(os.environ["TORCH_HOME"])  # as on another machine
    for verb in ("evaluate.py", "export.py"):
        script(verb, run, *(["--format", "pt2"] if verb == "export.py" else []))
    script("predict.py", run, image_folder / "red/0_00.jpg")
    script("resume.py", run, "trainer.max_epochs=2")


class Shape(torch.nn.Module):
    """Stores the shape of its input."""

    def forward(self, images):
        self.seen = images.shape
        return images


@pytest.mark.slow
def test_small_images_are_enlarged_for_the_weights(pretrained):
    for overrides, size in (
        (["model=resnet18"], 28),
        (["model=vgg11"], 32),
        (["model=resnet18", "model.image_size=64"], 64),
        (["model=resnet18", "model.weights=DEFAULT"], 224),
        (["model=resnet18", "model.weights=DEFAULT", "model.image_size=96"], 96),
    ):
        _, model = make("data=mnist", *overrides)
        model.network.backbone = torch.nn.Sequential(Shape(), model.network.backbone)
        model.eval()(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
        assert model.network.backbone[0].seen == (1, 1, size, size)


@pytest.mark.slow
def test_grayscale_images_match_rgb_images(pretrained):
    network = pretrained("resnet18")
    _, gray = make("data=mnist", "model=resnet18")
    adapted = {**network.state_dict(), "conv1.weight": network.conv1.weight.sum(dim=1, keepdim=True)}
    gray.backbone.load_state_dict(adapted, strict=False)
    images = torch.randn(2, 1, 64, 64)
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = network(images.repeat(1, 3, 1, 1))
        assert gray.eval().backbone(images).allclose(expected, atol=1e-4)


@pytest.mark.slow
def test_grayscale_training_adapts_weights(pretrained, train, digits):
    network = pretrained("resnet18")
    frozen = ["optimizer=sgd", "optimizer.lr=0", "scheduler=constant", "trainer.limit_train_batches=2"]
    small = ["model=resnet18", "model.weights=DEFAULT", "model.image_size=32"]
    (run,) = train(*SMALL, f"data.root={digits}", *small, *frozen)
    expected = network.conv1.weight.sum(dim=1, keepdim=True)
    assert weights(run)["network.backbone.conv1.weight"].allclose(expected)


@pytest.mark.slow
def test_offline_message_names_weights_file(train, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    weights = models.MobileNet_V3_Small_Weights.DEFAULT.value
    monkeypatch.setattr(weights, "url", "http://127.0.0.1:9/weights.pth")  # unreachable
    with pytest.raises(SystemExit) as exit_:
        train("experiment=transfer", f"data.root={image_folder}", "data.num_workers=0")
    assert str(tmp_path / "torch/hub/checkpoints/weights.pth") in exit_.value.code
    assert "model.weights=null" in exit_.value.code
    assert len(exit_.value.code.splitlines()) == 2


# Transfer learning


TRANSFER = ["experiment=transfer", "model=resnet18", "data.image_shape=[3,32,32]", "model.image_size=32"]
TRANSFER += ["data.num_workers=0", "callbacks.fine_tuning.unfreeze_backbone_at_epoch=2", "data.batch_size=16"]


@pytest.mark.slow
def test_fine_tuning_trains_backbone_later_at_lower_rate(pretrained, train, image_folder):
    network = pretrained("resnet18")
    command = [*TRANSFER, f"data.root={image_folder}", "trainer.log_every_n_steps=1"]
    (frozen,) = train(*command, "trainer.max_epochs=2")
    before = {f"network.backbone.{name}": value for name, value in network.state_dict().items()}
    for name, value in weights(frozen).items():
        if name in before:
            assert value.equal(before[name]), "weights and statistics"
    (unfrozen,) = train(*command, "trainer.max_epochs=4")
    for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "layer4.1.conv2.weight"):
        assert not weights(unfrozen)[f"network.backbone.{name}"].equal(network.state_dict()[name])
    curves = EventAccumulator(str(unfrozen)).Reload()
    assert all(point.value == pytest.approx(0.001) for point in curves.Scalars("train/lr"))
    rates = curves.Scalars("train/lr_backbone")
    assert all(point.value == pytest.approx(0.0001) for point in rates)
    assert rates[0].step == 8, "the first step of the third epoch"


@pytest.mark.slow
def test_resumed_transfer_equals_uninterrupted_run(pretrained, train, script, image_folder):
    pretrained("resnet18")
    command = [*TRANSFER, f"data.root={image_folder}", "callbacks.classifier_figures=null"]
    (whole,) = train(*command, "trainer.max_epochs=4")
    for epochs in (1, 3):  # before and after the backbone is unfrozen
        (parts,) = train(*command, f"trainer.max_epochs={epochs}")
        script("resume.py", parts, "trainer.max_epochs=4")
        assert all(weights(parts)[name].equal(value) for name, value in weights(whole).items())


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["step", "plateau", "cosine", "one_cycle"])
def test_fine_tuning_rejects_incompatible_schedulers(pretrained, train, image_folder, scheduler):
    pretrained("resnet18")
    command = [*TRANSFER, f"data.root={image_folder}", f"scheduler={scheduler}", "trainer.max_epochs=3"]
    if scheduler in ("step", "plateau"):
        assert train(*command)
    else:
        with pytest.raises(SystemExit, match="Use scheduler=constant, step, or plateau"):
            train(*command)


@pytest.mark.slow
def test_fine_tuning_requires_a_backbone(train, image_folder):
    with pytest.raises(SystemExit, match=r"Without it: callbacks\.fine_tuning=null"):
        train("experiment=transfer", "model=cnn", "~model.weights", f"data.root={image_folder}", "data.num_workers=0")


# torch.compile


has_compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
needs_compiler = pytest.mark.skipif(not has_compiler, reason="torch.compile needs a C++ compiler")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn", "dynamic", "resnet18", "vgg11", "mobilenet_v3_small"])
def test_compiled_model_has_same_checkpoint_keys(model):
    plain, compiled = (make("data=mnist", f"model={model}", f"model.compile={flag}")[1] for flag in ("false", "true"))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    assert plain.network._compiled_call_impl is None
    assert compiled.network._compiled_call_impl is not None


@pytest.mark.slow
@needs_compiler
def test_compiled_model_computes_same_outputs(digits):
    small = ["data=mnist", "model=cnn", "model.network.channels=[8]"]  # compiling each layer takes time
    data, plain = make(*small, f"data.root={digits}", "data.num_val=100")
    _, compiled = make(*small, "model.compile=true")
    compiled.load_state_dict(plain.state_dict())
    data.setup("fit")
    images, labels = next(iter(data.val_dataloader()))
    for model in (plain, compiled):
        model.double()  # in float32, max pooling may choose another pixel because of rounding
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    assert compiled(images).allclose(plain(images), atol=1e-4)
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad.allclose(theirs.grad, atol=1e-4), name


@pytest.mark.slow
@needs_compiler
def test_compiled_dynamic_model_matches_plain_run(train, digits, script):
    command = [*SMALL, f"data.root={digits}", "model=dynamic", "data.mean=[0.28]", "trainer.max_epochs=2"]
    (plain,), (compiled,) = train(*command), train(*command, "model.compile=true")
    assert weights(plain).keys() == weights(compiled).keys()
    results = [json.loads((run / "results.json").read_text())["metrics"] for run in (plain, compiled)]
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    assert EventAccumulator(str(compiled)).Reload().Tags()["graph"]
    script("evaluate.py", compiled)
    script("resume.py", compiled, "trainer.max_epochs=3", "model.compile=false")


@pytest.mark.slow
@needs_compiler
def test_compiled_linear_regression_matches_plain_run(train):
    (plain,), (compiled,) = train("trainer.max_epochs=20"), train("trainer.max_epochs=20", "model.compile=true")
    assert weights(compiled)["linear.weight"].allclose(weights(plain)["linear.weight"], atol=1e-5)


@pytest.mark.slow
def test_missing_compiler_is_explained(digits, tmp_path):
    variables = environment() | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, f"data.root={digits}", "model.compile=true"]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 1
    assert "The model could not be compiled: " in done.stderr
    assert done.stderr.rstrip().endswith("To train without compiling: model.compile=false")
    assert "Traceback" not in done.stderr


# A computation that depends on the input


@pytest.mark.slow
def test_dynamic_path_depends_only_on_own_input():
    _, model = make("data=mnist", "model=dynamic")
    network = model.network.eval()
    images = torch.randn(6, 1, 28, 28) + torch.tensor([1.0, -1, 1, -1, 1, 1]).view(-1, 1, 1, 1)
    together, alone = network(images), torch.cat([network(image[None]) for image in images])
    assert together.allclose(alone, atol=1e-6)
    flat = images.flatten(1)
    assert together[[0, 2, 4, 5]].allclose(network.bright(flat[[0, 2, 4, 5]]), atol=1e-6)
    assert together[[1, 3]].allclose(network.dark(flat[[1, 3]]), atol=1e-6)
    network(images[[0, 2]].clone()).sum().backward()
    assert network.dark[0].weight.grad is None, "an unused path is not in the graph"


@pytest.mark.slow
def test_dynamic_model_learns_digits_and_exports(train, script, digits):
    # These digits are brighter than MNIST.
    images = draw_digits(200, seed=1)[0][:, None] / 255
    mean = images.mean().item()
    assert 0 < (images.flatten(1).mean(dim=1) > mean).sum() < 200, "both paths are taken"
    (run,) = train(*SMALL, f"data.root={digits}", "model=dynamic", f"data.mean=[{mean}]", "trainer.max_epochs=12")
    assert json.loads((run / "results.json").read_text())["metrics"]["test/acc"] > 0.8
    script("export.py", run, "--format", "pt2")


IMAGES = ["data=image_folder", "data.image_shape=[3,32,32]", "trainer.max_epochs=2", "data.num_workers=0"]


@pytest.mark.slow
def test_transfer_starts_from_own_run(train, image_folder, tmp_path):
    small = ["experiment=transfer", f"data.root={image_folder}", *IMAGES[1:]]
    train(*small, "model.weights=null", "hydra.run.dir=first")
    frozen = "callbacks.fine_tuning.unfreeze_backbone_at_epoch=9"
    train(*small, "weights=first", frozen, "hydra.run.dir=second")  # without a download
    first, second = (
        torch.load(tmp_path / f"{run}/checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
        for run, name in (("first", "best"), ("second", "last"))
    )
    changed = [name for name in first if not first[name].equal(second[name])]
    assert changed, "the head was trained"
    assert all("classifier" in name for name in changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["model=torchvision", "model.name=resnet"], r"Nearest: (\w+)"),
        (["model=resnet18", "model.weights=FIRST"], r"or (null) for none"),
        (["model=resnet18", "weights=RUN", "model.weights=DEFAULT"], r"add model\.weights=(null)"),
    ],
)
def test_suggested_remedy_works(train, image_folder, arguments, remedy):
    command = [*IMAGES, f"data.root={image_folder}", "optimizer=sgd"]
    if "weights=RUN" in arguments:
        (run,) = train(*command, "model=resnet18")
        arguments[1] = f"weights={run}/checkpoints/best.ckpt"
    with pytest.raises(SystemExit) as exit_:
        train(*command, *arguments)
    found = re.search(remedy, exit_.value.code)[1]
    (run,) = train(*command, *arguments, "model.weights=null" if found == "null" else f"model.name={found}")
    assert (run / "results.json").exists()
