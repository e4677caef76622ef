"""Tests of every combination of `data=` and `model=`: it trains or explains why it does not."""

import pytest

DATA = ["linear", "mnist", "fashion_mnist", "kmnist", "cifar10", "torchvision", "image_folder"]
MODELS = [
    "linear_regression",
    "cnn",
    "mlp",
    "dynamic",
    "resnet18",
    "vgg11",
    "mobilenet_v3_small",
    "torchvision",
    "timm",
]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", DATA)
def test_combination_trains_or_explains_error(train, digits, photos, image_folder, data, model):
    files = {
        "mnist": [f"data.root={digits}", "data.num_val=100"],
        "cifar10": [f"data.root={photos}", "data.num_val=100"],
        "torchvision": [f"data.root={photos}", "data.num_val=100", "data.dataset=CIFAR100"],
        "image_folder": [f"data.root={image_folder}", "data.num_workers=0"],
        "linear": [],
    }
    arguments = [f"data={data}", f"model={model}", *files.get(data, files["mnist"])]
    arguments += ["trainer.fast_dev_run=true", "optimizer=sgd", *([] if data == "linear" else ["data.batch_size=4"])]
    if model == "timm":
        pytest.importorskip("timm", reason='it is not installed: pip install -e ".[timm]"')
        arguments.append("model.name=mobilenetv3_small_050")
    if model == "torchvision":
        arguments.append("model.name=mobilenet_v2")
    if (data == "linear") == (model == "linear_regression"):
        (run,) = train(*arguments)
        assert (run / "results.json").exists()
    else:
        with pytest.raises(SystemExit) as exit_:
            train(*arguments)
        remedy = "Choose another data= or model=" if data == "linear" else "or choose another data= or model="
        assert remedy in exit_.value.code
        assert len(exit_.value.code.splitlines()) <= 3
