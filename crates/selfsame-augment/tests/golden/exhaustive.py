"""Sends what Pillow and torchvision make of every colour and of many random images.

Run by `cargo xtask golden --exhaustive`, which does the same and compares every byte.

    python exhaustive.py CASES SEED

The answer on the standard output is one record after the other, each a line and two blobs:

    op parameters... width height out_width out_height

then width * height * 3 bytes of the image and out_width * out_height * 3 bytes of the result.
Pinned: torchvision 0.29.2 and Pillow 12.3.0, or 13.0.0, whose resizes are told apart by their names.
"""

import math
import random
import sys

import numpy as np
import PIL
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode

assert PIL.__version__ in ("12.3.0", "13.0.0"), PIL.__version__

SUFFIX = "_pillow13" if PIL.__version__ == "13.0.0" else ""
FILTERS = {
    f"bilinear{SUFFIX}": InterpolationMode.BILINEAR,
    f"bicubic{SUFFIX}": InterpolationMode.BICUBIC,
}


def send(op, params, image, result):
    words = [op, *map(str, params), *map(str, image.size), *map(str, result.size)]
    sys.stdout.buffer.write((" ".join(words) + "\n").encode())
    sys.stdout.buffer.write(image.tobytes())
    sys.stdout.buffer.write(result.tobytes())


def every_colour():
    a = np.arange(1 << 24, dtype=np.uint32)
    cube = np.stack([a >> 16, a >> 8, a], -1).astype(np.uint8).reshape(4096, 4096, 3)
    cube = Image.fromarray(cube)
    for turns in (-0.5, -0.1, 0.0, 0.07, 0.25, 0.5):
        send("hue", (turns,), cube, F.adjust_hue(cube, turns))
    send("saturation", (1.17,), cube, F.adjust_saturation(cube, 1.17))
    send("grayscale", (), cube, F.to_grayscale(cube, 3))


def side(rng):
    """Uniform in its logarithm half of the time, so that small sides come up too."""
    return rng.randint(1, 1000) if rng.random() < 0.5 else round(math.exp(rng.uniform(0, math.log(1000))))


def picture(rng, width, height):
    noise = np.random.default_rng(rng.getrandbits(32))
    kind = rng.randrange(3)
    if kind == 0:
        data = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
    elif kind == 1:  # extremes, which make filters overshoot
        data = (noise.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)
    else:
        ramp = np.arange(width)[None, :, None] * 2 + np.arange(height)[:, None, None] * 3
        data = ((ramp + noise.integers(0, 20, (height, width, 3))) % 256).astype(np.uint8)
    return Image.fromarray(data)


def random_case(rng):
    image = picture(rng, side(rng), side(rng))
    op = rng.choice(["resize", "resize", "resized_crop", "gaussian_blur", "gaussian_blur", "brightness",
                     "contrast", "saturation", "hue", "solarize", "grayscale", "horizontal_flip"])
    if op == "resize":
        name, mode = rng.choice(list(FILTERS.items()))
        width, height = side(rng), side(rng)
        send(op, (name,), image, F.resize(image, [height, width], mode))
    elif op == "resized_crop":
        name, mode = rng.choice(list(FILTERS.items()))
        width, height = rng.randint(1, image.width), rng.randint(1, image.height)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        size = rng.randint(1, 300)
        result = F.resized_crop(image, top, left, height, width, [size, size], mode)
        send(op, (name, left, top, width, height), image, result)
    elif op == "gaussian_blur":
        radius = rng.choice([rng.uniform(0.1, 2.0), rng.uniform(0.1, 5.0), rng.uniform(5.0, 120.0)])
        send(op, (radius,), image, image.filter(ImageFilter.GaussianBlur(radius)))
    elif op in ("brightness", "contrast", "saturation"):
        factor = rng.choice([rng.uniform(0.6, 1.4), rng.uniform(0.0, 4.0)])
        send(op, (factor,), image, getattr(F, f"adjust_{op}")(image, factor))
    elif op == "hue":
        turns = rng.uniform(-0.5, 0.5)
        send(op, (turns,), image, F.adjust_hue(image, turns))
    elif op == "solarize":
        threshold = rng.randint(0, 255)
        send(op, (threshold,), image, ImageOps.solarize(image, threshold))
    elif op == "grayscale":
        send(op, (), image, F.to_grayscale(image, 3))
    else:
        send(op, (), image, F.hflip(image))


every_colour()
generator = random.Random(int(sys.argv[2]))
for _ in range(int(sys.argv[1])):
    random_case(generator)
