"""Steps of ``CIRKDMemoryLoss`` on the processes that torchrun starts, each with its own images.

Process i writes what it has after each step to ``FOLDER/i.pth``.
"""

import sys
from pathlib import Path

import torch
from feature_cases import CLASSES, Case, make_case, seed_of
from torch import distributed

from bdd_seg.losses import CIRKDMemoryLoss

STEPS = 4
SHAPE = (2, 3, 4, 4, 5)


def build() -> CIRKDMemoryLoss:
    """A small loss, the same in all processes, whose queues run over after two steps."""
    torch.manual_seed(0)
    return CIRKDMemoryLoss(
        CLASSES,
        student_channels=SHAPE[1],
        teacher_channels=SHAPE[2],
        pixel_memory=20,
        region_memory=5,
        pixel_keys=12,
        region_keys=6,
        positions=20,
    ).double()


def images_of(rank: int, step: int) -> Case:
    """The images of a process. In one step the second process has no labelled position."""
    return make_case(SHAPE, 'everything' if (rank, step) == (1, 1) else 'both', seed=10 * rank + step)


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group('gloo')
    rank, loss, steps = distributed.get_rank(), build(), []
    for step in range(STEPS):
        case = images_of(rank, step)
        student = case.student.requires_grad_()
        loss.zero_grad()
        value = loss(student, case.teacher, **case.arguments)
        value.backward()
        steps.append(
            {
                'seed': seed_of(loss, step),
                'value': value.item(),
                'gradients': [student.grad.clone(), *(weight.grad.clone() for weight in loss.parameters())],
                'state': {key: tensor.clone() for key, tensor in loss.state_dict().items()},
            }
        )
    torch.save(steps, Path(sys.argv[1], f'{rank}.pth'))
    distributed.destroy_process_group()


if __name__ == '__main__':
    main()
