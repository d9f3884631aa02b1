"""Features of all pictures of a folder in plain PyTorch, as one would write it: the other side of
`cargo xtask bench-peer embed`.

    python embed.py --images DIR --out F.npy [--arch resnet50] [--size 224] [--batch 64]
        [--threads 2] [--workers 2] [--channels-last]

Prints one JSON line: images, and the seconds from the first picture to the written file, without
imports and the model.
"""

import argparse
import json
import pathlib
import time

import numpy
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from train_dino import ARCHS, MEAN, STD


class Pictures(Dataset):
    def __init__(self, folder, size):
        self.files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
        self.transform = v2.Compose(
            [
                v2.Resize(size, interpolation=InterpolationMode.BICUBIC),
                v2.CenterCrop(size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--arch", default="resnet50", choices=sorted(ARCHS))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    of_size = {"img_size": args.size} if args.arch.startswith("vit") else {}
    model = timm.create_model(ARCHS[args.arch], num_classes=0, **of_size).eval()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    pictures = Pictures(args.images, args.size)
    started = time.perf_counter()
    features = []
    with torch.inference_mode():
        for batch in DataLoader(pictures, args.batch, num_workers=args.workers):
            features.append(model(batch.to(memory_format=layout)).numpy())
    numpy.save(args.out, numpy.concatenate(features))
    seconds = time.perf_counter() - started
    print(json.dumps({"images": len(pictures), "seconds": seconds}))


if __name__ == "__main__":
    main()
