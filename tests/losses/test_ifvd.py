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
    cosine,
    make_case,
    mean,
    mean_vector,
    vector,
)
from mmseg.registry import MODELS
from torch import Tensor

from bdd_seg.losses import IFVDLoss
from bdd_seg.losses.ifvd import centres


def similarities(features: Tensor, case: Case, n: int) -> list[float]:
    """The cosine of each position that counts to the mean of those with its label, image by image."""
    found = []
    for y, x in case.positions(n):
        members = [
            vector(features, n, *other)
            for other in case.positions(n)
            if case.label[(n, *other)] == case.label[n, y, x]
        ]
        found.append(cosine(vector(features, n, y, x), mean_vector(members)))
    return found


def reference(case: Case) -> float:
    squares = []
    for n in range(len(case.student)):
        pairs = zip(similarities(case.student, case, n), similarities(case.teacher, case, n), strict=True)
        squares += [(s - t) ** 2 for s, t in pairs]
    return mean(squares)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('shape', SHAPES)
def test_is_the_mean_squared_difference_of_the_similarities_to_the_centres(shape, excluded):
    case = make_case(shape, excluded)
    check_value(IFVDLoss(loss_weight=3.0), case, 3 * reference(case))


def test_labels_may_be_any_classes():
    case = make_case(SHAPES[1], 'both')
    expected = reference(case)
    case.label = case.label.where(case.label != 1, 18).where(case.label != 2, 254)
    assert {*case.label.flatten().tolist()} == {0, 18, 254, 255}
    check_value(IFVDLoss(1.0), case, expected)
    case.label = case.label.where(case.label != 255, 7)
    assert IFVDLoss(1.0, ignore_index=7)(
        case.student, case.teacher, **case.arguments
    ).item() == pytest.approx(expected, rel=1e-9)


def test_by_hand():
    """Two orthogonal vectors have a cosine of √½ to their mean; two equal ones have 1."""
    student = torch.eye(2).view(1, 2, 1, 2)
    teacher = torch.ones(1, 3, 1, 2)
    loss = MODELS.build({'type': 'IFVDLoss'})
    assert (loss.loss_weight, loss.loss_name) == (20.0, 'loss_ifvd')
    expected = 20 * (1 - math.sqrt(0.5)) ** 2
    assert loss(student, teacher, torch.tensor([[[4, 4]]])).item() == pytest.approx(expected)
    # A position alone in its class is its own centre.
    assert loss(student, teacher, torch.tensor([[[4, 5]]])).item() == pytest.approx(0, abs=1e-9)


def test_centres():
    features = torch.tensor([[1.0, 3.0, 8.0, 5.0]]).view(1, 1, 2, 2)
    label, mask = torch.tensor([[[2, 2], [0, 2]]]), torch.tensor([[[True, True], [True, False]]])
    features = features.masked_fill(~mask[:, None], 0)
    assert centres(features, label, mask).tolist() == [[[[2, 2], [8, 0]]]]
    nothing = torch.zeros_like(mask)
    assert not centres(torch.zeros_like(features), label, nothing).any()


def test_each_image_has_its_own_centres():
    student = torch.eye(2).view(2, 2, 1, 1)
    label = torch.zeros(2, 1, 1, dtype=torch.long)
    assert IFVDLoss()(student, torch.ones(2, 3, 1, 1), label).item() == pytest.approx(0, abs=1e-9)


def test_ignored_positions_are_not_in_the_mean():
    """As a class of their own they would be in it with a difference of their own."""
    case = make_case((1, 3, 3, 2, 4))
    case.label[:, :, 2:] = 255
    cut = make_case((1, 3, 3, 2, 4))
    cut.student, cut.teacher, cut.label = cut.student[..., :2], cut.teacher[..., :2], cut.label[..., :2]
    result = IFVDLoss()(case.student, case.teacher, case.label)
    assert result.item() == pytest.approx(IFVDLoss()(cut.student, cut.teacher, cut.label).item(), rel=1e-12)
    as_class = IFVDLoss(ignore_index=254)(case.student, case.teacher, case.label)
    assert as_class.item() != pytest.approx(result.item(), rel=0.05)


@pytest.mark.parametrize('excluded', EXCLUDED)
def test_gradient(excluded):
    check_gradient(IFVDLoss(), make_case((2, 2, 3, 3, 3), excluded))


@pytest.mark.parametrize('excluded', EXCLUDED)
def test_is_least_where_the_features_are_proportional(excluded):
    case = make_case((2, 3, 3, 4, 5), excluded)
    check_minimum(IFVDLoss(), case, case.student)
    check_minimum(IFVDLoss(), case, 4 * case.student.flip(1))
    check_minimum(IFVDLoss(), case, torch.cat([case.student, case.student], dim=1))


def test_features_of_zeros_have_no_direction():
    student = torch.zeros(1, 3, 2, 2, requires_grad=True)
    value = IFVDLoss(1.0)(student, torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    value.backward()
    assert value.item() == pytest.approx(1)
    assert not student.grad.any()


def test_needs_labels():
    case = make_case(SHAPES[0])
    with pytest.raises(ValueError, match=r'this loss needs labels, and the batch has none \(seg_label\)'):
        IFVDLoss()(case.student, case.teacher)
