"""Reads a run's TensorBoard events with the tensorboard package and compares them with metrics.jsonl; on demand.

    python check_events.py RUN

Needs `pip install tensorboard` (checked with 2.21.0).
"""

import json
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run = pathlib.Path(sys.argv[1])
events = EventAccumulator(str(run), size_guidance={"scalars": 0})
events.Reload()
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
steps = [line for line in lines if "loss" in line]
worst, count = 0.0, 0
for tag in events.Tags()["scalars"]:
    found = events.Scalars(tag)
    if tag.startswith("train/"):
        expected = [(line["step"], line[tag.removeprefix("train/")]) for line in steps]
    elif tag.startswith("views/"):
        key = {"views/auc": "view_auc", "views/effective_rank": "effective_rank"}[tag]
        expected = [(line["step"] or 0, line[key]) for line in lines if key in line]
    else:
        _, label, k = tag.split("/")
        expected = [(line["step"] or 0, line["knn"][k[1:]]) for line in lines if line.get("label") == label]
    assert [event.step for event in found] == [step for step, _ in expected], tag
    for event, (_, value) in zip(found, expected):
        worst = max(worst, abs(event.value - value) / max(abs(value), 1e-30))
        count += 1
print(f"{count} numbers, largest relative difference {worst:.1e} (f32: 6.0e-8)")
sys.exit(worst > 6.0e-8)
