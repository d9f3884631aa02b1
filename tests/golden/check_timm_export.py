"""Check that timm loads what `selfsame export --format timm` writes, and computes the same features.

    python check_timm_export.py --selfsame target/debug/selfsame --weights RUN [--which student]

Pictures are drawn at the model's own size, so that preparing them is only the normalisation, which
the exported config.json tells. timm reads the folder by `create_model('local-dir:DIR',
pretrained=True)`; its features must equal those of `selfsame embed` to 1e-5, norm-wise relative.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open

from make_captures import smooth_image

TOLERANCE = 1e-5


def draw(folder, count, size):
    """Smooth random pictures as PNG files; returns their bytes as `[N, size, size, 3]`."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for i in range(count):
        image = 128 + 50 * smooth_image(size, generator)
        pictures.append(image.clamp(0, 255).byte().permute(1, 2, 0).numpy())
        Image.fromarray(pictures[-1]).save(folder / f"{i:03}.png")
    return np.stack(pictures)


@torch.no_grad()
def timm_features(exported, pictures, config):
    """Features by timm, `[N, D]`, of pictures normalised as the folder says."""
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return model((images - mean) / std).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--selfsame", required=True, help="the program")
    parser.add_argument("--weights", required=True, help="a run, a file or random:ARCH/PATCH@SIZE")
    parser.add_argument("--which", default="teacher", choices=["teacher", "student"])
    parser.add_argument("--count", type=int, default=8)
    args = parser.parse_args()
    source = ["--weights", args.weights, "--which", args.which]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        exported, embedded = folder / "exported", folder / "features.safetensors"
        run = lambda *command: subprocess.run([args.selfsame, *map(str, command)], check=True)
        run("export", *source, "--format", "timm", "--out", exported)
        config = json.loads((exported / "config.json").read_text())["pretrained_cfg"]
        size = config["input_size"][-1]
        pictures = draw(folder / "pictures", args.count, size)
        data = ["--data", folder / "pictures", "--image-size", size, "--out", embedded]
        run("embed", *source, *data)
        with safe_open(embedded, "numpy") as file:
            assert json.loads(file.metadata()["files"]) == sorted(
                path.name for path in (folder / "pictures").iterdir()
            )
            ours = file.get_tensor("features")
        theirs = timm_features(exported, pictures, config)
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    spread = np.linalg.norm(theirs - theirs.mean(0)) / np.linalg.norm(theirs)
    print(f"features {ours.shape}, relative difference {difference:.1e}, between pictures {spread:.1e}")
    sys.exit(0 if difference <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
