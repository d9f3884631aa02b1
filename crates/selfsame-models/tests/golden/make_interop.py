"""Makes interop.json: features of Hugging Face transformers' models with the values of make_golden.py.

    python make_interop.py > interop.json

Made with Python 3.11, torch 2.15.0, transformers 5.24.0 (4.57.6 gives the same file). Weights have
the values of `fill` for our names; everything is computed in float64.
"""

import json
import sys

import torch
import transformers

from make_golden import fill, numbers, tensor

PARTS = {"query": 0, "key": 1, "value": 2}
BLOCK = {
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2",
    "layernorm_before": "norm1", "layernorm_after": "norm2", "norm1": "norm1", "norm2": "norm2",
}


def vit_value(name, shape):
    """The value of a transformer's parameter, by the name that its file has."""
    if name == "embeddings.mask_token":
        return torch.zeros(shape, dtype=torch.float64)
    fixed = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.register_tokens": "reg_token",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight", "layernorm.bias": "norm.bias",
    }
    if name in fixed:
        return fill("backbone." + fixed[name], shape)
    _, _, index, rest = name.split(".", 3)
    block = f"backbone.blocks.{index}."
    if rest.startswith("layer_scale"):
        return fill(f"{block}ls{rest[len('layer_scale')]}.gamma", shape)
    layer, field = rest.rsplit(".", 1)
    if layer.startswith("attention.attention."):
        packed = fill(f"{block}attn.qkv.{field}", (3 * shape[0], *shape[1:]))
        return packed.chunk(3)[PARTS[layer.rsplit(".", 1)[1]]]
    return fill(f"{block}{BLOCK[layer]}.{field}", shape)


def resnet_value(name, shape):
    kinds = {"convolution": "conv", "normalization": "bn"}
    parts = name.split(".")
    if parts[0] == "embedder":
        ours = f"{kinds[parts[2]]}1.{parts[3]}"
    elif parts[5] == "shortcut":
        place = {"convolution": 0, "normalization": 1}[parts[6]]
        ours = f"layer{int(parts[2]) + 1}.{parts[4]}.downsample.{place}.{parts[7]}"
    else:
        ours = f"layer{int(parts[2]) + 1}.{parts[4]}.{kinds[parts[7]]}{int(parts[6]) + 1}.{parts[8]}"
    return fill("backbone." + ours, shape)


def filled(model, value):
    """Loads the model's own file with other values, so that the names are those of files."""
    import pathlib
    import tempfile

    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = pathlib.Path(folder) / "model.safetensors"
        state = load_file(path)
        for name, old in state.items():
            if not name.endswith("num_batches_tracked"):
                state[name] = value(name, tuple(old.shape)).float().contiguous()
        save_file(state, path, metadata={"format": "pt"})
        return type(model).from_pretrained(folder).double().eval(), sorted(state)


@torch.no_grad()
def main():
    small = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        layer_norm_eps=1e-6,
    )
    t = transformers
    models = {
        "vit": (t.ViTModel(t.ViTConfig(intermediate_size=128, **small), add_pooling_layer=False), vit_value),
        "dinov2": (t.Dinov2Model(t.Dinov2Config(**small)), vit_value),
        "dinov2_swiglu": (t.Dinov2Model(t.Dinov2Config(use_swiglu_ffn=True, **small)), vit_value),
        "dinov2_registers": (
            t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(num_register_tokens=3, **small)),
            vit_value,
        ),
        "resnet18": (
            t.ResNetModel(t.ResNetConfig(
                embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic",
            )),
            resnet_value,
        ),
    }
    result = {}
    for name, (model, value) in models.items():
        model, names = filled(model, value)
        result[name] = {"names": names}
        for size in (32, 48):
            xs = tensor(f"images{size}", 2, 3, size, size)
            extra = {"interpolate_pos_encoding": True} if name == "vit" else {}
            out = model(xs, **extra)
            if name == "resnet18":
                features = out.pooler_output.flatten(1)
            else:
                features = out.last_hidden_state[:, 0]
            result[name][f"features{size}"] = numbers(features)
    json.dump(result, sys.stdout, indent=None, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
