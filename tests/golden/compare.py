"""Compare a replay with a capture's expected result.

    python compare.py CAPTURE replay.jsonl saved.safetensors [--loss-tolerance 2e-5]
                      [--weight-tolerance 1e-4] [--top 12] [--expected-log F] [--expected-state F]

Prints the relative difference of the loss and of the gradient norm at every step, then the norm-wise
relative difference |ours - expected| / |expected| of every final tensor, the largest first.
Exits with 1 if a loss, a schedule or a weight (student, teacher, center) is out of tolerance, or if
a tensor is missing or has another shape. Optimizer state is printed but not judged.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file

SCHEDULES = ("lr", "weight_decay", "momentum", "teacher_temp")


def relative(ours, expected):
    """|ours - expected| / |expected| in f64; the absolute difference where expected is zero."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    scale = np.linalg.norm(expected.ravel())
    difference = np.linalg.norm((ours - expected).ravel())
    return float(difference / scale) if scale > 0 else float(difference)


def parts_of(name, tensor):
    """The named parts a tensor is judged by: itself, or query, key and value of a packed bias.

    A key bias adds the same amount to all scores of a query, so softmax removes it: its gradient is
    rounding noise, which Adam turns into steps of full size. It is printed, but cannot be judged.
    """
    if name.endswith("attn.qkv.bias") and tensor.ndim == 1:
        return [(f"{name}[{part}]", values) for part, values in zip("qkv", np.split(tensor, 3))]
    return [(name, tensor)]


def judged(name):
    """Whether a difference in this tensor fails the comparison."""
    return not name.startswith("optim.") and not name.endswith("qkv.bias[k]")


def compare_logs(expected, ours, tolerance):
    """Print a line per step; return whether all are within tolerance."""
    good = len(expected) == len(ours)
    if not good:
        print(f"steps: expected {len(expected)}, found {len(ours)}")
    print(f"{'step':>5} {'loss':>12} {'loss rel.':>10} {'norm rel.':>10} {'schedules':>10}")
    for want, have in zip(expected, ours):
        loss = relative(have["loss"], want["loss"])
        norm = relative(have["grad_norm"], want["grad_norm"])
        schedule = max(relative(have[key], want[key]) for key in SCHEDULES)
        ok = have["step"] == want["step"] and loss <= tolerance and schedule <= 1e-12
        good &= ok
        print(
            f"{want['step']:>5} {want['loss']:>12.7f} {loss:>10.2e} {norm:>10.2e} {schedule:>10.2e}"
            + ("" if ok else "  <-- out of tolerance")
        )
    return good


def compare_states(expected, ours, tolerance, top):
    """Print the largest differences; return whether all judged ones are within tolerance."""
    skip = lambda names: {n for n in names if not n.endswith("num_batches_tracked")}
    missing, surplus = skip(expected) - skip(ours), skip(ours) - skip(expected)
    good = not missing and not surplus
    for word, names in (("missing", missing), ("surplus", surplus)):
        for name in sorted(names):
            print(f"{word}: {name}")
    rows = []
    for name in skip(expected) & skip(ours):
        if expected[name].shape != ours[name].shape:
            print(f"shape of {name}: expected {expected[name].shape}, found {ours[name].shape}")
            good = False
            continue
        pairs = zip(parts_of(name, ours[name]), parts_of(name, expected[name]))
        rows += [(relative(have, want), part) for (part, have), (_, want) in pairs]
    for title, wanted in (("judged", True), ("not judged", False)):
        chosen = sorted((row for row in rows if judged(row[1]) == wanted), reverse=True)
        if not chosen:
            continue
        print(f"\n{len(chosen)} tensors {title}, largest relative differences:")
        for difference, name in chosen[:top]:
            ok = not wanted or difference <= tolerance
            print(f"  {difference:.2e}  {name}" + ("" if ok else "  <-- out of tolerance"))
        if wanted:
            good &= chosen[0][0] <= tolerance
    return good


def read_log(path):
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines() if line]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("capture", type=pathlib.Path)
    parser.add_argument("replay", type=pathlib.Path)
    parser.add_argument("saved", type=pathlib.Path)
    parser.add_argument("--loss-tolerance", type=float, default=2e-5)
    parser.add_argument("--weight-tolerance", type=float, default=1e-4)
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--expected-log", type=pathlib.Path)
    parser.add_argument("--expected-state", type=pathlib.Path)
    args = parser.parse_args()
    log = args.expected_log or args.capture / "expected.jsonl"
    state = args.expected_state or args.capture / "expected_final.safetensors"
    good = compare_logs(read_log(log), read_log(args.replay), args.loss_tolerance)
    good &= compare_states(load_file(state), load_file(args.saved), args.weight_tolerance, args.top)
    print("\nwithin tolerance" if good else "\nOUT OF TOLERANCE")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
