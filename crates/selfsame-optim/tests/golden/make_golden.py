"""Writes the golden trajectories of selfsame-optim: python make_golden.py (needs torch).

AdamW, SGD and the global clipping are torch's own. LARS, the parameter groups and the clipping per
parameter are restated from what the reference implementation of DINO does (utils.py there).
"""

import json
import pathlib

import torch

HERE = pathlib.Path(__file__).parent
STEPS = 7
FREEZE_STEPS = 2  # the last layer has no gradient in these, as in the first epoch
SHAPES = {
    "backbone.cls_token": (1, 1, 3),
    "backbone.norm.weight": (3,),
    "backbone.proj.bias": (4,),
    "backbone.proj.weight": (4, 3),
    "head.last_layer.weight_g": (2, 1),
    "head.last_layer.weight_v": (2, 4),
}


class Lars(torch.optim.Optimizer):
    """Momentum on q·(grad + wd·param); one-dimensional parameters use the bare gradient."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0, "momentum": 0.9, "eta": 0.001})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                update = p.grad
                if p.ndim != 1:
                    update = update + group["weight_decay"] * p
                    p_norm, u_norm = p.norm(), update.norm()
                    if p_norm > 0 and u_norm > 0:
                        update = update * (group["eta"] * p_norm / u_norm)
                mu = self.state[p].setdefault("mu", torch.zeros_like(p))
                mu.mul_(group["momentum"]).add_(update)
                p.sub_(group["lr"] * mu)


OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=0.9),
    "lars": Lars,
}


def plain(tensor):
    """Numbers with the nine digits that tell any two f32 apart."""
    return [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]


SLOTS = {"adamw": ["exp_avg", "exp_avg_sq", "step"], "sgd": ["momentum_buffer"], "lars": ["mu"]}


def groups(params, decay_bias_and_norm):
    def undecayed(name, p):
        return not decay_bias_and_norm and (name.endswith(".bias") or p.ndim == 1)

    return [
        {"params": [p for n, p in params.items() if not undecayed(n, p)], "decays": True},
        {"params": [p for n, p in params.items() if undecayed(n, p)], "decays": False},
    ]


def clip(params, limit, mode):
    """Returns the global norm before clipping."""
    grads = [p.grad for p in params.values()]
    if mode == "global":
        return torch.nn.utils.clip_grad_norm_(params.values(), limit or float("inf")).item()
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item()
    for g in grads:
        coefficient = limit / (g.norm() + 1e-6)
        if limit and coefficient < 1:
            g.mul_(coefficient)
    return norm


def case(kind, decay_bias_and_norm, limit, mode, lr):
    gen = torch.Generator().manual_seed(len(kind) + decay_bias_and_norm)
    params = {n: torch.randn(s, generator=gen).requires_grad_() for n, s in SHAPES.items()}
    if kind == "lars":
        # A parameter of norm 0 is not adapted in the first step.
        params["backbone.cls_token"].data.zero_()
    optimizer = OPTIMIZERS[kind](groups(params, decay_bias_and_norm))
    flat = lambda tensors: {n: plain(t) for n, t in tensors.items()}
    out = {
        "kind": kind,
        "decay_bias_and_norm": decay_bias_and_norm,
        "clip": limit,
        "clip_mode": mode,
        "start": flat(params),
        "steps": [],
    }
    for step in range(STEPS):
        now = {"lr": lr * (1 + step) / STEPS, "weight_decay": 0.04 + 0.05 * step}
        for group in optimizer.param_groups:
            group["lr"] = now["lr"]
            group["weight_decay"] = now["weight_decay"] if group["decays"] else 0.0
        for i, p in enumerate(params.values()):
            # Lengths from 0.5 to 6, so that a limit of 3 cuts some and leaves others.
            p.grad = torch.randn(p.shape, generator=gen) * (0.4 + 0.5 * i)
        now["grads"] = flat({n: p.grad for n, p in params.items()})
        now["norm"] = clip(params, limit, mode)
        if step < FREEZE_STEPS:
            for n, p in params.items():
                if "last_layer" in n:
                    p.grad = None
        optimizer.step()
        now["params"] = flat(params)
        out["steps"].append(now)
    out["state"] = {
        f"{slot}.{n}": plain(torch.as_tensor(optimizer.state[p][slot]))
        for n, p in params.items()
        for slot in SLOTS[kind]
    }
    return out


def write():
    value = {
        "versions": {"torch": torch.__version__.split("+")[0]},
        "freeze_steps": FREEZE_STEPS,
        "shapes": SHAPES,
        "cases": [
            case("adamw", False, 3.0, "per_parameter", 1e-2),
            case("adamw", True, 3.0, "global", 1e-2),
            case("sgd", False, 3.0, "global", 5e-2),
            case("sgd", True, 0.0, "global", 5e-2),
            case("lars", False, 3.0, "per_parameter", 5.0),
            case("lars", True, 3.0, "global", 5.0),
        ],
    }
    (HERE / "trajectories.json").write_text(json.dumps(value) + "\n")


write()
