"""DINO training in PyTorch, one step at a time: the peer that captures are made with.

Backbones are timm's. Heads, loss, center, clipping and the LARS optimizer are written here from the
published formulas (paper Eq. 1-4; the official main_dino.py, utils.py and vision_transformer.py for
the details that the paper leaves open; the teaching notebook for its own head and loop).
"""

import math
import types

import timm
import torch
import torch.nn.functional as F
from torch import nn

from dino_config import Schedules

ARCHS = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "resnet18": "resnet18",
    "resnet50": "resnet50",
}


def resampled_patch_positions(grid, height, width, method):
    """Position embeddings of the patches, `[1, h, w, D]`, resampled to another grid.

    official: bicubic (a = -0.75) with the size plus 0.1 given as scale factors, so that rounding never
    loses a row (vision_transformer.py, interpolate_pos_encoding); the sampling step is therefore
    h / (height + 0.1). hf: bicubic to the exact size. timm: bicubic to the exact size with antialiasing.
    """
    _, old_h, old_w, _ = grid.shape
    if (old_h, old_w) == (height, width):
        return grid
    planes = grid.permute(0, 3, 1, 2)
    if method == "official":
        factors = ((height + 0.1) / old_h, (width + 0.1) / old_w)
        planes = F.interpolate(planes, scale_factor=factors, mode="bicubic")
    else:
        planes = F.interpolate(
            planes, size=(height, width), mode="bicubic", antialias=method == "timm"
        )
    assert planes.shape[-2:] == (height, width)
    return planes.permute(0, 2, 3, 1)


def backbone(model):
    """A timm backbone without classifier for the `[model]` table; returns it and its feature width."""
    name = ARCHS[model["arch"]]
    if not name.startswith("vit"):
        net = timm.create_model(name, num_classes=0)
        return net, net.num_features

    sizes = {key: model[key] for key in ("embed_dim", "depth", "num_heads") if model[key]}
    assert model["drop_path_rate"] == 0.0, "captures are made without drop path"
    net = timm.create_model(
        name,
        num_classes=0,
        img_size=model["image_size"],
        patch_size=model["patch_size"],
        dynamic_img_size=True,  # any crop size; patch_embed then yields [B, h, w, D]
        **sizes,
    )
    method = model["pos_embed_resample"]
    side = model["image_size"] // model["patch_size"]

    def with_positions(self, patches):
        b, h, w, d = patches.shape
        grid = self.pos_embed[:, 1:].reshape(1, side, side, d)
        grid = resampled_patch_positions(grid, h, w, method).reshape(1, h * w, d)
        class_token = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([class_token.expand(b, -1, -1), patches.reshape(b, -1, d) + grid], 1)

    # timm's own `_pos_embed` is left in place for its own method, as a second opinion.
    if method != "timm":
        net._pos_embed = types.MethodType(with_positions, net)
    return net, net.num_features


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose row k is `weight_g[k] * weight_v[k] / |weight_v[k]|`."""

    def __init__(self, in_dim, out_dim, train_scale):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=train_scale)
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())

    def forward(self, xs):
        rows = self.weight_v / self.weight_v.norm(dim=1, keepdim=True)
        return F.linear(xs, self.weight_g * rows)


class OfficialHead(nn.Module):
    """Three linear layers to a bottleneck, L2 norm, weight-normalised prototypes."""

    def __init__(self, in_dim, head):
        super().__init__()
        hidden = head["hidden_dim"]
        layers = []
        for width in (in_dim, hidden):
            layers.append(nn.Linear(width, hidden))
            if head["use_bn"]:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.GELU())
        layers.append(nn.Linear(hidden, head["bottleneck_dim"]))
        self.mlp = nn.Sequential(*layers)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = WeightNormLinear(
            head["bottleneck_dim"], head["out_dim"], train_scale=not head["norm_last_layer"]
        )

    def forward(self, xs):
        return self.last_layer(F.normalize(self.mlp(xs), dim=-1))


class NotebookHead(nn.Module):
    """Two linear layers of the backbone's width, then prototypes, normalised by row if so configured."""

    def __init__(self, in_dim, head):
        super().__init__()
        norm = (lambda: nn.BatchNorm1d(in_dim)) if head["use_bn"] else nn.Identity
        linear = lambda: nn.Linear(in_dim, in_dim)
        self.mlp = nn.Sequential(linear(), nn.GELU(), norm(), linear(), nn.GELU(), norm())
        self.last_layer = nn.Linear(in_dim, head["out_dim"], bias=False)
        self.norm_rows = head["norm_last_layer"]

    def forward(self, xs):
        weight = self.last_layer.weight
        if self.norm_rows:
            weight = F.normalize(weight, dim=1)
        return F.linear(self.mlp(xs), weight)


