"""Makes the .pth files beside it and expected.json: what torch.load finds in them.

    python make_golden.py

Made with Python 3.11, torch 2.15.0, numpy 2.4.6. Values are small whole numbers, so that every
element type holds them.
"""

import argparse
import collections
import json
import pathlib

import numpy as np
import torch

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
HERE = pathlib.Path(__file__).parent


def counting(*shape, dtype=torch.float32, first=0):
    count = int(np.prod(shape))
    return (torch.arange(count) % 100 + first).to(dtype).reshape(shape)


def files():
    """Name and content of each file."""
    plain = collections.OrderedDict(
        [("cls_token", counting(1, 1, 4)), ("norm.weight", counting(4, first=1))]
    )
    types = {
        str(dtype).removeprefix("torch."): counting(3, dtype=dtype)
        for dtype in (
            torch.float64, torch.float32, torch.float16, torch.bfloat16,
            torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        )
    } | {"bool": torch.tensor([True, False]), "scalar": torch.tensor(7.0), "empty": torch.zeros(0, 3)}
    base = counting(4, 6)
    views = {
        "base": base,
        "turned": base.t(),
        "column": base[:, 2],
        "row": base[3],
        "every_other": base[::2, 1::2],
        "same": base,
    }
    # Together larger than their file, which holds the numbers once.
    shared = counting(50)
    tied = {"first": shared, "second": shared, "expanded": shared.expand(10, 50)}
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(counting(4, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "student": {f"module.backbone.{k}": v for k, v in model.state_dict().items()},
        "teacher": {f"backbone.{k}": v for k, v in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=5e-4, local_crops_scale=(0.05, 0.4)),
        "dino_loss": {"center": counting(1, 5)},
        "best": np.float64(74.5),
        "fp16_scaler": None,
    }
    # The imaginary part of a conjugate is negated only when it is read; a column of it has strides.
    conjugate = torch.complex(counting(4, 3), counting(4, 3, first=1)).conj()
    negative = {
        "plain": counting(3, first=1),
        "real": conjugate.real,
        "imag": conjugate.imag,
        "column": conjugate.imag[:, 1],
        "double": torch._neg_view(counting(3).double()),
        "half": torch._neg_view(counting(3).half()),
        "bfloat16": torch._neg_view(counting(3).bfloat16()),
    }
    # Counter: the milestones of a MultiStepLR.
    kinds = {
        "weight": counting(2, 3),
        "scheduler": {"milestones": collections.Counter([30, 30, 80]), "counted": collections.Counter()},
        "complex": torch.complex(counting(2), counting(2)),
        "float8": counting(2).to(torch.float8_e4m3fn),
        "uint16": counting(2, dtype=torch.uint16),
        "quantized": torch.quantize_per_tensor(counting(2), 0.1, 0, torch.qint8),
        "sparse": counting(2, 3).to_sparse(),
        "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        "meta": torch.zeros(3, device="meta"),
        "parameter": torch.nn.Parameter(torch.complex(counting(2), counting(2))),
        "negative_int": torch._neg_view(counting(2, dtype=torch.int32)),
    }
    keys = {
        ("layer", 1): counting(1), ("layer",): counting(1, first=1), (): counting(1, first=2),
        None: counting(1, first=3), True: counting(1, first=4), 1.5: counting(1, first=5),
        "k" * 300 + "x": counting(1, first=6), "k" * 300 + "y": counting(1, first=7), -2: counting(1, first=8),
    }
    parameter = {"weight": torch.nn.Parameter(counting(2, 2)), "list": [counting(2), counting(3)]}
    return {
        "plain": plain, "types": types, "views": views, "tied": tied, "checkpoint": checkpoint,
        "parameter": parameter, "negative": negative, "kinds": kinds, "keys": keys,
        "no_tensors": {"epoch": 3, "name": "run", "list": [1, 2]},
    }


def is_read(tensor):
    """Whether the crate reads tensors of this kind."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    is_plain = is_plain and not tensor.is_nested and not tensor.is_quantized
    is_float = tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return is_plain and (is_float or tensor.dtype in INTEGERS and not tensor.is_neg())


def flat(value, name=""):
    """Tensors under their paths, as the crate names them."""
    if isinstance(value, torch.Tensor):
        if is_read(value):
            yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{name}.{index}" if name else str(index))


def main():
    torch.manual_seed(0)
    expected = {}
    for name, content in files().items():
        path = HERE / f"{name}.pth"
        torch.save(content, path)
        loaded = torch.load(path, weights_only=False)
        expected[name] = {
            key: {
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": list(tensor.shape),
                "values": [float(v) for v in tensor.detach().flatten().double()],
            }
            for key, tensor in flat(loaded)
        }
    torch.save(counting(3), HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
