"""Show an image classifier: a sketchpad, test images, and uploaded images."""

import base64
import os
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..mistakes import UserError
from . import display
from .examples import Example, find_examples
from .predictor import Predictor

SKETCHPAD = Path(__file__).with_name("sketchpad.js")
# Maximum height and width, in pixels, of models with a sketchpad; larger images are photographs.
LARGEST_DRAWING = 64
# Reports a click on a test image with its position.
CHOOSE = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", { place: [...button.parentElement.children].indexOf(button) });
});
"""
# On a phone, the prediction is below the images.
SCROLL = "() => { document.querySelector('#answer').scrollIntoView({ behavior: 'smooth', block: 'nearest' }); }"
LARGEST_IMAGE = 50_000_000  # pixels
PATCHES = 8  # to cover in turn, along each side of an image


def add_images(page: gradio.Blocks, predictor: Predictor) -> None:
    """Add the components to a page. Call it in the context of the page.

    Raises:
        UserError: If the model is not a classifier.
    """
    channels, height, width = predictor.run.data.image_shape
    if "probabilities" not in predictor.predict(torch.zeros((1, channels, height, width), dtype=torch.uint8)):
        raise UserError(
            "demo.py shows only classifiers of images, but predict_step of this model returns no probabilities."
        )
    if channels == 1 and max(height, width) <= LARGEST_DRAWING:
        _add_sketchpad(predictor)
    shown = gradio.State()  # the image of the shown prediction
    lock, examples = threading.Lock(), list[Example]()

    def examine() -> str:
        with lock:  # the first visitor starts the examination, others wait for it
            try:
                if not examples:
                    examples.extend(find_examples(predictor))
            except UserError as error:
                return display.message(f"No test images: {error}")
        return display.gallery([example.image for example in examples], [example.caption for example in examples])

    def choose(event: gradio.EventData) -> tuple[Tensor | None, str, str]:
        return show(examples[event.place].image, f"Test image: {examples[event.place].caption}")

    def read(path: str | None) -> tuple[Tensor | None, str, str]:
        if path is None:  # the image was removed
            return None, "", ""
        try:
            return show(_read(predictor, path), Path(path).name)
        except (OSError, ValueError) as error:
            return None, display.message(f"{Path(path).name}: {error}"), ""

    def show(image: Tensor, what: str) -> tuple[Tensor | None, str, str]:
        return image, display.message(what) + answer_image(predictor, image), ""

    def explain(image: Tensor | None) -> str:
        return display.message("Choose an image first.") if image is None else occlusion_map(predictor, image)

    with gradio.Row():
        with gradio.Column(scale=3):
            gradio.HTML("<h3>Test images, most confidently wrong first</h3>")
            gallery = gradio.HTML(display.message("Examining the test images …"), js_on_load=CHOOSE)
            gradio.HTML("<h3>Your own image</h3>")
            sources: Any = ["upload", "clipboard", "webcam"]
            own = gradio.Image(show_label=False, sources=sources, type="filepath", height=240)
            folder = gradio.utils.get_upload_folder()
            own.preprocess = partial(_uploaded, folder)  # pyrefly: ignore[bad-assignment]
        with gradio.Column(scale=2, elem_id="answer"):
            answered = gradio.HTML(display.message("Choose a test image, or add your own."))
            button = gradio.Button("What mattered?", size="sm")
            map_html = gradio.HTML()
    page.load(examine, None, gallery, api_visibility="private", show_progress="hidden")
    chosen = gallery.click(choose, None, [shown, answered, map_html], api_visibility="private")
    chosen.then(None, js=SCROLL)
    own.change(read, own, [shown, answered, map_html], api_visibility="private")
    button.click(explain, shown, map_html, api_visibility="private")


def _uploaded(folder: str, payload: Any) -> str | None:
    """Return the path of the unchanged upload, for the data module to read and check it as `predict.py` does.

    Raises:
        gradio.Error: If it is another file of this machine; Gradio 6.31 lets visitors name any file.
    """
    if payload is None:
        return None
    path = os.path.abspath(payload.path)
    if not any(Path(path).is_relative_to(parent) for parent in (Path(folder).absolute(), Path(folder).resolve())):
        raise gradio.Error("This is not an uploaded file.")
    return path


def refuse_enormous(path: str) -> None:
    """Raise ValueError if decoding an image would take gigabytes of memory; its reader reports all other errors."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # Pillow's readers raise exceptions of any type
        return
    if width * height > LARGEST_IMAGE:
        raise ValueError(f"it has {width} x {height} pixels, but at most {LARGEST_IMAGE:,} are allowed; scale it down")


