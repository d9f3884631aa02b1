"""Makes golden.txt and golden.bin: what Pillow and torchvision give for each operation.

Run:  python make_golden.py        (in this folder; writes both files beside itself)

Pinned: Pillow 12.3.0, torchvision 0.29.2, torch 2.15.0, numpy of any version.
With Pillow 13.0.0 it writes pillow13.txt instead, the checksums of all resizes: that version
resizes many shapes vertically first and gives other bytes. Pillow 12 does so only for strips more
than 100 times as tall as wide (Image.py, `resize`).

The inputs are not stored: `source` below and `source` in ../golden.rs draw the same pictures.
A line of golden.txt is a case:

    op  width height seed  parameters...  crc32 offset length

`offset` and `length` point into golden.bin; length 0 means that only the checksum is kept.
Tolerance: none. Bytes and f32 values must be equal, because the operations are integer
arithmetic, or float arithmetic in a fixed order without fused multiply-add.
"""

import pathlib
import random
import zlib

import numpy as np
import PIL
import torch
import torchvision
import torchvision.transforms as T
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode

assert PIL.__version__ in ("12.3.0", "13.0.0"), PIL.__version__
assert torchvision.__version__.startswith("0.29.2"), torchvision.__version__
assert torch.__version__.startswith("2.15.0"), torch.__version__

HERE = pathlib.Path(__file__).parent
PILLOW_13 = PIL.__version__ == "13.0.0"
KEEP_BYTES_UP_TO = 0 if PILLOW_13 else 4096
SUFFIX = "_pillow13" if PILLOW_13 else ""
FILTERS = {
    f"bilinear{SUFFIX}": InterpolationMode.BILINEAR,
    f"bicubic{SUFFIX}": InterpolationMode.BICUBIC,
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def source(width, height, seed):
    """A picture of ramps with noise; `seed` 0 is pure noise, others have noise in one half."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    word = (x * 73856093 + y * 19349663 + c * 83492791 + seed * 2654435761) % 2**32
    word = (word ^ (word >> 15)) * 2246822519 % 2**32
    word = (word ^ (word >> 13)) * 3266489917 % 2**32
    noise = (word ^ (word >> 16)) & 255
    ramp = (x * (seed + 2 * c + 1) + y * (seed + 3 - c)) // 2 % 256
    value = noise if seed == 0 else np.where((x + y) % 7 < 3, noise, ramp)
    return Image.fromarray(value.astype(np.uint8))


lines, blob = [], bytearray()


def case(op, size_seed, params, result):
    data = result.tobytes()
    keep = data if len(data) <= KEEP_BYTES_UP_TO and len(blob) < 110_000 else b""
    text = " ".join(p if isinstance(p, str) else repr(p) for p in params)
    head = " ".join(map(str, size_seed))
    lines.append(f"{op} {head} {text} {zlib.crc32(data):08x} {len(blob)} {len(keep)}".replace("  ", " "))
    blob.extend(keep)


def resizes(rng):
    shapes = [(37, 29), (64, 48), (31, 64), (7, 5), (1, 9), (1, 1), (200, 3), (3, 150), (250, 250), (1, 120), (2, 401)]
    for i, (w, h) in enumerate(shapes):
        for name, mode in FILTERS.items():
            for ow, oh in [(28, 28), (33, 17), (w, h), (w, 20), (20, h), (128, 96), (2, 1)]:
                out = F.resize(source(w, h, i), [oh, ow], mode)
                case("resize", (w, h, i), (name, ow, oh), out)
    for i in range(60):
        w, h = rng.randint(8, 300), rng.randint(8, 300)
        cw, ch = rng.randint(1, w), rng.randint(1, h)
        left, top = rng.randint(0, w - cw), rng.randint(0, h - ch)
        size = rng.choice([32, 27, 64, 96, 128, 224])
        name, mode = rng.choice(list(FILTERS.items()))
        out = F.resized_crop(source(w, h, i), top, left, ch, cw, [size, size], mode)
        case("resized_crop", (w, h, i), (name, left, top, cw, ch, size), out)


def colours(rng):
    sizes = [(32, 32), (37, 29), (1, 1), (1, 40), (128, 128), (96, 65)]
    for i, (w, h) in enumerate(sizes):
        image, key = source(w, h, i), (w, h, i)
        factors = [0.0, 1.0, 2.5] if i < 2 else []
        for f in factors + [rng.uniform(0.6, 1.4) for _ in range(4)]:
            case("brightness", key, (f,), F.adjust_brightness(image, f))
            case("contrast", key, (f,), F.adjust_contrast(image, f))
            case("saturation", key, (f,), F.adjust_saturation(image, f))
        shifts = [0.0, 0.5, -0.5] if i < 2 else []
        for f in shifts + [rng.uniform(-0.1, 0.1) for _ in range(4)]:
            case("hue", key, (f,), F.adjust_hue(image, f))
        case("grayscale", key, (), F.to_grayscale(image, 3))
        case("horizontal_flip", key, (), F.hflip(image))
        for threshold in (0, 64, 128, 255):
            case("solarize", key, (threshold,), ImageOps.solarize(image, threshold))
        radii = [0.0, 0.1, 1.0, 2.0, 7.3, 40.0] + [rng.uniform(0.1, 2.0) for _ in range(6)]
        for radius in radii:
            case("gaussian_blur", key, (radius,), image.filter(ImageFilter.GaussianBlur(radius)))
    # Every colour there is, once around HSV and back.
    a = np.arange(1 << 24, dtype=np.uint32)
    cube = np.stack([a >> 16, a >> 8, a], -1).astype(np.uint8).reshape(4096, 4096, 3)
    case("hue_of_all_colours", (4096, 4096, 0), (0.07,), F.adjust_hue(Image.fromarray(cube), 0.07))


def normalised(image):
    tensor = T.Normalize(MEAN, STD)(T.ToTensor()(image))
    return tensor.numpy().astype("<f4")


def eval_crops():
    shapes = [(64, 48), (48, 64), (37, 91), (33, 32), (250, 250), (20, 300), (9, 9), (1, 7), (1, 170), (3, 500)]
    for i, (w, h) in enumerate(shapes):
        for name, mode in FILTERS.items():
            for size, ratio in [(32, 1.0), (28, 256 / 224), (27, 1.3), (64, 1.0), (30, 0.8)]:
                resized = F.resize(source(w, h, i), round(size * ratio), mode)
                out = F.center_crop(resized, [size, size])
                case("eval_crop", (w, h, i), (name, size, ratio), out)


rng = random.Random(20)
resizes(rng)
if not PILLOW_13:
    colours(rng)
    case("normalize", (16, 16, 0), (), normalised(source(16, 16, 0)))
eval_crops()
(HERE / ("pillow13.txt" if PILLOW_13 else "golden.txt")).write_text("\n".join(lines) + "\n")
if not PILLOW_13:
    (HERE / "golden.bin").write_bytes(bytes(blob))
print(len(lines), "cases,", len(blob), "bytes kept")
