# %% [markdown]
# # 6. torchvision
#
# Data sets of images, what is done to images, and networks for them.
#
# The real MNIST is `datasets.MNIST("data", train=True, download=True)`: 60000 images to train on, 10000 to test,
# 12 MB. So that this chapter needs no network, its digits are drawn; they are in files of MNIST's format, and
# everything else is the same.

# %%
import matplotlib.pyplot as plt
import numpy
import torch
from PIL import Image, ImageDraw
from torch import nn
from torchvision import datasets, models
from torchvision.transforms import v2

import drawn_digits
from this_project import OUTPUTS

root = drawn_digits.write(train=600, test=100)
digits = datasets.MNIST(root, train=True)
picture, label = digits[0]
print(len(digits), "images; the first is", picture, "and its label is", label)

# %% [markdown]
# ## The first image
#
# What comes out of a data set is by default a PIL image. `ToImage` makes a tensor of it, with the channels first:
# (1, 28, 28), one channel of grey, 28 rows, 28 columns; `uint8`, from 0 for black to 255. `ToDtype` with
# `scale=True` makes a `float32` between 0 and 1. (`ToTensor`, which older texts use, does both.)
#
# `Normalize` subtracts a mean and divides by a standard deviation, so that a network begins with numbers around
# 0. For MNIST they are 0.1307 and 0.3081; black becomes −0.42, white 2.82.

# %%
image = v2.ToImage()(picture)
print(tuple(image.shape), image.dtype, image.min().item(), "to", image.max().item())

transform = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=[0.1307], std=[0.3081])],
)
normalised = transform(picture)
print(tuple(normalised.shape), normalised.dtype, f"{normalised.min():.2f} to {normalised.max():.2f}")

# %% [markdown]
# ## Transforms that invent
#
# A digit that is moved and turned a little is the same digit. Random transforms make new training images from the
# old ones; validation and test take none of them. Not each one suits each data: a 6 turned by 180° is a 9.

# %%
torch.manual_seed(0)
augment = v2.RandomAffine(degrees=15, translate=(0.1, 0.1), scale=(0.8, 1.2))
figure, every_axes = plt.subplots(2, 6, figsize=(9, 3.2), layout="constrained")
for number, (top, bottom) in enumerate(every_axes.T):
    picture, label = digits[number]
    top.imshow(picture, cmap="gray")
    top.set_title(f"label {label}")
    bottom.imshow(augment(digits[0][0]), cmap="gray")
    bottom.set_title("the first, anew")
for axes in every_axes.flat:
    axes.axis("off")
figure.savefig(OUTPUTS / "digits.png")

# %% [markdown]
# ## In this project
#
# `DataLoader(datasets.MNIST(…, transform=transform), batch_size=128, shuffle=True)` is what one reads everywhere.
# It decodes and normalises image by image, in Python, which for images as small as these can take longer than the
# training. `data/image.py` keeps all images as one `uint8` tensor and serves a batch by one index; the model
# normalises the whole batch, with constants that are in its checkpoint.
#
# ## A pretrained network
#
# `models.resnet18(weights="DEFAULT")` downloads 45 MB of weights, once: what the network has learned from 1.28
# million photos of 1000 kinds. Here it comes without them, `weights=None`, at random; all else is as with them.
# The weights know what they want: their transforms, the names of their classes, and how often they are right
# (69.758 % of ImageNet's validation images).

# %%
weights = models.ResNet18_Weights.DEFAULT
network = models.resnet18(weights=None)  # weights=weights, for what it has learned
network.eval()  # batch normalisation and dropout behave differently in training
print(f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters")
print(weights.transforms())
print(weights.meta["_metrics"]["ImageNet-1K"], weights.meta["categories"][:3])

photo = Image.new("RGB", (400, 300), (120, 180, 240))  # a sky, a meadow, and a red sun
ImageDraw.Draw(photo).rectangle((0, 200, 400, 300), fill=(60, 160, 60))
ImageDraw.Draw(photo).ellipse((250, 40, 330, 120), fill=(230, 60, 30))
batch = weights.transforms()(photo)[None]  # a network takes a batch, if only of one
with torch.no_grad():
    logits = network(batch)
print(tuple(batch.shape), "to", tuple(logits.shape))

# %% [markdown]
# The photo of 400 × 300 becomes (3, 224, 224), and the answer is 1000 logits, one for each class.
#
# For classes of your own the last layer is replaced, and at first only the new one is trained: 5,130 of
# 11,181,642 parameters for 10 classes. In this project that is `python train.py experiment=transfer
# data.root=PICTURES`.

# %%
network.requires_grad_(False)
network.fc = nn.Linear(network.fc.in_features, 10)
trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
total = sum(parameter.numel() for parameter in network.parameters())
print(f"{trained:,} of {total:,} parameters are trained")

# %% [markdown]
# ## torchvision beside OpenCV
#
# | | torchvision | OpenCV |
# | --- | --- | --- |
# | an image is | a tensor | a NumPy array |
# | dimensions | (C, H, W): channels first | (H, W, C): channels last |
# | colours | RGB | BGR |
# | numbers | `uint8` 0 to 255, or `float32` 0 to 1 | `uint8` 0 to 255 |
# | reads a file with | PIL: `v2.ToImage()(Image.open(path))` | `cv2.imread(path)` |
# | is for | networks: batches, devices, augmentation | cameras, video, geometry, classic vision |
#
# So an image from `cv2.imread` is turned around twice before a network gets it: the colours, then the dimensions.
# Who forgets the colours gets no error; a network that was trained on RGB is just worse. The array below is what
# `cv2.imread` gives for the photo; it is made with NumPy, so that you need not install OpenCV.

# %%
from_opencv = numpy.ascontiguousarray(numpy.asarray(photo)[:, :, ::-1])  # (H, W, C), blue first
rgb = from_opencv[:, :, ::-1].copy()  # or cv2.cvtColor(from_opencv, cv2.COLOR_BGR2RGB)
tensor = torch.from_numpy(rgb).permute(2, 0, 1)  # (C, H, W)
print(from_opencv.shape, "to", tuple(tensor.shape))
print("at the top left corner OpenCV has", from_opencv[0, 0].tolist(), "and the tensor", tensor[:, 0, 0].tolist())
print(torch.equal(tensor, v2.ToImage()(photo)), "is whether it is what torchvision makes of the photo")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
left.imshow(tensor.permute(1, 2, 0))
left.set_title("RGB")
right.imshow(from_opencv)
right.set_title("BGR that is taken for RGB")
for axes in (left, right):
    axes.axis("off")
figure.savefig(OUTPUTS / "rgb_and_bgr.png")

# %% [markdown]
# ## Exercise
#
# Write `for_network(frame)`: a frame of a camera, as OpenCV gives it, becomes the batch of one that ResNet wants,
# to nearly the same numbers as `weights.transforms()` gives for the photo. (Why nearly?) And back:
# `for_opencv(tensor)` makes of a `uint8` (3, H, W) what `cv2.imwrite` takes.
#
# The answer is `test_exercise_6` in `tests/test_tutorials.py`.
