"""Makes patch_kernel.json: patch kernels resampled by timm's resample_patch_embed.

    python make_patch_kernel.py > patch_kernel.json

Made with Python 3.11, torch 2.15.0, timm 1.0.31. timm computes in float32.
"""

import json
import sys

import torch
from timm.layers.patch_embed import resample_patch_embed


def main():
    cases = []
    for old, new in [(16, 8), (8, 16), (14, 16), (16, 14), (8, 5)]:
        count = 2 * old * old
        # Numbers that are exact in float32 and short in JSON.
        kernel = ((torch.arange(count) * 2654435761 % 1024) - 512).float() / 1024
        kernel = kernel.reshape(1, 2, old, old)
        with torch.no_grad():
            done = resample_patch_embed(kernel, [new, new])
        cases.append({"from": old, "to": new, "kernel": kernel.flatten().tolist(),
                      "resampled": [round(x, 7) for x in done.double().flatten().tolist()]})
    json.dump(cases, sys.stdout)
    print()


if __name__ == "__main__":
    main()