class Network(nn.Module):
    """Backbone and head; `forward` takes one tensor per resolution and returns `[views * B, K]`."""

    def __init__(self, config):
        super().__init__()
        self.backbone, width = backbone(config["model"])
        head = {"official": OfficialHead, "notebook": NotebookHead}[config["head"]["kind"]]
        self.head = head(width, config["head"])

    def forward(self, crops_by_size):
        return self.head(torch.cat([self.backbone(crops) for crops in crops_by_size]))


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rates; 1-D parameters get neither weight decay nor adaptation."""

    def __init__(self, groups, eta=0.001, momentum=0.9):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self.eta, self.momentum = eta, momentum

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                update = param.grad
                if param.ndim != 1:
                    update = update + group["weight_decay"] * param
                    p_norm, u_norm = param.norm(), update.norm()
                    if p_norm > 0 and u_norm > 0:
                        update = update * (self.eta * p_norm / u_norm)
                state = self.state[param]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(param)
                state["mu"].mul_(self.momentum).add_(update)
                param.add_(state["mu"], alpha=-group["lr"])


def dino_loss(student_logits, teacher_logits, center, num_views, student_temp, teacher_temp):
    """Mean cross-entropy over all pairs of a teacher view and a different student view (Eq. 1-3)."""
    log_probs = F.log_softmax(student_logits / student_temp, dim=-1).chunk(num_views)
    targets = F.softmax((teacher_logits - center) / teacher_temp, dim=-1).chunk(2)
    terms = [
        -(target * log_probs[view]).sum(-1).mean()
        for t, target in enumerate(targets)
        for view in range(num_views)
        if view != t
    ]
    return sum(terms) / len(terms)


# Mistakes that an implementation may well contain, for runs that a golden test must tell from right.
MISTAKES = ("gelu_tanh", "layer_norm_eps", "ema_order")


def spoil(network, mistake):
    """Put a mistake of the forward pass into every layer that it concerns."""
    kind, field, value = {
        "gelu_tanh": (nn.GELU, "approximate", "tanh"),
        "layer_norm_eps": (nn.LayerNorm, "eps", 1e-5),
    }[mistake]
    layers = [layer for layer in network.modules() if isinstance(layer, kind)]
    assert layers and all(getattr(layer, field) != value for layer in layers)
    for layer in layers:
        setattr(layer, field, value)


class Trainer:
    """Student, teacher, center and optimizer, and one method that makes a step with them.

    `mistake` is one of MISTAKES: GELU by tanh, LayerNorm's eps 1e-5 for 1e-6, or the teacher's update
    made before the teacher sees the batch (with the student of the step before) and not after.
    """

    def __init__(self, config, steps_per_epoch, dtype=torch.float32, mistake=None):
        self.config, self.dtype, self.mistake = config, dtype, mistake
        self.schedules = Schedules(config, steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.student = Network(config).to(dtype).train()
        self.teacher = Network(config).to(dtype).train()  # neither reference calls teacher.eval()
        for param in self.teacher.parameters():
            param.requires_grad_(False)
        self.center = torch.zeros(1, config["head"]["out_dim"], dtype=dtype)
        self.trained = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        self.optimizer = self._optimizer()
        if mistake in ("gelu_tanh", "layer_norm_eps"):
            spoil(self.student, mistake)
            spoil(self.teacher, mistake)

    def _optimizer(self):
        decayed, plain = [], []
        everything = self.config["optim"]["decay_bias_and_norm"]
        for param in self.trained.values():
            (decayed if everything or param.ndim > 1 else plain).append(param)
        groups = [{"params": decayed, "decays": True}, {"params": plain, "decays": False}]
        groups = [group for group in groups if group["params"]]
        name = self.config["optim"]["name"]
        if name == "adamw":
            return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)
        if name == "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=0.9)
        assert name == "lars", f"unknown optimizer {name}"
        return Lars(groups)

    def step(self, step, global_crops, local_crops):
        """One optimizer step on `[2,B,3,G,G]` and `[L,B,3,S,S]` (or None); returns its log line."""
        objective, optim = self.config["objective"], self.config["optim"]
        now = self.schedules.at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = now["lr"]
            group["weight_decay"] = now["weight_decay"] if group["decays"] else 0.0

        globals_flat = global_crops.to(self.dtype).flatten(0, 1)
        by_size = [globals_flat]
        num_views = 2
        if local_crops is not None:
            num_views += local_crops.shape[0]
            locals_flat = local_crops.to(self.dtype).flatten(0, 1)
            # Consecutive crops of one size make one forward pass, which batch norm can tell.
            if locals_flat.shape[-1] == globals_flat.shape[-1]:
                by_size = [torch.cat([globals_flat, locals_flat])]
            else:
                by_size.append(locals_flat)

        if self.mistake == "ema_order":
            self._update_teacher(now["momentum"])
        with torch.no_grad():
            teacher_logits = self.teacher([globals_flat])
        loss = dino_loss(
            self.student(by_size),
            teacher_logits,
            self.center,
            num_views,
            objective["student_temp"],
            now["teacher_temp"],
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

        grad_norm = math.sqrt(
            sum(p.grad.double().square().sum().item() for p in self.trained.values())
        )
        self._clip(optim["clip_grad"], optim["clip_mode"])
        if step // self.steps_per_epoch < optim["freeze_last_layer_epochs"]:
            for name, param in self.trained.items():
                if name.startswith("head.last_layer"):
                    param.grad = None
        self.optimizer.step()

        if self.mistake != "ema_order":
            self._update_teacher(now["momentum"])
        keep = objective["center_momentum"]
        batch_mean = teacher_logits.sum(0, keepdim=True) / len(teacher_logits)
        self.center = self.center * keep + batch_mean * (1 - keep)
        return {"step": step, "loss": loss.item(), "grad_norm": grad_norm, **now}

    @torch.no_grad()
    def _update_teacher(self, momentum):
        pairs = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
        for ours, average in pairs:  # parameters only: batch-norm statistics stay each one's own
            average.mul_(momentum).add_((1 - momentum) * ours)

    def _clip(self, limit, mode):
        if not limit:
            return
        if mode == "global":
            nn.utils.clip_grad_norm_(list(self.trained.values()), limit)
            return
        for param in self.trained.values():
            factor = limit / (param.grad.norm() + 1e-6)
            if factor < 1:
                param.grad.mul_(factor)

    def state(self):
        """Every tensor of the run as f32 under a capture's names."""
        tensors = {"center": self.center}
        for who, net in (("student", self.student), ("teacher", self.teacher)):
            for name, value in net.state_dict().items():
                tensors[f"{who}.{name}"] = value
        for name, param in self.trained.items():
            for key, value in self.optimizer.state.get(param, {}).items():
                if value is not None:
                    tensors[f"optim.{key}.{name}"] = value
        return {n: t.detach().to(torch.float32).contiguous().clone() for n, t in tensors.items()}

    def load(self, tensors):
        """Take over a capture's state; a missing or surplus tensor is an error."""
        left = dict(tensors)
        self.center = left.pop("center").to(self.dtype)
        for who, net in (("student", self.student), ("teacher", self.teacher)):
            own = {n: left.pop(f"{who}.{n}", None) for n in net.state_dict()}
            missing = [n for n, t in own.items() if t is None]
            assert all(n.endswith("num_batches_tracked") for n in missing), f"missing: {missing}"
            net.load_state_dict({n: t for n, t in own.items() if t is not None}, strict=False)
        for key in list(left):
            kind, name = key.removeprefix("optim.").split(".", 1)
            value = left.pop(key)
            # torch keeps its step counter in f32, whatever the parameter's type.
            dtype = torch.float32 if kind == "step" else self.dtype
            self.optimizer.state[self.trained[name]][kind] = value.to(dtype).clone()
        assert not left
