"""The last layer and the loss with 65,536 prototypes in PyTorch: the other side of
`cargo xtask bench-peer last-layer`.

    python last_layer.py eager THREADS

Reads a number of steps per line, does them and answers with the seconds they took: logits of
student and teacher for 16 images in 10 views, the loss, its gradients and the centre.
"""

import sys
import time

import torch
from train_dino import NormalizedLinear, dino_loss

IMAGES, VIEWS, BOTTLENECK, PROTOTYPES = 16, 10, 256, 65_536


def main():
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(0)
    student, teacher = (NormalizedLinear(BOTTLENECK, PROTOTYPES) for _ in range(2))
    student_features = torch.randn(VIEWS * IMAGES, BOTTLENECK, requires_grad=True)
    teacher_features = torch.randn(2 * IMAGES, BOTTLENECK)
    center = torch.zeros(1, PROTOTYPES)
    print("ready", flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        for _ in range(int(line)):
            with torch.no_grad():
                teacher_logits = teacher(teacher_features)
            student_logits = student(student_features)
            loss = dino_loss(student_logits, teacher_logits, center, VIEWS, 0.04)
            student.weight.grad = student_features.grad = None
            loss.backward()
            with torch.no_grad():
                center.mul_(0.9).add_(teacher_logits.mean(0, keepdim=True), alpha=0.1)
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
