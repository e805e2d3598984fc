"""Measure the time and memory of every distillation loss, forward and backward.

The parts: loss (losses of logits), feature loss (losses of features, on the grid of the logits), step (one of
the plain PSPNet-R18, with --step). Ratios are to BDDLoss on logits of the same shape. balance_divergence is
measured by itself: its fused form against the plain form of bdd_seg/losses/divergences.py.
"""

import argparse
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
import torch
from harness import (
    Case,
    Result,
    Row,
    add_argument,
    add_shared_arguments,
    check_shared_arguments,
    format_setting,
    format_shape,
    measure,
    print_saved_result,
    save_result,
    settings_of,
)
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from step_cost import build_network, random_batch
from torch import Tensor

from bdd_seg import losses
from bdd_seg.cli.arguments import make_folder
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.errors import ConfigError
from bdd_seg.losses import DistillLoss, divergences, fused
from bdd_seg.losses.divergences import DOMAINS
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.study.machine import describe_machine

STUDENT = Path(__file__).parent.parent / 'configs/pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
STRIDE = 8
"""Of the student: an image has this many times the height and width of the logits."""
NAME = 'loss_cost'
PARTS = ('loss', 'feature loss', 'step')
SHAPES = ((2, 19, 64, 128), (8, 19, 64, 128), (2, 19, 128, 256), (8, 19, 128, 256))
CLASSES = 19
"""Classes of the labels, or as many as the logits have if these are fewer."""
CELL = 8
"""Side of the squares of positions that have one label."""
DIVERGENCE = 'balance_divergence'
FORMS: dict[str, Callable[..., Tensor]] = {
    'plain': divergences.balance_divergence,
    'fused': fused.balance_divergence,
}
"""Beginning of a row's name → the form it measures. The first is the reference of the others."""
REFERENCE = 'BDDLoss'
METHODS: dict[str, dict[str, Callable[[], DistillLoss]]] = {
    'loss': {
        'BDDLoss': losses.BDDLoss,
        'KDLoss': losses.KDLoss,
        'CWDLoss': losses.CWDLoss,
        'AlphaBetaLoss': losses.AlphaBetaLoss,
        'DISTLoss': losses.DISTLoss,
        'DKDLoss': losses.DKDLoss,
        'BPKDLoss': losses.BPKDLoss,
    },
    'feature loss': {
        'FeatureLoss, mse': partial(losses.FeatureLoss, distance='mse'),
        'FeatureLoss, cosine': partial(losses.FeatureLoss, distance='cosine'),
        'AttentionLoss': losses.AttentionLoss,
        'PairwiseLoss, paper': partial(losses.PairwiseLoss, mode='paper'),
        'PairwiseLoss, code': partial(losses.PairwiseLoss, mode='code'),
        'IFVDLoss': losses.IFVDLoss,
        'CIRKDLoss': losses.CIRKDLoss,
        'CIRKDMemoryLoss': partial(losses.CIRKDMemoryLoss, num_classes=CLASSES),
        'MGDLoss': losses.MGDLoss,
    },
}
"""Part → beginning of a row's name → the loss it measures. Up to the comma the name is that of the class."""
CHOICES = [DIVERGENCE, *dict.fromkeys(name.split(',')[0] for table in METHODS.values() for name in table)]


def parse_args() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_argument(
        parser,
        '--shapes',
        type=parse_shape,
        nargs='+',
        default=SHAPES,
        metavar='NxCxHxW',
        help='shapes of the logits',
    )
    add_argument(
        parser,
        '--channels',
        type=int,
        nargs=2,
        default=(128, 512),
        metavar=('STUDENT', 'TEACHER'),
        help='channels of the features',
    )
    methods = f'what to measure, all by default; a loss beside {REFERENCE}'
    parser.add_argument('--methods', nargs='+', choices=CHOICES, metavar='NAME', help=methods)
    step = 'also a step of the plain student; on a CPU, where it takes seconds, for the first shape alone'
    parser.add_argument('--step', action='store_true', help=step)
    add_shared_arguments(parser, NAME)
    args = parser.parse_args()
    check_arguments(args)
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Check the command line.

    Raises:
        ConfigError: A number is too small, or the device is not there.
    """
    check_shared_arguments(args)
    if min(args.channels) < 1:
        raise ConfigError(f'--channels must be at least 1 1, got {format_setting(args.channels)}')
    if args.step and min(shape[0] for shape in args.shapes) < 2:
        raise ConfigError(
            '--step needs a batch of at least 2 for the sake of BatchNorm, got '
            f'--shapes {format_setting(args.shapes)}'
        )


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the shape that ``NxCxHxW`` names.

    Raises:
        argparse.ArgumentTypeError: It is not four positive numbers.
    """
    shape = tuple(int(size) if size.isdigit() else 0 for size in text.split('x'))
    if len(shape) != 4 or 0 in shape:
        raise argparse.ArgumentTypeError(f'{text!r} is no shape such as 2x19x64x128')
    return shape


def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    if args.table is not None:
        print_saved_result(args.table, PARTS)
        return
    make_folder(args.out, '--out')
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # as in the configs
    cases = build_cases(args)
    rows = []
    for steps in (False, True):  # apart, since a step leaves the memory cold for the loss after it
        group = [case for case in cases if (case.part == 'step') is steps]
        rows += measure(group, args.device, args.repetitions) if group else []
    add_shares_of_step(rows)
    machine = describe_machine(args.device == 'cuda')
    student, teacher = args.channels
    note = f"The student's features have {student} channels, the teacher's {teacher}."
    result = Result(machine, settings_of(args), [note], rows)
    title = machine['gpu' if args.device == 'cuda' else 'cpu']
    save_result(result, args.out, NAME, title, f'time relative to the plain form, or to {REFERENCE}')


