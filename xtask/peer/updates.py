"""Clipping, AdamW and the momentum teacher in PyTorch: the other side of
`cargo xtask bench-peer updates`.

    python updates.py VARIANT THREADS

VARIANT is foreach or fused, which is how AdamW is done; clipping and the teacher are foreach in
both. Reads a number of steps per line, does them and answers with the seconds they took. The
parameters are those of a ViT-S/16 of 128 pixels with the notebook's head.
"""

import copy
import sys
import time

import timm
import torch
from torch import nn


def main():
    variant, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    backbone = timm.create_model("vit_small_patch16_224", img_size=128, num_classes=0)
    width = backbone.num_features
    head = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
    student = nn.Sequential(backbone, head, nn.Linear(width, 2048, bias=False))
    teacher = copy.deepcopy(student)
    weights, averages = list(student.parameters()), list(teacher.parameters())
    for weight in weights:
        weight.grad = torch.randn_like(weight) * 0.01
    how = {"foreach": True} if variant == "foreach" else {"fused": True}
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.04, **how)
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            nn.utils.clip_grad_norm_(weights, 3.0, foreach=True)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_mul_(averages, 0.996)
                torch._foreach_add_(averages, weights, alpha=0.004)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
