import math

import pytest
import torch
from feature_cases import (
    EXCLUDED,
    SHAPES,
    Case,
    check_gradient,
    check_minimum,
    check_value,
    dot,
    make_case,
    mean,
    vector,
)
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses import AttentionLoss
from bdd_seg.losses.attention import attention


def maps_of(features: Tensor, case: Case, n: int) -> list[float]:
    """The attention of the positions of an image that count."""
    vectors = [vector(features, n, y, x) for y, x in case.positions(n)]
    energies = [dot(one, one) / len(one) for one in vectors]
    length = math.sqrt(dot(energies, energies))
    return [energy / length for energy in energies]


def reference(case: Case) -> float:
    squares = []
    for n in range(len(case.student)):
        maps = maps_of(case.student, case, n), maps_of(case.teacher, case, n)
        squares += [(s - t) ** 2 for s, t in zip(*maps, strict=True)]
    return mean(squares)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('shape', SHAPES)
def test_is_the_mean_squared_difference_of_the_attention_maps(shape, excluded):
    case = make_case(shape, excluded)
    check_value(AttentionLoss(loss_weight=3.0, **case.settings), case, 3 * reference(case))


def test_by_hand():
    """Energies 3 and 4 have the attention 0.6 and 0.8."""
    student = torch.tensor([3.0, 4.0]).sqrt().view(1, 1, 1, 2)
    assert attention(student).flatten().tolist() == pytest.approx([0.6, 0.8])
    loss = MODELS.build({'type': 'AttentionLoss'})
    assert (loss.loss_weight, loss.loss_name) == (10_000.0, 'loss_attention')
    assert loss(student, -student.flip(3)).item() == pytest.approx(10_000 * 0.2**2)


@pytest.mark.parametrize('excluded', EXCLUDED)
def test_gradient(excluded):
    case = make_case((2, 2, 3, 3, 2), excluded)
    check_gradient(AttentionLoss(5.0, **case.settings), case)


@pytest.mark.parametrize('excluded', EXCLUDED)
def test_is_least_where_the_maps_are_proportional(excluded):
    case = make_case((2, 3, 3, 4, 3), excluded)
    loss = AttentionLoss(**case.settings)
    check_minimum(loss, case, case.student)
    check_minimum(loss, case, -2 * case.student)
    check_minimum(loss, case, torch.cat([case.student, case.student], dim=1))


def test_a_map_of_zeros_has_no_attention_and_no_gradient():
    student = torch.zeros(2, 3, 4, 3, requires_grad=True)
    value = AttentionLoss(1.0)(student, torch.ones(2, 5, 4, 3))
    value.backward()
    assert value.item() == pytest.approx(1 / 12)  # the teacher's attention is 1/√12 everywhere
    assert not student.grad.any()


def test_takes_any_number_of_channels_without_layers():
    loss = AttentionLoss(student_channels=3, teacher_channels=5)
    assert not [*loss.parameters()]
    case = make_case(SHAPES[0])
    assert loss(case.student, case.teacher).item() == pytest.approx(10_000 * reference(case))
    with pytest.raises(ValueError, match=r'teacher must be .*teacher_channels=5, got \(1, 3, 5, 7\)'):
        loss(case.student, case.student)
