import math

import pytest
import torch
from feature_cases import (
    EXCLUDED,
    SHAPES,
    Case,
    Vector,
    balanced,
    check_gradient,
    check_minimum,
    check_value,
    dot,
    make_case,
    mean,
    mean_vector,
    normalised,
    windows,
)
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses import CIRKDLoss

BALANCED = {'tau': 0.4, 'forward_weight': 0.7, 'reverse_weight': 1.3, 'tau_reverse': 0.9}


def pooled(features: Tensor, case: Case, n: int, size: int) -> list[Vector]:
    """The normalised means of an image's windows, of those with a position that counts."""
    return [normalised(mean_vector(window)) for window in windows(features, case, n, (size, size))]


def reference(case: Case, loss: CIRKDLoss) -> float:
    images = range(len(case.student))
    students, teachers = (
        [pooled(one, case, n, loss.pool or 1) for n in images] for one in (case.student, case.teacher)
    )
    rows = []
    for i in images:
        for j in images:
            if not students[j]:  # there is nothing to be similar to
                continue
            for student, teacher in zip(students[i], teachers[i], strict=True):
                rows.append(
                    balanced(
                        [dot(teacher, key) for key in teachers[j]],
                        [dot(student, key) for key in students[j]],
                        loss,
                    )
                )
    return mean(rows)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('settings', [{}, {'pool': 1, **BALANCED}, {'pool': 2, 'tau': 0.3}, {'pool': 3}])
def test_is_the_mean_divergence_of_the_rows_of_similarities(settings, shape, excluded):
    case = make_case(shape, excluded)
    loss = CIRKDLoss(loss_weight=2.0, **settings, **case.settings)
    check_value(loss, case, 2 * reference(case, loss))


def test_images_may_differ_in_the_positions_that_count():
    """A row then weighs the same in whichever image it is."""
    case = make_case((3, 3, 4, 4, 4))
    case.mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    case.mask[0], case.mask[1, 0], case.mask[2, 3, 3] = True, True, True
    loss = CIRKDLoss(pool=2, **BALANCED)
    assert [len(pooled(case.student, case, n, 2)) for n in range(3)] == [4, 2, 1]
    check_value(loss, case, reference(case, loss))


def test_by_hand():
    """Two orthogonal student's vectors beside two equal ones of the teacher: KL of (½, ½) to (σ, 1 − σ)."""
    student, teacher = torch.eye(2).view(1, 2, 1, 2), torch.ones(1, 3, 1, 2)
    loss = MODELS.build({'type': 'CIRKDLoss'})
    assert (loss.loss_weight, loss.loss_name, loss.pool) == (1.0, 'loss_cirkd', None)
    assert (loss.tau, loss.tau_reverse, loss.reverse_weight) == (0.1, None, 0.0)
    share = 1 / (1 + math.exp(-1 / 0.1))
    expected = 0.5 * math.log(0.5 / share) + 0.5 * math.log(0.5 / (1 - share))
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_temperature_brings_no_square():
    case = make_case((2, 3, 4, 3, 3))
    for tau in (1.0, 1.7):
        loss = CIRKDLoss(tau, pool=1)
        scaled = CIRKDLoss(tau, pool=1, forward_weight=0.0, reverse_weight=1.0)
        assert loss(case.student, case.teacher).item() == pytest.approx(reference(case, loss), rel=1e-9)
        swapped = Case(case.teacher, case.student, case.label, None)
        assert scaled(case.student, case.teacher).item() == pytest.approx(reference(swapped, loss), rel=1e-9)


@pytest.mark.parametrize(
    'size, window', [((5, 7), 1), ((32, 32), 1), ((33, 32), 2), ((64, 64), 2), ((64, 128), 3)]
)
def test_about_1024_positions_are_left_by_default(size, window):
    """The windows are the smallest that leave no more than those."""
    case = make_case((1, 3, 3, *size))
    default = CIRKDLoss()(case.student, case.teacher)
    assert torch.equal(default, CIRKDLoss(pool=window)(case.student, case.teacher))
    assert not torch.equal(default, CIRKDLoss(pool=window + 1)(case.student, case.teacher))
    assert math.prod(size) / window**2 <= 1024
    assert window == 1 or math.prod(size) / (window - 1) ** 2 > 1024


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('pool', [1, 2])
def test_gradient(pool, excluded):
    case = make_case((2, 2, 3, 3, 3), excluded)
    check_gradient(CIRKDLoss(pool=pool, **BALANCED, **case.settings), case)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('pool', [1, 2])
def test_is_least_where_the_similarities_are_equal(pool, excluded):
    case = make_case((2, 3, 3, 4, 5), excluded)
    loss = CIRKDLoss(pool=pool, **BALANCED, **case.settings)
    check_minimum(loss, case, case.student)
    check_minimum(loss, case, 3 * case.student.flip(1))
    check_minimum(loss, case, torch.cat([case.student, case.student], dim=1))


def test_images_are_compared_with_each_other():
    """Apart, two images of one position each are compared with nothing but themselves."""
    case = make_case((2, 3, 4, 1, 1))
    assert CIRKDLoss()(case.student, case.teacher).item() == pytest.approx(0, abs=1e-12)
    case = make_case((2, 3, 4, 1, 2))
    together = CIRKDLoss()(case.student, case.teacher).item()
    apart = [CIRKDLoss()(case.student[n : n + 1], case.teacher[n : n + 1]).item() for n in range(2)]
    assert together != pytest.approx(mean(apart), rel=0.05)


def test_passes_back_twice_and_works_without_a_graph():
    case = make_case(SHAPES[1], 'both')
    case.student.requires_grad_()
    loss = CIRKDLoss(**BALANCED, **case.settings)
    value = loss(case.student, case.teacher, **case.arguments)
    value.backward(retain_graph=True)
    once = case.student.grad.clone()
    (2 * value).backward()
    torch.testing.assert_close(case.student.grad, 3 * once)
    with torch.no_grad():
        without = loss(case.student, case.teacher, **case.arguments)
    assert torch.equal(without, value) and not without.requires_grad


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({'pool': 0}, 'pool must be a whole number from 1 on, got 0'),
        ({'pool': 1.5}, 'pool must be a whole number from 1 on, got 1.5'),
        ({'pool': '4x4'}, "pool must be a whole number from 1 on, got '4x4'"),
        ({'tau': 0}, 'must be a positive number, got 0'),
        ({'tau_reverse': -1.0}, 'tau_reverse must be a positive number, got -1.0'),
        ({'reverse_weight': None}, 'reverse_weight must be a number, got None'),
    ],
)
def test_wrong_settings(settings, expected):
    with pytest.raises(ValueError, match=expected):
        CIRKDLoss(**settings)
