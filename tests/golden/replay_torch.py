"""Replay a capture in PyTorch: the same job as `selfsame replay`, for captures made by either side.

    python replay_torch.py CAPTURE [--steps N] [--out F.jsonl] [--save F.safetensors]
                           [--threads N] [--dtype float32|float64]
"""

import argparse
import json
import pathlib

import safetensors.torch
import torch
from safetensors.torch import load_file

import dino_config
from dino_torch import Trainer


def replay(folder, steps=None, dtype=torch.float32, mistake=None):
    """Yield (log line, trainer) per step; batches are taken in turn and begin again after the last."""
    folder = pathlib.Path(folder)
    meta = json.loads((folder / "capture.json").read_text())
    assert meta["format"] == 1, f"capture format {meta['format']} is not known here"
    config = dino_config.read_toml(folder / "config.toml")
    assert config["train"]["epochs"] == meta["epochs"], "capture.json and config.toml disagree"
    trainer = Trainer(config, meta["steps_per_epoch"], dtype, mistake)
    trainer.load(load_file(folder / "state.safetensors"))
    count = meta["batches"] if steps is None else steps
    for i in range(count):
        batch = load_file(folder / f"batch-{i % meta['batches']:06}.safetensors")
        yield trainer.step(meta["step"] + i, batch["global"], batch.get("local")), trainer


def save(tensors, path):
    """Write a safetensors file with the permissions of any other file (save_file makes it private)."""
    pathlib.Path(path).write_bytes(safetensors.torch.save(tensors))


def write_replay(folder, steps, dtype, out, final=None, mistake=None):
    """Replay and write the log lines and, if wanted, the state after the last step."""
    with open(out, "w") as log:
        for line, trainer in replay(folder, steps, dtype, mistake):
            log.write(json.dumps(line) + "\n")
            log.flush()
    if final is not None:
        save(trainer.state(), final)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=pathlib.Path)
    parser.add_argument("--steps", type=int, help="default: as many as there are batches")
    parser.add_argument("--out", default="replay.jsonl")
    parser.add_argument("--save", default="replay.safetensors")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    write_replay(args.capture, args.steps, getattr(torch, args.dtype), args.out, args.save)


if __name__ == "__main__":
    main()
