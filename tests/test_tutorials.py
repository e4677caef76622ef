"""Run the chapters as notebooks and check their statements about OpenCV; the project tests the rest."""

import asyncio
import re

import cv2
import jupytext
import numpy
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from torchvision.transforms import v2


async def run_in(folder, notebooks):
    """Run notebooks two at a time, each in its own kernel, in a folder, as Jupyter does."""
    semaphore = asyncio.Semaphore(2)

    async def run(notebook):
        async with semaphore:
            resources = {"metadata": {"path": str(folder)}}
            await NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).async_execute()

    await asyncio.gather(*map(run, notebooks))


@pytest.mark.slow
def test_every_chapter_runs_as_a_notebook(project, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    chapters = sorted((project / "tutorials").glob("[0-9]*.py"))
    assert len(chapters) == 8
    notebooks = [jupytext.read(chapter) for chapter in chapters]
    asyncio.run(run_in(project / "tutorials", notebooks))
    for chapter, notebook in zip(chapters, notebooks, strict=True):
        text = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
        assert text[0].startswith(f"# {chapter.name[0]}. "), "the title"
        assert "\n## Exercise" in "\n" + text[-1]
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        figures = sum("image/png" in output.get("data", {}) for output in outputs)
        assert figures == chapter.read_text(encoding="utf-8").count("savefig("), chapter.name
        if chapter.name.startswith(("5", "8")):
            printed = "".join(output.get("text", "") for output in outputs)
            assert "view            tensorboard" in printed, "train.py prints its report"
            assert not re.search("^epoch.*━", printed, re.MULTILINE), "train.py prints no progress bar"
    assert (project / "outputs/tutorials/optimizers.png").exists()
    assert not (project / "tutorials/outputs").exists()


def test_opencv_matches_the_tutorial(tmp_path):
    generator = numpy.random.default_rng(0)
    photo = Image.fromarray(generator.integers(256, size=(30, 40, 3), dtype=numpy.uint8))
    photo.save(tmp_path / "photo.png")
    frame = cv2.imread(str(tmp_path / "photo.png"))
    assert frame is not None
    assert (frame.shape, frame.dtype) == ((30, 40, 3), numpy.uint8)
    assert numpy.array_equal(frame, numpy.asarray(photo)[:, :, ::-1])
    assert numpy.array_equal(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), numpy.asarray(photo))

    tensor = v2.ToImage()(Image.open(tmp_path / "photo.png"))
    assert (tuple(tensor.shape), tensor.dtype) == ((3, 30, 40), torch.uint8)
    assert torch.equal(tensor, torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1))

    cv2.imwrite(str(tmp_path / "back.png"), numpy.ascontiguousarray(tensor.permute(1, 2, 0).numpy()[:, :, ::-1]))
    assert numpy.array_equal(numpy.asarray(Image.open(tmp_path / "back.png")), numpy.asarray(photo))
