"""Check that other programs load what `selfsame export` writes, and compute the same features.

    python check_exports.py --selfsame target/debug/selfsame --weights RUN [--official FOLDER]

Each layout is exported from the weights, loaded by the program that it is for, and that program's
features of eight drawn pictures are compared with those of `selfsame embed`: Hugging Face
transformers (no missing and no unexpected key), onnxruntime (after onnx's checker, in batches of 8
and 3), and, with --official, a clone of facebookresearch/dino. Then `selfsame embed` reads the
exported folder or file again. Tolerances, norm-wise relative: 1e-5, 1e-4 for ONNX, 0 coming back.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0 and 4.57.6, onnx 1.23.2, onnxruntime 1.32.0.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from check_timm_export import draw

CLASSES = {
    "vit": transformers.ViTModel,
    "resnet": transformers.ResNetModel,
    "dinov2": transformers.Dinov2Model,
    "dinov2_with_registers": transformers.Dinov2WithRegistersModel,
}


@torch.no_grad()
def hf(folder, images):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    extra = {"add_pooling_layer": False} if kind == "vit" else {}
    model, info = CLASSES[kind].from_pretrained(folder, output_loading_info=True, **extra)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], f"{what}: {info[what]}"
    out = model.eval()(images)
    return (out.pooler_output.flatten(1) if kind == "resnet" else out.last_hidden_state[:, 0]).numpy()


def onnx_features(folder, images):
    path = str(folder / "model.onnx")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    whole = session.run([first], {"pixels": images.numpy()})[0]
    part = session.run([first], {"pixels": images[:3].numpy()})[0]
    assert np.allclose(part, whole[:3], rtol=1e-4, atol=1e-5)
    return whole


@torch.no_grad()
def official(folder, images, clone, model):
    sys.path.insert(0, str(clone))
    import vision_transformer as vits

    state = load_file(folder / "model.safetensors")
    backbone = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    width, depth = backbone["norm.weight"].numel(), sum(k.endswith("norm1.weight") for k in backbone)
    net = vits.VisionTransformer(
        img_size=[images.shape[-1]], patch_size=model["patch_size"], embed_dim=width, depth=depth,
        num_heads=model["num_heads"] or width // 64, qkv_bias=True,
        norm_layer=lambda d: torch.nn.LayerNorm(d, eps=1e-6),
    )
    net.load_state_dict(backbone, strict=True)
    head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    if head:
        out_dim = head["last_layer.weight_v"].shape[0]
        vits.DINOHead(width, out_dim).load_state_dict(head, strict=True)
        print(f"  official DINOHead with {out_dim} prototypes loaded")
    return net.eval()(images).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--selfsame", required=True, help="the program")
    parser.add_argument("--weights", required=True, help="a run, a file or random:ARCH/PATCH@SIZE")
    parser.add_argument("--official", type=pathlib.Path, help="a clone of facebookresearch/dino")
    parser.add_argument("--only", nargs="*", default=["hf", "onnx", "dino"])
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)

        def run(*command):
            return subprocess.run(
                [args.selfsame, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout

        def embed(weights, name):
            out = folder / f"{name}.safetensors"
            data = ["--data", folder / "pictures", "--image-size", size, "--out", out]
            run("embed", "--weights", weights, *data)
            with safe_open(out, "numpy") as file:
                return file.get_tensor("features")

        about = json.loads(run("inspect", args.weights, "--json"))
        size, model = about["image_size"], about["model"]
        pictures = draw(folder / "pictures", 8, size)
        mean, std = (torch.tensor(about[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
        images = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - mean) / std
        ours = embed(args.weights, "ours")

        def compare(what, theirs, tolerance):
            nonlocal failed
            off = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            failed |= not off <= tolerance
            print(f"{what}: features {theirs.shape}, relative difference {off:.1e}")

        for layout in args.only:
            out = folder / layout
            run("export", "--weights", args.weights, "--format", layout, "--out", out)
            if layout == "hf":
                compare(f"transformers {transformers.__version__}", hf(out, images), 1e-5)
                compare("  its folder read again", embed(out, "again"), 0)
            elif layout == "onnx":
                compare(f"onnxruntime {onnxruntime.__version__}", onnx_features(out, images), 1e-4)
            elif layout == "dino":
                if args.official and model["arch"].startswith("vit"):
                    compare("official vision_transformer.py", official(out, images, args.official, model), 1e-5)
                state = load_file(out / "model.safetensors")
                student = {f"module.{k}": v + 1 for k, v in state.items() if v.is_floating_point()}
                torch.save({"student": student, "teacher": state, "epoch": 3}, folder / "checkpoint.pth")
                # A .pth tells no normalisation; this file beside it does.
                beside = {"image_mean": about["mean"], "image_std": about["std"]}
                (folder / "preprocessor_config.json").write_text(json.dumps(beside))
                compare("  as the teacher of a .pth", embed(folder / "checkpoint.pth", "pth"), 0)
    sys.exit(failed)


if __name__ == "__main__":
    main()
