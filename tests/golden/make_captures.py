"""Make captures with expected results: DINO trained in PyTorch on given batches.

One capture by flags, every value of the configuration settable:

    python make_captures.py --out DIR --recipe official --set model.arch=vit_tiny --start 7 --steps 20

or the named sets, whose flags stand in the tables below:

    python make_captures.py --set-of small --out tests/golden/captures
    python make_captures.py --set-of large --out /some/folder/with/room

or, beside captures that are there already, what comes out with a mistake in the program
(mistake_NAME.jsonl), for tests that must notice it:

    python make_captures.py --set-of small --out tests/golden/captures --mistake gelu_tanh

A folder holds what `selfsame replay` reads (capture.json, config.toml, state.safetensors,
batch-*.safetensors) and what it should then give: expected.jsonl (a line per step) and
expected_final.safetensors (the state after the last step, same names).
"""

import argparse
import json
import pathlib

import torch
import torch.nn.functional as F

import dino_config
from dino_torch import MISTAKES, Trainer
from replay_torch import save, write_replay

# Schedules short enough that 20 steps pass the end of the warm-ups, of the freeze, and some epochs.
SHORT = [
    "train.epochs=6",
    "optim.warmup_epochs=2",
    "optim.lr_scaling=none",
]
TINY_VIT = [
    "model.arch=vit_tiny",
    "model.embed_dim=16",
    "model.num_heads=2",
    "model.patch_size=4",
    "model.image_size=16",
    "augment.global_size=16",
    "augment.local_size=12",
    "augment.local_crops=2",
    "train.batch_size=2",
]
TINY_HEAD = ["head.hidden_dim=24", "head.bottleneck_dim=8", "head.out_dim=48"]
AT_128 = ["model.image_size=128", "augment.global_size=128", "train.batch_size=4"]
LOCAL_64 = ["augment.local_size=64"]
NOTEBOOK_WARMUP = ["objective.warmup_teacher_temp_epochs=3"]

# Small networks need a larger perturbation, or the class token drowns the image.
SMALL = {
    "notebook-tiny": dict(
        recipe="notebook",
        batches=2,
        spread=0.15,
        set=[*SHORT, *TINY_VIT, *NOTEBOOK_WARMUP, "model.depth=2", "head.out_dim=48"],
    ),
    "official-tiny": dict(
        recipe="official",
        batches=2,
        spread=0.15,
        set=[*SHORT, *TINY_VIT, *TINY_HEAD, "model.depth=2"],
    ),
    # Starts two steps into the second epoch: the last layer has fewer steps behind it than the rest.
    "official-tiny-s7": dict(
        recipe="official",
        batches=2,
        spread=0.15,
        start=7,
        steps=20,
        set=[
            *SHORT,
            *TINY_VIT,
            *TINY_HEAD,
            "model.depth=1",
            "model.pos_embed_resample=timm",
            "head.norm_last_layer=false",
            "optim.lr_scaling=linear",
            "optim.lr=0.064",
        ],
    ),
}
SGD = ["optim.name=sgd", "optim.lr=0.03", "optim.weight_decay=1e-4", "optim.weight_decay_end=1e-4"]
LARGE = {
    "notebook-vit_small": dict(recipe="notebook", set=[*SHORT, *AT_128, *NOTEBOOK_WARMUP]),
    "official-vit_small": dict(
        recipe="official", set=[*SHORT, *AT_128, *LOCAL_64, "head.out_dim=2048"]
    ),
    "official-vit_tiny-s7": dict(
        recipe="official",
        start=7,
        steps=23,
        set=[*SHORT, *AT_128, *LOCAL_64, "model.arch=vit_tiny", "head.out_dim=2048"],
    ),
    "official-lars-vit_tiny": dict(
        recipe="official",
        set=[
            *SHORT,
            *AT_128,
            *LOCAL_64,
            "model.arch=vit_tiny",
            "head.out_dim=2048",
            "optim.name=lars",
            "optim.lr=0.3",
        ],
    ),
    "sgd-resnet18": dict(
        recipe="official",
        steps=8,
        batches=8,
        set=[*SHORT, *AT_128, *LOCAL_64, *SGD, "model.arch=resnet18", "head.out_dim=2048"],
    ),
    "sgd-resnet50": dict(
        recipe="official",
        steps=4,  # PyTorch itself drifts apart by 7e-5 in 6 steps, 1e-4 being the tolerance
        batches=4,
        set=[
            *SHORT,
            *AT_128,
            *LOCAL_64,
            *SGD,
            "model.arch=resnet50",
            "head.out_dim=2048",
            "augment.local_crops=4",
        ],
    ),
}


def smooth_image(side, generator):
    """Noise of four octaves, `[3, side, side]`, about zero mean and unit variance."""
    image = torch.zeros(1, 3, side, side)
    for cells in (2, 4, 8, 16):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image += F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=True)
    return ((image - image.mean()) / image.std())[0]


