"""Multi-crop augmentation in Python, the other side of `cargo xtask bench-peer augment`.

    python augment.py --make DIR [--side 250] [--count 64]      draws JPEG files to crop
    python augment.py DIR VARIANT GLOBAL LOCAL FILTER           serves crops

VARIANT is torchvision-v1, torchvision-v2 or albumentations; FILTER bilinear or bicubic.
A server reads a number of images per line, decodes and crops them on one thread (two global and
eight local crops each, as f32 tensors [3, size, size]) and answers with the seconds it took.
The recipe is the notebook's DataAugmentationDINO, with blur and solarize on Pillow images as there;
albumentations works on arrays by OpenCV and does not antialias its resize, so it does less.
"""

import argparse
import concurrent.futures
import os
import random
import sys
import time

import numpy as np
from PIL import Image, ImageFilter, ImageOps

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
# crop scale, probability of blur, probability of solarize, how many of them
VIEWS = [((0.4, 1.0), 1.0, 0.0, 1), ((0.4, 1.0), 0.1, 0.2, 1), ((0.05, 0.4), 0.5, 0.0, 8)]


def make(folder, side, count):
    """Smooth colours with texture: JPEG files of about the size of a photograph's."""
    os.makedirs(folder, exist_ok=True)
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(make_one, [folder] * count, [side] * count, range(count), chunksize=16))


def make_one(folder, side, i):
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((side, side), Image.BICUBIC), np.float32)
    fine = rng.integers(-40, 41, (side // 4, side // 4, 3)).astype(np.int16) + 128
    fine = np.asarray(Image.fromarray(fine.astype(np.uint8)).resize((side, side), Image.BICUBIC))
    noise = rng.normal(0, 4, (side, side, 3))
    image = np.clip(image + fine.astype(np.float32) - 128 + noise, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(os.path.join(folder, f"{i:04}.jpg"), quality=90)


class PillowBlur:
    def __init__(self, p):
        self.p = p

    def __call__(self, image):
        if random.random() > self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class PillowSolarize:
    def __init__(self, p):
        self.p = p

    def __call__(self, image):
        return ImageOps.solarize(image) if random.random() < self.p else image


def pillow(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def torchvision_crops(version, sizes, resample):
    import torch
    from torchvision.transforms import InterpolationMode

    torch.set_num_threads(1)
    if version == "v1":
        import torchvision.transforms as T

        to_tensor = [T.ToTensor()]
    else:
        import torchvision.transforms.v2 as T

        to_tensor = [T.ToImage(), T.ToDtype(torch.float32, scale=True)]
    mode = InterpolationMode(resample)

    def view(size, scale, blur, solarize):
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, interpolation=mode),
                T.RandomHorizontalFlip(0.5),
                T.RandomApply([T.ColorJitter(**JITTER)], p=0.8),
                T.RandomGrayscale(p=0.2),
                PillowBlur(blur),
                *([PillowSolarize(solarize)] if solarize else []),
                *to_tensor,
                T.Normalize(MEAN, STD),
            ]
        )

    return pillow, [view(size, *rest) for size, rest in sizes]


def albumentations_crops(sizes, resample):
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(0)
    mode = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[resample]
    factors = dict(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.8, 1.2))

    def view(size, scale, blur, solarize):
        transform = A.Compose(
            [
                A.RandomResizedCrop((size, size), scale=scale, interpolation=mode),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter(**factors, hue=(-0.1, 0.1), p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=blur),
                *([A.Solarize(p=solarize)] if solarize else []),
                A.Normalize(MEAN, STD),
                ToTensorV2(),
            ]
        )
        # ToTensorV2 gives a view of [size, size, 3]; the other sides' crops are [3, size, size].
        return lambda image: transform(image=image)["image"].contiguous()

    def load(path):
        return cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)

    return load, [view(size, *rest) for size, rest in sizes]


def serve(folder, variant, global_size, local_size, resample):
    sizes = []
    for scale, blur, solarize, count in VIEWS:
        size = local_size if count > 1 else global_size
        sizes += [(size, (scale, blur, solarize))] * count
    if variant == "albumentations":
        load, views = albumentations_crops(sizes, resample)
    else:
        load, views = torchvision_crops(variant.removeprefix("torchvision-"), sizes, resample)
    files = sorted(os.path.join(folder, name) for name in os.listdir(folder))
    print("ready", flush=True)
    done = 0
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            image = load(files[done % len(files)])
            crops = [view(image) for view in views]
            assert crops[0].shape == (3, global_size, global_size) and len(crops) == 10
            done += 1
        print(time.perf_counter() - start, flush=True)


parser = argparse.ArgumentParser()
parser.add_argument("--make", action="store_true")
parser.add_argument("--side", type=int, default=250)
parser.add_argument("--count", type=int, default=64)
parser.add_argument("folder")
parser.add_argument("serve", nargs="*")
args = parser.parse_args()
if args.make:
    make(args.folder, args.side, args.count)
else:
    variant, global_size, local_size, resample = args.serve
    random.seed(0)
    serve(args.folder, variant, int(global_size), int(local_size), resample)