def build_cases(args: argparse.Namespace) -> list[Case]:
    """Return the cases that the command line asks for, shape by shape."""
    names = set(CHOICES if args.methods is None else args.methods)
    cases = []
    for number, shape in enumerate(args.shapes):
        if args.step and (number == 0 or args.device == 'cuda'):
            cases.append(step_case(shape, args.device))
        if DIVERGENCE in names:
            for domain in DOMAINS:
                cases += form_cases(shape, domain, args.device)
        if names - {DIVERGENCE}:
            cases += method_cases(names | {REFERENCE}, shape, args.channels, args.device)
    return cases


def step_case(shape: tuple[int, ...], device: str) -> Case:
    """Return a case of a step of the plain student, the optimizer's included, on random images.

    Args:
        shape: (N, C, H, W) of its logits, with N > 1.
        device: ``'cpu'`` or ``'cuda'``.
    """
    MMLogger.get_instance('mmengine', log_level='ERROR')  # a line for each layer that is initialised
    init_default_scope('mmseg')
    images, _, height, width = shape
    cfg = load_config(STUDENT)
    cfg.model.pretrained = None
    crops = argparse.Namespace(batch=images, shape=(STRIDE * height, STRIDE * width), device=device)
    run = partial(build_network(cfg, device).step, random_batch(crops, cfg))
    name = f'step of PSPNet-R18, {format_shape(shape)}'
    return Case('step', name, run, name, images=images)


def method_cases(
    names: Collection[str], shape: tuple[int, ...], channels: tuple[int, int], device: str
) -> list[Case]:
    """Return a case for each of the methods, on random logits or features.

    Args:
        names: Of classes of :mod:`bdd_seg.losses`.
        shape: (N, C, H, W) of the logits.
        channels: Those of the student's and of the teacher's features.
        device: ``'cpu'`` or ``'cuda'``.
    """
    images, classes, height, width = shape
    labels = random_labels(shape).to(device)
    reference = f'{REFERENCE}, {format_shape(shape)}'
    cases = []
    for part, table in METHODS.items():
        chosen = {name: build for name, build in table.items() if name.split(',')[0] in names}
        if not chosen:
            continue
        student_channels, teacher_channels = channels if part == 'feature loss' else (classes, classes)
        student = torch.randn(images, student_channels, height, width, device=device, requires_grad=True)
        teacher = torch.randn(images, teacher_channels, height, width, device=device)
        for name, build in chosen.items():
            loss = build()
            loss.adapt(student_channels, teacher_channels)
            loss.to(device)
            weights = list(loss.parameters())
            run = partial(value_and_gradients, loss, student, teacher, weights, seg_label=labels)
            state = sum(map(mebibytes, [*weights, *loss.buffers()]))
            details = {'MiB of weights and buffers': state} if weights else {}
            logits_mib = mebibytes(student) if part == 'loss' else 0
            row = f'{name}, {format_shape(shape)}'
            cases.append(Case(part, row, run, reference, logits_mib=logits_mib, details=details))
    return cases


def random_labels(shape: tuple[int, ...]) -> Tensor:
    """Return labels (N, H, W) for logits (N, C, H, W), in squares, about a tenth of which are 255."""
    images, classes, height, width = shape
    cells = torch.randint(min(classes, CLASSES), (images, -(-height // CELL), -(-width // CELL)))
    cells[torch.rand(cells.shape) < 0.1] = 255
    return cells.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)[:, :height, :width].contiguous()


def add_shares_of_step(rows: list[Row]) -> None:
    """Add to each row its share of the step that has logits of the same shape, if one was measured."""
    steps = {row.name.split(', ')[-1]: row.median_s for row in rows if row.part == 'step'}
    for row in rows:
        step = steps.get(row.name.split(', ')[-1])
        if step is not None and row.part != 'step':
            row.details['% of a step'] = 100 * row.median_s / step


def form_cases(shape: tuple[int, ...], domain: str, device: str) -> list[Case]:
    """Return a case for each form of the divergence, on random logits.

    Args:
        shape: (N, C, H, W) of the logits.
        domain: One of :data:`bdd_seg.losses.divergences.DOMAINS`.
        device: ``'cpu'`` or ``'cuda'``.
    """
    student = torch.randn(shape, device=device, requires_grad=True)
    teacher = torch.randn(shape, device=device)
    names = {form: f'{form}, {domain}, {format_shape(shape)}' for form in FORMS}
    reference = next(iter(FORMS))
    expected = value_and_gradients(FORMS[reference], student, teacher, domain=domain)
    cases = []
    for form, function in FORMS.items():
        run = partial(value_and_gradients, function, student, teacher, domain=domain)
        details = {}
        if form != reference:
            value_error, gradient_error = map(relative_error, run(), expected)
            details = {'value off by': value_error, 'gradient off by': gradient_error}
        logits_mib = mebibytes(student)
        cases.append(Case('loss', names[form], run, names[reference], logits_mib=logits_mib, details=details))
    return cases


def value_and_gradients(
    loss: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    weights: Collection[Tensor] = (),
    **arguments: Any,
) -> tuple[Tensor, ...]:
    """Return a loss, and its gradients in the student's map and in the weights."""
    value = loss(student, teacher, **arguments)
    return value.detach(), *torch.autograd.grad(value, [student, *weights])


def mebibytes(tensor: Tensor) -> float:
    """Return the size of a tensor in MiB."""
    return tensor.nbytes / 2**20


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference divided by the norm of what is expected."""
    return ((actual - expected).norm() / expected.norm()).item()


if __name__ == '__main__':
    with one_line_errors('interrupted; nothing is written'):
        main()
