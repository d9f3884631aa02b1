"""Makes reference.json: features, gradients and running statistics of timm, torchvision, torch.

    python make_golden.py > reference.json

Weights and inputs are not stored: `fill` below and `fill` in tests/common/mod.rs are the same
formula. Gradients are stored as their norm and their product with a fixed direction. Everything
is computed in float64, so the numbers are the formula's and not one library's rounding.
"""

import json
import math
import sys

import numpy as np
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn


def noise(name, count):
    """Uniform in [-1, 1): FNV-1a of the name, a Weyl sequence, the murmur3 finaliser."""
    key = 0x811C9DC5
    for byte in name.encode():
        key = ((key ^ byte) * 0x01000193) & 0xFFFFFFFF
    mask = np.uint64(0xFFFFFFFF)
    x = (np.uint64(key) + np.arange(count, dtype=np.uint64) * np.uint64(2654435761)) & mask
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & mask
    x = ((x ^ (x >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & mask
    x = x ^ (x >> np.uint64(16))
    return x.astype(np.float64) / 2.0**31 - 1.0


def fill(name, shape):
    """The value of a parameter, rounded to f32 as the Rust side stores it."""
    u = noise(name, math.prod(shape)).reshape(shape)
    if name.endswith("running_var"):
        v = 1.0 + 0.5 * u
    elif name.endswith(("cls_token", "pos_embed")):
        v = 0.5 * u
    elif name.endswith("weight_g"):
        v = 1.0 + 0.2 * u
    elif len(shape) >= 2:
        v = u * math.sqrt(3.0 * shape[0] / math.prod(shape))
    elif name.endswith("weight"):
        v = 1.0 + 0.2 * u
    else:
        v = 0.1 * u
    return torch.from_numpy(v.astype(np.float32).astype(np.float64))


def tensor(name, *shape):
    u = noise(name, math.prod(shape)).reshape(shape)
    return torch.from_numpy(u.astype(np.float32).astype(np.float64))


def filled(module, prefix):
    module.double()
    state = module.state_dict()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = fill(prefix + name, tuple(value.shape))
    module.load_state_dict(state)
    return module


def numbers(t):
    return [float(f"{v:.9g}") for v in t.detach().flatten().tolist()]


def projection(name, value):
    """Norm, and product with a fixed direction."""
    value = value.flatten()
    return numbers(torch.stack([value.norm(), value @ tensor("probe." + name, value.numel())]))


def gradients(module, prefix, output):
    """Backward of <output, direction>; norm and projection of each gradient."""
    module.zero_grad()
    (output * tensor("direction", *output.shape)).sum().backward()
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            found[prefix + name] = projection(prefix + name, parameter.grad)
    return found


def statistics(module, prefix):
    return {
        prefix + name: projection(prefix + name, value)
        for name, value in module.state_dict().items()
        if name.endswith(("running_mean", "running_var"))
    }


def vit():
    model = filled(
        timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0,
            dynamic_img_size=True,
        ),
        "backbone.",
    )
    result = {}
    for size in (32, 16, 48):
        xs = tensor("input", 2, 3, size, size) * 2
        features = model(xs)
        result[str(size)] = {
            "features": numbers(features),
            "gradients": gradients(model, "backbone.", features),
        }
    xs = tensor("input", 2, 3, 32, 32) * 2
    layers = model.get_intermediate_layers(xs, n=2, return_prefix_tokens=True, norm=True)
    result["layers"] = [
        {"class": numbers(prefix), "patches": numbers(patches[:, :3])} for patches, prefix in layers
    ]
    hooked = {}
    attn = model.blocks[1].attn
    attn.register_forward_pre_hook(lambda _, args: hooked.update(x=args[0]))
    model(xs)
    x = hooked["x"]
    b, n, c = x.shape
    q, k, _ = attn.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / math.sqrt(c // 2)).softmax(-1)
    result["attention_class_row"] = numbers(weights[:, :, 0])
    return result


def resnet(name, size, raise_biases=0.0):
    """One training step and the evaluation after it.

    With ResNet-50 at zero biases torch itself differs by 6 % between f32 and f64 gradients: 53
    batch norms over few values, each followed by a kink at zero. Biases raised by 3 move the
    values away from the kink, which brings torch's own difference down to 1e-5: no value in front
    of a ReLU is nearer than 20 times what f32 is off by there. Raised by 2, one behind
    layer4.1.bn1 is -8.9e-6 where f32 is off by up to 2.4e-5, so that another order of additions
    moves it over the kink.
    """
    model = filled(getattr(torchvision.models, name)(), "backbone.")
    model.fc = nn.Identity()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            parameter.data = (parameter.data.float() + raise_biases).double()
    model.train()
    xs = tensor("input", 4, 3, size, size) * 2
    features = model(xs)
    result = {
        "features": numbers(features[:, :64]),
        "norm": numbers(features.norm(dim=1)),
        "gradients": gradients(model, "backbone.", features),
        "statistics": statistics(model, "backbone."),
    }
    model.eval()
    features = model(xs)
    result["eval_features"] = numbers(features[:, :64])
    result["eval_norm"] = numbers(features.norm(dim=1))
    return result


class NotebookHead(nn.Module):
    def __init__(self, d, k, bn, norm):
        super().__init__()
        layer = lambda: [nn.Linear(d, d), nn.GELU(), nn.BatchNorm1d(d) if bn else nn.Identity()]
        self.mlp = nn.Sequential(*layer(), *layer())
        self.last_layer = nn.Linear(d, k, bias=False)
        self.norm = norm

    def forward(self, x):
        w = self.last_layer.weight
        return F.linear(self.mlp(x), F.normalize(w, dim=1) if self.norm else w)


class OfficialHead(nn.Module):
    def __init__(self, d, k, bn, norm):
        super().__init__()
        hidden, bottleneck = 20, 12
        layers = []
        for a in (d, hidden):
            layers += [nn.Linear(a, hidden)] + ([nn.BatchNorm1d(hidden)] if bn else []) + [nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        self.last_layer = torch.nn.utils.weight_norm(nn.Linear(bottleneck, k, bias=False))
        self.norm = norm

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


def head(form, bn, norm):
    model = filled(form(16, 24, bn, norm), "head.")
    if norm and form is OfficialHead:
        model.last_layer.weight_g.data.fill_(1)
        model.last_layer.weight_g.requires_grad = False
    model.train()
    logits = model(tensor("input", 6, 16) * 2)
    return {
        "logits": numbers(logits),
        "gradients": gradients(model, "head.", logits),
        "statistics": statistics(model, "head."),
    }


def position_embeddings():
    cases = []
    for side, rows, columns in ((14, 6, 6), (4, 7, 7), (8, 14, 14), (8, 4, 4), (6, 3, 9)):
        grid = tensor("grid", 2, side, side)[None]
        official = dict(scale_factor=((rows + 0.1) / side, (columns + 0.1) / side))
        ways = {
            "official": official,
            "hf": dict(size=(rows, columns), align_corners=False),
            "timm": dict(size=(rows, columns), antialias=True),
        }
        for mode, options in ways.items():
            out = F.interpolate(grid, mode="bicubic", **options)[0]
            assert out.shape[1:] == (rows, columns)
            cases.append({"mode": mode, "side": side, "rows": rows, "columns": columns, "values": numbers(out)})
    return cases


def main():
    heads = {
        f"{name}{'_bn' if bn else ''}{'_norm' if norm else ''}": head(form, bn, norm)
        for name, form in (("notebook", NotebookHead), ("official", OfficialHead))
        for bn in (False, True)
        for norm in (False, True)
    }
    json.dump(
        {
            "made_with": {
                "torch": torch.__version__.split("+")[0],
                "torchvision": torchvision.__version__.split("+")[0],
                "timm": timm.__version__,
                "numpy": np.__version__,
            },
            "vit": vit(),
            "resnet18": resnet("resnet18", 64),
            "resnet50": resnet("resnet50", 64, raise_biases=3.0),
            "heads": heads,
            "position_embeddings": position_embeddings(),
        },
        sys.stdout,
        separators=(",", ":"),
    )
    print()


if __name__ == "__main__":
    main()
