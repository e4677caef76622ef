# %% [markdown]
# # 6. torchvision
#
# Image data sets, transforms, and networks for images.
#
# The real MNIST is `datasets.MNIST("data", train=True, download=True)`: 60000 images for training, 10000 for testing,
# 12 MB. To run offline, this chapter draws its own digits, in files of MNIST's format. Everything else is the same.

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
pil_image, label = digits[0]
print(len(digits), "images; the first is", pil_image, "and its label is", label)

# %% [markdown]
# ## The first image
#
# By default a data set returns PIL images. `ToImage` turns one into a tensor with the channels first: (1, 28, 28),
# one gray channel, 28 rows, 28 columns; `uint8`, from 0 for black to 255. `ToDtype` with `scale=True` turns that into
# a `float32` between 0 and 1. (`ToTensor`, which older code uses, does both.)
#
# `Normalize` subtracts a mean and divides by a standard deviation, so that the network starts with numbers around 0.
# For MNIST they are 0.1307 and 0.3081; black becomes −0.42, white 2.82.

# %%
image = v2.ToImage()(pil_image)
print(tuple(image.shape), image.dtype, image.min().item(), "to", image.max().item())

transform = v2.Compose(
    [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=[0.1307], std=[0.3081])],
)
normalized = transform(pil_image)
print(tuple(normalized.shape), normalized.dtype, f"{normalized.min():.2f} to {normalized.max():.2f}")

# %% [markdown]
# ## Random transforms
#
# A digit that is moved and turned a little is still the same digit. Random transforms make new training images from
# the old ones; validation and test use none of them. Not every transform suits every data set: a 6 turned by 180° is
# a 9.

# %%
torch.manual_seed(0)
augment = v2.RandomAffine(degrees=15, translate=(0.1, 0.1), scale=(0.8, 1.2))
figure, every_axes = plt.subplots(2, 6, figsize=(9, 3.2), layout="constrained")
for number, (top, bottom) in enumerate(every_axes.T):
    pil_image, label = digits[number]
    top.imshow(pil_image, cmap="gray")
    top.set_title(f"label {label}")
    bottom.imshow(augment(digits[0][0]), cmap="gray")
    bottom.set_title("augmented")
for axes in every_axes.flat:
    axes.axis("off")
figure.savefig(OUTPUTS / "digits.png")

# %% [markdown]
# ## In this project
#
# `DataLoader(datasets.MNIST(…, transform=transform), batch_size=128, shuffle=True)` is the usual code. It decodes and
# normalizes images one by one, in Python, which can take longer than the training itself when images are this small.
# `data/image.py` keeps all images in one `uint8` tensor and gets a batch with a single index; the model normalizes
# the whole batch, with constants that are in its checkpoint.
#
# ## A pretrained network
#
# `models.resnet18(weights="DEFAULT")` downloads 45 MB of weights, once: what the network learned from 1.28 million
# photos of 1000 classes. This chapter creates it without them, `weights=None`, with random weights; everything else
# is the same. The weights come with their transforms, the names of their classes, and their accuracy (69.758 % on the
# validation images of ImageNet).

# %%
weights = models.ResNet18_Weights.DEFAULT
network = models.resnet18(weights=None)  # weights=weights for the pretrained network
network.eval()  # batch normalization and dropout behave differently in training
print(f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters")
print(weights.transforms())
print(weights.meta["_metrics"]["ImageNet-1K"], weights.meta["categories"][:3])

photo = Image.new("RGB", (400, 300), (120, 180, 240))  # a sky, a meadow, and a red sun
ImageDraw.Draw(photo).rectangle((0, 200, 400, 300), fill=(60, 160, 60))
ImageDraw.Draw(photo).ellipse((250, 40, 330, 120), fill=(230, 60, 30))
batch = weights.transforms()(photo)[None]  # a network expects a batch, even if it has one image
with torch.no_grad():
    logits = network(batch)
print(tuple(batch.shape), "to", tuple(logits.shape))

# %% [markdown]
# The photo of 400 × 300 becomes (3, 224, 224), and the output is 1000 logits, one for each class.
#
# For classes of your own, replace the last layer and train only the new one at first: 5,130 of 11,181,642 parameters
# for 10 classes. In this project that is `python train.py experiment=transfer data.root=IMAGES`.

# %%
network.requires_grad_(False)
network.fc = nn.Linear(network.fc.in_features, 10)
trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
total = sum(parameter.numel() for parameter in network.parameters())
print(f"{trained:,} of {total:,} parameters are trained")

# %% [markdown]
# ## torchvision and OpenCV
#
# | | torchvision | OpenCV |
# | --- | --- | --- |
# | an image is | a tensor | a NumPy array |
# | dimensions | (C, H, W): channels first | (H, W, C): channels last |
# | colors | RGB | BGR |
# | numbers | `uint8` 0 to 255, or `float32` 0 to 1 | `uint8` 0 to 255 |
# | reads a file with | PIL: `v2.ToImage()(Image.open(path))` | `cv2.imread(path)` |
# | is made for | networks: batches, devices, augmentation | cameras, video, geometry, classical vision |
#
# So an image from `cv2.imread` is rearranged twice before it enters a network: the colors, then the dimensions. If
# you forget the colors, there is no error; a network that was trained on RGB just gets worse. The array below is what
# `cv2.imread` returns for the photo. It is made with NumPy, so you do not need to install OpenCV.

# %%
from_opencv = numpy.ascontiguousarray(numpy.asarray(photo)[:, :, ::-1])  # (H, W, C), blue first
rgb = from_opencv[:, :, ::-1].copy()  # or cv2.cvtColor(from_opencv, cv2.COLOR_BGR2RGB)
tensor = torch.from_numpy(rgb).permute(2, 0, 1)  # (C, H, W)
print(from_opencv.shape, "to", tuple(tensor.shape))
print("top left pixel: OpenCV has", from_opencv[0, 0].tolist(), "and the tensor has", tensor[:, 0, 0].tolist())
print("equals the tensor from torchvision:", torch.equal(tensor, v2.ToImage()(photo)))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
left.imshow(tensor.permute(1, 2, 0))
left.set_title("RGB")
right.imshow(from_opencv)
right.set_title("BGR read as RGB")
for axes in (left, right):
    axes.axis("off")
figure.savefig(OUTPUTS / "rgb_and_bgr.png")

# %% [markdown]
# ## Exercise
#
# Write `for_network(frame)`: it turns a camera frame, as OpenCV returns it, into the batch of one that ResNet
# expects, with nearly the same numbers as `weights.transforms()` returns for the photo. (Why nearly?) And back:
# `for_opencv(tensor)` turns a `uint8` tensor (3, H, W) into an array for `cv2.imwrite`.
#
# The answer is `test_exercise_6` in `tests/test_tutorials.py`.
