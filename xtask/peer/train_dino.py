"""DINO training in plain PyTorch, as one would write it: the other side of a speed comparison.

    python train_dino.py --images DIR [--recipe cpu|notebook|official] [--steps 20] [--threads 2]
        [--workers 2] [--device cpu|cuda] [--amp] [--compile] [--reuse-batch]

Images are decoded by Pillow and augmented by torchvision in DataLoader workers; the model is timm's.
Prints one JSON line per step, or per --steps-a-line of them, on stdout: step, loss, seconds (a
whole step, waiting for data included), wait_seconds (of it, waiting for data), images_per_s. Only
then is the device waited for. A last line sums up all lines but the first two, which pay for
start-up.
"""

import argparse
import json
import math
import pathlib
import random
import statistics
import sys
import time

import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARCHS = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}
# Values of the presets of the same names; every flag left out is taken from here.
RECIPES = {
    "cpu": dict(
        arch="vit_tiny",
        patch=8,
        global_size=64,
        local_size=32,
        local_crops=6,
        batch=64,
        out_dim=2048,
        head="official",
        interpolation="bicubic",
        per_parameter_clip=True,
        decay_all=False,
        freeze_epochs=1,
        temps=(0.04, 0.04, 0),
        warmup_epochs=1,
        epochs=10,
        min_lr=1e-6,
    ),
    "notebook": dict(
        arch="vit_small",
        patch=16,
        global_size=128,
        local_size=128,
        local_crops=8,
        batch=32,
        out_dim=2048,
        head="notebook",
        interpolation="bilinear",
        per_parameter_clip=False,
        decay_all=True,
        freeze_epochs=0,
        temps=(0.04, 0.07, 30),
        warmup_epochs=10,
        epochs=100,
        min_lr=0.0,
    ),
    "official": dict(
        arch="vit_small",
        patch=16,
        global_size=224,
        local_size=96,
        local_crops=8,
        batch=64,
        out_dim=65536,
        head="official",
        interpolation="bicubic",
        per_parameter_clip=True,
        decay_all=False,
        freeze_epochs=1,
        temps=(0.04, 0.04, 0),
        warmup_epochs=10,
        epochs=100,
        min_lr=1e-6,
        drop_path=0.1,
    ),
}


class Blur:
    """Pillow's Gaussian blur with a radius drawn from (0.1, 2)."""

    def __init__(self, p):
        self.p = p

    def __call__(self, image):
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Solarize:
    """Pillow's solarization above 128."""

    def __init__(self, p):
        self.p = p

    def __call__(self, image):
        return ImageOps.solarize(image) if random.random() < self.p else image


class MultiCrop(Dataset):
    """Images of a folder, each as `[2,3,G,G]` and `[L,3,S,S]`."""

    def __init__(self, folder, recipe):
        suffixes = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
        self.files = sorted(
            path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in suffixes
        )
        self.local_crops = recipe["local_crops"]
        mode = InterpolationMode(recipe["interpolation"])
        jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)

        def view(size, scale, *last):
            return v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=scale, interpolation=mode),
                    v2.RandomHorizontalFlip(),
                    v2.RandomApply([jitter], p=0.8),
                    v2.RandomGrayscale(p=0.2),
                    *last,
                    v2.ToImage(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(MEAN, STD),
                ]
            )

        whole, part = (0.4, 1.0), (0.05, 0.4)
        self.global1 = view(recipe["global_size"], whole, Blur(1.0))
        self.global2 = view(recipe["global_size"], whole, Blur(0.1), Solarize(0.2))
        self.local = view(recipe["local_size"], part, Blur(0.5))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        crops = [self.global1(image), self.global2(image)]
        return crops + [self.local(image) for _ in range(self.local_crops)]


class NormalizedLinear(nn.Module):
    """Prototypes: a linear layer whose rows have length one."""

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())

    def forward(self, xs):
        return F.linear(xs, F.normalize(self.weight, dim=1))


class Head(nn.Module):
    """The notebook's head (two layers of the backbone's width) or the official one with a bottleneck."""

    def __init__(self, width, recipe):
        super().__init__()
        self.official = recipe["head"] == "official"
        hidden = 2048 if self.official else width
        layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU()]
        if self.official:
            layers.append(nn.Linear(hidden, 256))
            for layer in layers[::2]:
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(*layers)
        self.last_layer = NormalizedLinear(256 if self.official else hidden, recipe["out_dim"])

    def forward(self, xs):
        xs = self.mlp(xs)
        return self.last_layer(F.normalize(xs, dim=-1) if self.official else xs)


class Model(nn.Module):
    """Backbone and head; one backbone pass per crop size, one head pass over all."""

    def __init__(self, recipe, drop_path=0.0):
        super().__init__()
        options = {}
        if recipe["arch"].startswith("vit"):
            options = dict(
                drop_path_rate=drop_path,
                img_size=recipe["global_size"],
                patch_size=recipe["patch"],
                dynamic_img_size=recipe["local_size"] != recipe["global_size"],
            )
        self.backbone = timm.create_model(ARCHS[recipe["arch"]], num_classes=0, **options)
        self.head = Head(self.backbone.num_features, recipe)

    def forward(self, crops):
        sizes = dict.fromkeys(crop.shape[-1] for crop in crops)
        groups = [torch.cat([c for c in crops if c.shape[-1] == size]) for size in sizes]
        return self.head(torch.cat([self.backbone(group) for group in groups]))


def dino_loss(student_logits, teacher_logits, center, views, teacher_temp):
    """Mean cross-entropy over pairs of a teacher view and a different student view."""
    log_probs = F.log_softmax(student_logits.float() / 0.1, dim=-1).chunk(views)
    targets = F.softmax((teacher_logits.float() - center) / teacher_temp, dim=-1).chunk(2)
    pairs = [(t, v) for t in range(2) for v in range(views) if v != t]
    return sum(-(targets[t] * log_probs[v]).sum(-1).mean() for t, v in pairs) / len(pairs)