def view_of(image, size, smallest, generator):
    """A random square part of an image at `size`, with its own brightness and a little fresh noise."""
    side = image.shape[-1]
    draw = lambda: torch.rand((), generator=generator).item()
    extent = max(2, round(side * (smallest + (1 - smallest) * draw())))
    top, left = (round((side - extent) * draw()) for _ in range(2))
    part = image[None, :, top : top + extent, left : left + extent]
    part = F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0]
    noise = torch.randn(part.shape, generator=generator)
    return part * (0.8 + 0.4 * draw()) + (draw() - 0.5) + 0.05 * noise


def random_batch(config, generator):
    """Crops of smooth random images: views of one image resemble each other, as in training."""
    augment, b = config["augment"], config["train"]["batch_size"]
    images = [smooth_image(augment["global_size"], generator) for _ in range(b)]

    def views(count, size, smallest):
        drawn = [view_of(image, size, smallest, generator) for _ in range(count) for image in images]
        return torch.stack(drawn).reshape(count, b, 3, size, size).contiguous()

    batch = {"global": views(2, augment["global_size"], 0.6)}
    if augment["local_crops"]:
        batch["local"] = views(augment["local_crops"], augment["local_size"], 0.2)
    return batch


@torch.no_grad()
def perturbed(trainer, spread, seed):
    """Move weights off their special initial values (zero biases, unit norms, teacher = student)."""
    generator = torch.Generator().manual_seed(seed)
    noise = lambda like, std: std * torch.randn(like.shape, generator=generator)
    state = trainer.state()
    for name, _ in trainer.student.named_parameters():
        student, teacher = state[f"student.{name}"], state[f"teacher.{name}"]
        if name in trainer.trained:
            student += noise(student, spread)
            teacher.copy_(student + noise(student, 0.2 * spread))
    for name, buffer in trainer.student.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            for who in ("student", "teacher"):
                state[f"{who}.{name}"] += noise(buffer, spread).abs()
    state["center"] += noise(state["center"], spread)
    return state


def make(out, recipe, settings, start, steps, steps_per_epoch, batches, seed, spread):
    """Write one capture folder and the expected result of `steps` steps from it."""
    config = dino_config.merged(dino_config.DEFAULTS, dino_config.RECIPES[recipe])
    config = dino_config.with_settings(config, settings)
    torch.manual_seed(seed)
    trainer = Trainer(config, steps_per_epoch)
    trainer.load(perturbed(trainer, spread, seed + 1))
    generator = torch.Generator().manual_seed(seed + 2)
    for step in range(start):  # steps before the capture, on batches that are not kept
        batch = random_batch(config, generator)
        trainer.step(step, batch["global"], batch.get("local"))

    out.mkdir(parents=True, exist_ok=True)
    meta = {
        "format": 1,
        "step": start,
        "steps_per_epoch": steps_per_epoch,
        "epochs": config["train"]["epochs"],
        "batches": batches,
    }
    (out / "capture.json").write_text(json.dumps(meta) + "\n")
    (out / "config.toml").write_text(dino_config.to_toml(config))
    save(trainer.state(), out / "state.safetensors")
    for i in range(batches):
        save(random_batch(config, generator), out / f"batch-{i:06}.safetensors")
    # The expected result is a replay of what was just written, not a continuation from memory.
    write_replay(
        out, steps, torch.float32, out / "expected.jsonl", out / "expected_final.safetensors"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--set-of", choices=["small", "large"])
    parser.add_argument("--only", nargs="+", help="of a named set, just these")
    parser.add_argument("--recipe", choices=list(dino_config.RECIPES), default="notebook")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE")
    parser.add_argument("--start", type=int, default=0, help="step at which the capture is taken")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--steps-per-epoch", type=int, default=5)
    parser.add_argument("--batches", type=int, help="default: one per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spread", type=float, default=0.05, help="of the initial perturbation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mistake", choices=MISTAKES, help="replay what is there with a mistake")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    jobs = {"": dict(recipe=args.recipe, set=[])}
    if args.set_of:
        jobs = {"small": SMALL, "large": LARGE}[args.set_of]
    for name, job in jobs.items():
        if args.only and name not in args.only:
            continue
        steps = job.get("steps", args.steps)
        if args.mistake:
            log = args.out / name / f"mistake_{args.mistake}.jsonl"
            write_replay(args.out / name, steps, torch.float32, log, mistake=args.mistake)
            print(log)
            continue
        make(
            args.out / name,
            job["recipe"],
            [*job["set"], *args.set],
            job.get("start", args.start),
            steps,
            args.steps_per_epoch,
            job.get("batches", args.batches or steps),
            args.seed,
            job.get("spread", args.spread),
        )
        print(args.out / name)


if __name__ == "__main__":
    main()