def _read(predictor: Predictor, path: str) -> Tensor:
    """Return an image as `predict.py` reads it, uint8 ``(C, H, W)``.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is too large, or does not fit the data set.
    """
    refuse_enormous(path)
    return predictor.read([path])


def _add_sketchpad(predictor: Predictor) -> None:
    _, height, width = predictor.run.data.image_shape
    # Without `ink_size`, drawings are used unchanged, and most such data sets are bright on dark.
    is_ink_white = not getattr(predictor.run.data, "ink_size", None)

    def show(drawing: str, *parts: Callable[[Predictor, Tensor], str]) -> str:
        """Return the HTML for a drawing, the data URL of a PNG: data:image/png;base64,…"""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "drawing.png")
            try:
                path.write_bytes(base64.b64decode(drawing.partition(",")[2]))
                image = _read(predictor, str(path))
            except (OSError, ValueError) as error:
                return display.message(str(error))
        return "".join(part(predictor, image) for part in parts)

    def answer(drawing: str) -> str:
        return show(drawing, answer_image)

    def explain(drawing: str) -> str:
        return show(drawing, answer_image, occlusion_map)

    # Gradio's own Sketchpad requires choosing a tool first, and reports nothing until a stroke ends.
    gradio.HTML(
        html_template=display.sketchpad(is_ink_white, height / width),
        js_on_load=SKETCHPAD.read_text(encoding="utf-8"),
        server_functions=[answer, explain],
    )


def answer_image(predictor: Predictor, image: Tensor) -> str:
    """Return HTML with the probability of each class and the image, uint8 ``(C, H, W)``, as the network sees it."""
    probabilities = predictor.predict(image[None])["probabilities"][0].tolist()
    bars = display.probability_bars(predictor.class_names(len(probabilities)), probabilities)
    return f'<div class="answered">{bars}{display.captioned_image(image, "as the network sees it")}</div>'


def occlusion_map(predictor: Predictor, image: Tensor) -> str:
    """Return HTML with an occlusion map: red where covering the image with its mean color lowers the probability.

    See Zeiler and Fergus, 2014, https://arxiv.org/abs/1311.2901, section 4.2.

    Args:
        predictor: A predictor of probabilities.
        image: uint8 ``(C, H, W)``.
    """
    before = predictor.predict(image[None])["probabilities"][0]
    label = int(before.argmax())
    name = predictor.class_names(len(before))[label]
    height, width = image.shape[1:]
    steps = [max(1, round(length / PATCHES)) for length in (height, width)]
    tops, lefts = range(0, height, steps[0]), range(0, width, steps[1])
    mean = image.float().mean(dim=(1, 2), keepdim=True).round().byte()
    covered = []
    for top in tops:
        for left in lefts:  # the squares are twice as large as the steps, so they overlap
            rows = slice(max(0, top - steps[0] // 2), top + steps[0] + steps[0] // 2)
            columns = slice(max(0, left - steps[1] // 2), left + steps[1] + steps[1] // 2)
            covered.append(image.clone())
            covered[-1][:, rows, columns] = mean
    after = [predictor.predict(images)["probabilities"][:, label] for images in torch.stack(covered).split(16)]
    lost = (before[label] - torch.cat(after)).view(1, 1, len(tops), len(lefts))
    largest = float(lost.max())
    if largest < 0.01:
        return display.message(f"Covering any one part lowers the probability of {name} by less than 1%.")
    heat = interpolate(lost.clamp(min=0) / largest, (height, width), mode="bilinear")[0]
    gray = image.float().mean(dim=0, keepdim=True) * 0.6 + 50
    red = torch.tensor([230.0, 20.0, 20.0]).view(3, 1, 1)
    mixed = gray * (1 - 0.8 * heat) + red * 0.8 * heat
    lowest = max(0.0, float(before[label]) - largest)
    caption = f"red: covering this part lowers the probability of {name}, at worst to {lowest:.1%}"
    return display.captioned_image(mixed.round().byte(), caption)
