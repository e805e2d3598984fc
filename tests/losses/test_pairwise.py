import math

import pytest
import torch
from feature_cases import (
    EXCLUDED,
    SHAPES,
    Case,
    Vector,
    check_gradient,
    check_minimum,
    check_value,
    dot,
    make_case,
    normalised,
    windows,
)
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses import PairwiseLoss
from bdd_seg.losses import pairwise as module

MODES = ['paper', 'code']


def pooled(features: Tensor, case: Case, n: int, mode: str) -> list[Vector]:
    """The normalised maxima of an image's windows, of those with a position that counts."""
    height, width = features.shape[2:]
    size = (2, 2) if mode == 'code' else (math.ceil(height / 2), math.ceil(width / 2))
    return [
        normalised([max(column) for column in zip(*window, strict=True)])
        for window in windows(features, case, n, size)
    ]


def reference(case: Case, mode: str) -> float:
    squares, pairs = [], 0
    for n in range(len(case.student)):
        students, teachers = (pooled(one, case, n, mode) for one in (case.student, case.teacher))
        for i in range(len(students)):
            for j in range(len(students)):
                squares.append((dot(students[i], students[j]) - dot(teachers[i], teachers[j])) ** 2)
        pairs += len(students) ** 2
    return math.fsum(squares) / max(1, pairs)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('shape', [*SHAPES, (2, 3, 2, 6, 9)])
@pytest.mark.parametrize('mode', MODES)
def test_is_the_mean_squared_difference_of_the_similarities(mode, shape, excluded):
    case = make_case(shape, excluded)
    expected = reference(case, mode)
    check_value(PairwiseLoss(mode, loss_weight=2.0, **case.settings), case, 2 * expected)


@pytest.mark.parametrize('mode, windows', [('paper', 4), ('code', 30)])
def test_windows(mode, windows):
    """On the paper's side 2×2 positions are left of a map, in common code one of 2×2 positions."""
    case = make_case((1, 3, 3, 9, 11))
    assert len(pooled(case.student, case, 0, mode)) == windows
    assert PairwiseLoss().mode == 'paper'


def test_by_hand():
    """The similarities of four orthogonal vectors are 1 on the diagonal; those of four equal ones are 1."""
    student = torch.eye(4).view(1, 4, 2, 2)
    loss = MODELS.build({'type': 'PairwiseLoss'})
    assert (loss.loss_weight, loss.loss_name) == (10.0, 'loss_pairwise')
    assert loss(student, torch.ones(1, 3, 2, 2)).item() == pytest.approx(10 * 12 / 16)
    mask = torch.tensor([[[True, True], [False, False]]])
    assert loss(student, torch.ones(1, 3, 2, 2), mask=mask).item() == pytest.approx(10 * 2 / 4)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('mode', MODES)
def test_gradient(mode, excluded):
    case = make_case((2, 2, 3, 3, 4), excluded)
    check_gradient(PairwiseLoss(mode, **case.settings), case)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('mode', MODES)
def test_is_least_where_the_similarities_are_equal(mode, excluded):
    case = make_case((2, 3, 3, 4, 5), excluded)
    loss = PairwiseLoss(mode, **case.settings)
    check_minimum(loss, case, case.student)
    check_minimum(loss, case, 3 * case.student.flip(1))
    check_minimum(loss, case, torch.cat([case.student, case.student], dim=1))


@pytest.mark.parametrize('rows', [1, 4, 7, 10_000])
def test_blocks_change_nothing(monkeypatch, rows):
    case = make_case((2, 3, 4, 7, 9), 'both')
    case.student.requires_grad_()
    loss = PairwiseLoss('code', **case.settings)

    def result() -> tuple[Tensor, Tensor]:
        value = loss(case.student, case.teacher, **case.arguments)
        return value, *torch.autograd.grad(value, case.student)

    expected = result()
    blocks, calls = module.sum_over_blocks, []

    def counted(function, x, parts):
        calls.append(len(parts))
        return blocks(function, x, parts)

    monkeypatch.setattr(module, 'sum_over_blocks', counted)
    monkeypatch.setattr(module, '_ROWS', rows)
    torch.testing.assert_close(result(), expected, rtol=1e-12, atol=1e-14)
    assert calls == [2 * math.ceil(20 / rows)]


def test_passes_back_twice_and_works_without_a_graph():
    case = make_case(SHAPES[0], 'both')
    case.student.requires_grad_()
    loss = PairwiseLoss('code', **case.settings)
    value = loss(case.student, case.teacher, **case.arguments)
    value.backward(retain_graph=True)
    once = case.student.grad.clone()
    (2 * value).backward()
    torch.testing.assert_close(case.student.grad, 3 * once)
    with torch.no_grad():
        without = loss(case.student, case.teacher, **case.arguments)
    assert torch.equal(without, value) and not without.requires_grad


@pytest.mark.parametrize('number', [math.nan, math.inf])
@pytest.mark.parametrize('mode', MODES)
def test_what_is_not_finite_shows_where_it_counts_and_only_there(mode, number):
    loss = PairwiseLoss(mode)
    case = make_case((2, 3, 3, 4, 5))
    spoilt = case.student.clone()
    spoilt[0, :, 2, 3] = number
    assert not loss(spoilt, case.teacher).isfinite()
    assert not loss(case.teacher, spoilt).isfinite()
    mask = torch.ones(2, 4, 5, dtype=torch.bool)
    mask[0, 2, 3] = False
    spoilt.requires_grad_()
    value = loss(spoilt, case.teacher, mask=mask)
    value.backward()
    assert torch.equal(value, loss(case.student, case.teacher, mask=mask))
    assert spoilt.grad.isfinite().all()


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"mode must be one of \('paper', 'code'\), got 'papers'"):
        PairwiseLoss('papers')
