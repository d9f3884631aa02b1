"""Configuration keys, their defaults, and the schedules computed from them.

The tables repeat the documented configuration keys that bear on a training step, with the same
defaults (those of the teaching notebook), so that a capture written here can be read by `selfsame`
and one written by `selfsame` can be replayed here.
"""

import copy
import math
import tomllib

import numpy as np

DEFAULTS = {
    "augment": {"global_size": 128, "local_size": 128, "local_crops": 8},
    "model": {
        "arch": "vit_small",
        "patch_size": 16,
        "image_size": 128,
        "drop_path_rate": 0.0,
        "pos_embed_resample": "official",
        # Overrides of the architecture's own size; 0 keeps it. Written to a capture only if set.
        "embed_dim": 0,
        "depth": 0,
        "num_heads": 0,
    },
    "head": {
        "kind": "notebook",
        "out_dim": 2048,
        "hidden_dim": 2048,
        "bottleneck_dim": 256,
        "norm_last_layer": True,
        "use_bn": False,
    },
    "objective": {
        "student_temp": 0.1,
        "warmup_teacher_temp": 0.04,
        "teacher_temp": 0.07,
        "warmup_teacher_temp_epochs": 30,
        "center_momentum": 0.9,
        "momentum_teacher": 0.996,
    },
    "optim": {
        "name": "adamw",
        "lr": 5e-4,
        "lr_scaling": "linear",
        "min_lr": 0.0,
        "warmup_epochs": 10,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "weight_decay_update": "epoch",
        "decay_bias_and_norm": True,
        "clip_grad": 3.0,
        "clip_mode": "global",
        "freeze_last_layer_epochs": 0,
    },
    "train": {
        "batch_size": 32,
        "accumulate": 1,
        "epochs": 100,
        "precision": "f32",
        "device": "cpu",
        "threads": 1,
    },
}

# What the official code does differently from the notebook (main_dino.py, argument defaults).
OFFICIAL = {
    "head": {"kind": "official", "out_dim": 65536},
    "objective": {"teacher_temp": 0.04, "warmup_teacher_temp_epochs": 0},
    "optim": {
        "min_lr": 1e-6,
        "weight_decay_update": "step",
        "decay_bias_and_norm": False,
        "clip_mode": "per_parameter",
        "freeze_last_layer_epochs": 1,
    },
}

RECIPES = {"notebook": {}, "official": OFFICIAL}


def merged(base, changes):
    """`base` with the tables of `changes` laid over it; a key unknown to `base` is an error."""
    out = copy.deepcopy(base)
    for table, entries in changes.items():
        for key, value in entries.items():
            if key not in out.get(table, {}):
                raise KeyError(f"unknown configuration key {table}.{key}")
            out[table][key] = value
    return out


def with_settings(config, settings):
    """Apply `table.key=value` texts, the value in TOML syntax (or a bare word)."""
    changes = {}
    for setting in settings:
        path, value = setting.split("=", 1)
        table, key = path.strip().split(".")
        try:
            parsed = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            parsed = value.strip()
        changes.setdefault(table, {})[key] = parsed
    return merged(config, changes)


def read_toml(path):
    """A capture's config.toml over the defaults; tables and keys that no step depends on are skipped."""
    with open(path, "rb") as file:
        loaded = tomllib.load(file)
    known = {
        table: {k: v for k, v in loaded.get(table, {}).items() if k in DEFAULTS[table]}
        for table in DEFAULTS
    }
    return merged(DEFAULTS, known)


def to_toml(config):
    """TOML text of a configuration; the size overrides only where they differ from 0."""

    def literal(value):
        if isinstance(value, bool):
            return "true" if value else "false"
        return f'"{value}"' if isinstance(value, str) else repr(value)

    lines = []
    for table, entries in config.items():
        lines.append(f"[{table}]")
        for key, value in entries.items():
            if key in ("embed_dim", "depth", "num_heads") and value == 0:
                continue
            lines.append(f"{key} = {literal(value)}")
        lines.append("")
    return "\n".join(lines)


class Schedules:
    """Learning rate, weight decay, EMA momentum and teacher temperature as functions of the step, in f64."""

    def __init__(self, config, steps_per_epoch):
        optim, objective, train = config["optim"], config["objective"], config["train"]
        self.n = steps_per_epoch
        self.total = train["epochs"] * steps_per_epoch
        self.warmup = optim["warmup_epochs"] * steps_per_epoch
        if self.warmup > self.total:
            raise ValueError("optim.warmup_epochs is longer than train.epochs")
        scale = 1.0
        if optim["lr_scaling"] == "linear":
            scale = train["batch_size"] * train["accumulate"] / 256
        self.base_lr = optim["lr"] * scale
        self.optim, self.objective = optim, objective
        warm = objective["warmup_teacher_temp_epochs"]
        self.temps = np.linspace(objective["warmup_teacher_temp"], objective["teacher_temp"], warm)

    @staticmethod
    def _cosine(start, end, k, length):
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * k / length))

    def at(self, step):
        """The values of step `step` (counted from 0) as a dict in the order of the log's fields."""
        optim, objective = self.optim, self.objective
        if step < self.warmup:
            lr = self.base_lr * step / (self.warmup - 1) if self.warmup > 1 else 0.0
        else:
            lr = self._cosine(
                self.base_lr, optim["min_lr"], step - self.warmup, self.total - self.warmup
            )
        decay_step = step
        if optim["weight_decay_update"] == "epoch":
            decay_step = step // self.n * self.n
        epoch = step // self.n
        return {
            "lr": lr,
            "weight_decay": self._cosine(
                optim["weight_decay"], optim["weight_decay_end"], decay_step, self.total
            ),
            "momentum": self._cosine(objective["momentum_teacher"], 1.0, step, self.total),
            "teacher_temp": float(
                self.temps[epoch] if epoch < len(self.temps) else objective["teacher_temp"]
            ),
        }
