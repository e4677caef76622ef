"""Export a model to a file for other programs: export.py."""

import pytest
import torch
from PIL import Image

from project_for_tests import draw_digits
from test_verbs import predicted


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("experiment", ["line", "classifier"])
def test_exported_model_matches_model(request, experiment, kind, script, tmp_path, capfd):
    if kind == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason='it is not installed: pip install -e ".[export]"')
    run = request.getfixturevalue(experiment)
    path = tmp_path / f"exported.{kind}"
    capfd.readouterr()
    script("export.py", run, "--format", kind, "--output", path)
    assert "largest difference" in capfd.readouterr().out

    inputs = draw_digits(7, seed=3)[0][:, None] if experiment == "classifier" else torch.linspace(-9, 9, 7)[:, None]
    if experiment == "classifier":
        for i, image in enumerate(inputs):
            Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
        expected = [int(row["label"]) for row in predicted(script, tmp_path, run, str(tmp_path / "?.png"))]
    else:
        expected = [row["y"] for row in predicted(script, tmp_path, run, *map(str, inputs[:, 0].tolist()))]
    if kind == "onnx":
        outputs = onnxruntime.InferenceSession(path).run(None, {"input": inputs.numpy()})[0]
    else:
        outputs = torch.export.load(path).module()(inputs).detach().numpy()
    found = outputs.argmax(1).tolist() if experiment == "classifier" else outputs[:, 0].tolist()
    assert found == pytest.approx(expected, rel=1e-5)


def test_mismatching_export_is_not_written(line, script, monkeypatch):
    from torch import export

    load = export.load

    def broken(path):
        program = load(path)
        program.state_dict["linear.bias"].data += 1
        return program

    monkeypatch.setattr(export, "load", broken)
    with pytest.raises(SystemExit, match="differ by 1 from the model's; no file was written"):
        script("export.py", line, "--format", "pt2")
    assert not list(line.glob("*.pt2")) + list(line.glob(".model*"))


def test_export_works_with_one_test_sample(train, script):
    (run,) = train("data.num_test=1", "trainer.max_epochs=2")
    script("export.py", run, "--format", "pt2")
    assert torch.export.load(run / "model.pt2").module()(torch.ones(3, 1)).shape == (3, 1)