def cosine(start, end, k, length):
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * k / length))


def endless(loader):
    while True:
        yield from loader


def train(args, recipe):
    """Train for args.steps steps, printing a line for each."""
    device = torch.device(args.device)
    dataset = MultiCrop(args.images, recipe)
    if len(dataset) < recipe["batch"]:
        sys.exit(f"{args.images}: {len(dataset)} images are fewer than a batch of {recipe['batch']}")
    loader = DataLoader(
        dataset,
        batch_size=recipe["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(args.seed),
    )
    student = Model(recipe, recipe.get("drop_path", 0.0)).to(device).train()
    teacher = Model(recipe).to(device).train().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    if args.channels_last:
        student, teacher = (net.to(memory_format=torch.channels_last) for net in (student, teacher))
    run_student, run_teacher = student, teacher
    if args.compile:
        run_student, run_teacher = torch.compile(student), torch.compile(teacher)
    center = torch.zeros(1, recipe["out_dim"], device=device)
    views = 2 + recipe["local_crops"]

    named = list(student.named_parameters())
    plain = [p for _, p in named if p.ndim < 2 and not recipe["decay_all"]]
    decayed = [p for _, p in named if p.ndim > 1 or recipe["decay_all"]]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, fused=device.type == "cuda")

    n = len(loader)
    warmup, total = recipe["warmup_epochs"] * n, max(recipe["epochs"] * n, args.steps)
    base_lr = 5e-4 * recipe["batch"] / 256
    cold, warm, temp_epochs = recipe["temps"]
    times, waits = [], []
    batches = iter(endless(loader))
    kept = None
    started, waited = time.perf_counter(), 0.0
    for step in range(args.steps):
        waiting = time.perf_counter()
        crops = kept if kept is not None else next(batches)
        waited += time.perf_counter() - waiting
        if kept is None:
            crops = [crop.to(device, non_blocking=True) for crop in crops]
            if args.channels_last:
                crops = [crop.to(memory_format=torch.channels_last) for crop in crops]
        if args.reuse_batch:
            kept = crops

        epoch = step // n
        lr = base_lr * step / max(warmup - 1, 1)
        if step >= warmup:
            lr = cosine(base_lr, recipe["min_lr"], step - warmup, total - warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        decay_step = epoch * n if recipe["decay_all"] else step
        optimizer.param_groups[0]["weight_decay"] = cosine(0.04, 0.4, decay_step, total)
        temp = warm
        if epoch < temp_epochs:
            temp = cold + (warm - cold) * epoch / (temp_epochs - 1)

        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.amp):
            with torch.no_grad():
                teacher_logits = run_teacher(crops[:2])
            student_logits = run_student(crops)
        loss = dino_loss(student_logits, teacher_logits, center, views, temp)
        optimizer.zero_grad()
        loss.backward()
        if recipe["per_parameter_clip"]:
            for _, param in named:
                nn.utils.clip_grad_norm_(param, 3.0)
        else:
            nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        if epoch < recipe["freeze_epochs"]:
            student.head.last_layer.weight.grad = None
        optimizer.step()

        with torch.no_grad():
            momentum = cosine(0.996, 1.0, step, total)
            averages = list(teacher.parameters())
            torch._foreach_mul_(averages, momentum)
            torch._foreach_add_(averages, list(student.parameters()), alpha=1 - momentum)
            center.mul_(0.9).add_(teacher_logits.float().mean(0, keepdim=True), alpha=0.1)

        if (step + 1) % args.steps_a_line > 0:
            continue
        value = loss.item()  # waits for the device
        times.append((time.perf_counter() - started) / args.steps_a_line)
        waits.append(waited / args.steps_a_line)
        line = {"step": step, "loss": value, "seconds": round(times[-1], 5)}
        line["wait_seconds"] = round(waits[-1], 5)
        line["images_per_s"] = round(recipe["batch"] / times[-1], 2)
        print(json.dumps(line), flush=True)
        started, waited = time.perf_counter(), 0.0

    settled = times[2:] or times
    summary = {
        "summary": "median step after the first two",
        "seconds": round(statistics.median(settled), 4),
        "images_per_s": round(recipe["batch"] * len(settled) / sum(settled), 2),
        "wait_fraction": round(sum(waits[2:] or waits) / sum(settled), 4),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "threads": torch.get_num_threads(),
        "workers": args.workers,
        "amp": args.amp,
        "device": args.device,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "",
        **{key: recipe[key] for key in ("arch", "patch", "global_size", "local_size")},
        **{key: recipe[key] for key in ("local_crops", "batch", "out_dim", "head")},
    }
    print(json.dumps(summary), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of images, searched recursively")
    parser.add_argument("--recipe", choices=list(RECIPES), default="cpu")
    parser.add_argument("--arch", choices=list(ARCHS))
    parser.add_argument("--patch", type=int)
    parser.add_argument("--global-size", type=int)
    parser.add_argument("--local-size", type=int)
    parser.add_argument("--local-crops", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--out-dim", type=int)
    parser.add_argument("--head", choices=["notebook", "official"])
    parser.add_argument("--epochs", type=int, help="length of the schedules")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps-a-line", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--reuse-batch", action="store_true", help="the first batch again and again")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = dict(RECIPES[args.recipe])
    recipe.update({k: v for k, v in vars(args).items() if k in recipe and v is not None})
    if args.threads:
        torch.set_num_threads(args.threads)
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    train(args, recipe)


if __name__ == "__main__":
    main()
