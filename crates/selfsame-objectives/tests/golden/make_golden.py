"""Writes the golden values of selfsame-objectives: python make_golden.py (needs torch, numpy).

The loss and the schedules are restated from the papers' formulas and the published description of
the reference implementation; torch's autograd gives the gradient, numpy the roundings.
"""

import json
import pathlib

import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
VERSIONS = {"torch": torch.__version__.split("+")[0], "numpy": np.__version__}


def write(name, value):
    text = json.dumps({"versions": VERSIONS, **value})
    (HERE / name).write_text(text + "\n")


def plain(tensor):
    """Numbers with the nine digits that tell any two f32 apart."""
    return [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]


def dino_loss(student, teacher, center, crops, student_temp, teacher_temp):
    """Mean over the pairs (global view of the teacher, other view of the student) and images."""
    student_views = (student / student_temp).chunk(crops)
    teacher_views = torch.softmax((teacher - center) / teacher_temp, -1).detach().chunk(2)
    terms = [
        (-q * torch.log_softmax(s, -1)).sum(-1).mean()
        for i, q in enumerate(teacher_views)
        for j, s in enumerate(student_views)
        if i != j
    ]
    return sum(terms) / len(terms), torch.cat(teacher_views)


def loss_case(batch, local_crops, k, student_temp, teacher_temp):
    crops = 2 + local_crops
    student = torch.randn(crops * batch, k, requires_grad=True)
    teacher = torch.randn(2 * batch, k)
    center = 0.3 * torch.randn(1, k)
    loss, probs = dino_loss(student, teacher, center, crops, student_temp, teacher_temp)
    loss.backward()
    # The momentum 0.9 and the mean over all teacher rows are the reference's.
    next_center = center * 0.9 + teacher.mean(0, keepdim=True) * (1 - 0.9)
    entropy = -(probs * torch.log(probs)).sum(-1).mean()
    return {
        "batch": batch,
        "num_crops": crops,
        "k": k,
        "student_temp": student_temp,
        "teacher_temp": teacher_temp,
        "student_logits": plain(student),
        "teacher_logits": plain(teacher),
        "center": plain(center),
        "loss": loss.item(),
        "teacher_probs": plain(probs),
        "teacher_entropy": entropy.item(),
        "student_grad": plain(student.grad),
        "next_center": plain(next_center),
    }


def cosine(base, end, epochs, n, warmup_epochs=0):
    warmup = np.linspace(0, base, warmup_epochs * n)
    steps = np.arange(epochs * n - len(warmup))
    rest = end + 0.5 * (base - end) * (1 + np.cos(np.pi * steps / len(steps))) if len(steps) else []
    return np.concatenate((warmup, rest))


def schedule_case(epochs, n, warmup_epochs, temp_epochs, update, **values):
    v = {
        "lr": 5e-4,
        "min_lr": 0.0,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "momentum_teacher": 0.996,
        "warmup_teacher_temp": 0.04,
        "teacher_temp": 0.07,
        **values,
    }
    temps = np.concatenate(
        (
            np.linspace(v["warmup_teacher_temp"], v["teacher_temp"], temp_epochs),
            np.ones(epochs - temp_epochs) * v["teacher_temp"],
        )
    )
    decay = cosine(v["weight_decay"], v["weight_decay_end"], epochs, n)
    if update == "epoch":
        decay = np.repeat(decay[::n], n)
    return {
        "steps_per_epoch": n,
        "config": {
            "epochs": epochs,
            "warmup_epochs": warmup_epochs,
            "warmup_teacher_temp_epochs": temp_epochs,
            "weight_decay_update": update,
            **v,
        },
        "lr": cosine(v["lr"], v["min_lr"], epochs, n, warmup_epochs).tolist(),
        "weight_decay": decay.tolist(),
        "momentum": cosine(v["momentum_teacher"], 1, epochs, n).tolist(),
        "teacher_temp": np.repeat(temps, n).tolist(),
    }


torch.manual_seed(0)
write(
    "dino_loss.json",
    {
        "cases": [
            loss_case(2, 3, 7, 0.1, 0.04),
            loss_case(3, 0, 5, 0.1, 0.07),
            loss_case(1, 1, 2, 0.2, 0.5),
        ]
    },
)
write(
    "schedules.json",
    {
        "cases": [
            schedule_case(5, 7, 2, 3, "epoch"),
            schedule_case(6, 3, 1, 0, "step", lr=1.25e-4, min_lr=1e-6),
            # no warm-up; one step of warm-up; all warm-up; one step in all
            schedule_case(3, 4, 0, 1, "step"),
            schedule_case(4, 1, 1, 4, "epoch", min_lr=1e-5),
            schedule_case(3, 5, 3, 3, "step"),
            schedule_case(1, 1, 0, 0, "epoch", teacher_temp=0.04),
            # constant weight decay, momentum from another start
            schedule_case(2, 6, 1, 2, "epoch", weight_decay=1e-4, weight_decay_end=1e-4, momentum_teacher=0.9),
        ]
    },
)
