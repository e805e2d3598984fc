"""Measure the time and memory of the balance divergence: the plain form against the fused one.

The plain form is in bdd_seg/losses/divergences.py, the fused one in bdd_seg/losses/fused.py. A run is a
forward and a backward pass.
"""

import argparse
from collections.abc import Callable
from functools import partial

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
import torch
from harness import (
    Case,
    Result,
    add_argument,
    add_shared_arguments,
    check_shared_arguments,
    format_shape,
    measure,
    print_saved_result,
    save_result,
    settings_of,
)
from torch import Tensor

from bdd_seg.cli.arguments import make_folder
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.losses import divergences, fused
from bdd_seg.losses.divergences import DOMAINS
from bdd_seg.study.machine import describe_machine

NAME = 'loss_cost'
PARTS = ('loss',)
SHAPES = ((2, 19, 64, 128), (2, 19, 512, 1024))
FORMS: dict[str, Callable[..., Tensor]] = {
    'plain': divergences.balance_divergence,
    'fused': fused.balance_divergence,
}
"""Beginning of a row's name → the form it measures. The first is the reference of the others."""


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
    add_shared_arguments(parser, NAME)
    args = parser.parse_args()
    check_shared_arguments(args)
    return args


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
    cases = [
        case for shape in args.shapes for domain in DOMAINS for case in loss_cases(shape, domain, args.device)
    ]
    rows = measure(cases, args.device, args.repetitions)
    machine = describe_machine(args.device == 'cuda')
    result = Result(machine, settings_of(args), [], rows)
    title = machine['gpu' if args.device == 'cuda' else 'cpu']
    save_result(result, args.out, NAME, title, 'time relative to the plain form of the loss')


def loss_cases(shape: tuple[int, ...], domain: str, device: str) -> list[Case]:
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
    expected = value_and_gradient(FORMS[reference], student, teacher, domain)
    cases = []
    for form, function in FORMS.items():
        run = partial(value_and_gradient, function, student, teacher, domain)
        details = {}
        if form != reference:
            value_error, gradient_error = map(relative_error, run(), expected)
            details = {'value off by': value_error, 'gradient off by': gradient_error}
        logits_mib = student.nbytes / 2**20
        cases.append(Case('loss', names[form], run, names[reference], logits_mib=logits_mib, details=details))
    return cases


def value_and_gradient(
    function: Callable[..., Tensor], student: Tensor, teacher: Tensor, domain: str
) -> tuple[Tensor, Tensor]:
    """Return the divergence and its gradient in the student's logits."""
    value = function(student, teacher, domain=domain)
    return value.detach(), torch.autograd.grad(value, student)[0]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference divided by the norm of what is expected."""
    return ((actual - expected).norm() / expected.norm()).item()


if __name__ == '__main__':
    with one_line_errors('interrupted; nothing is written'):
        main()
