"""DIST against Pearson correlations in Python loops, torch.corrcoef's gradient, and its invariances."""

import math

import pytest
import torch
from mmseg.registry import MODELS
from references import SHAPES, draw, log_softmax, mean, positions
from torch.autograd import gradcheck

from bdd_seg.losses import DISTLoss
from bdd_seg.losses.dist import inter_class_relation, intra_class_relation


def pearson(a: list[float], b: list[float]) -> float:
    a, b = ([value - math.fsum(values) / len(values) for value in values] for values in (a, b))
    covariance = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def reference(student, teacher, places, beta=1.0, gamma=1.0, tau=1.0, mode='paper') -> float:
    q, p = (
        [[math.exp(v) for v in log_softmax(logits[n, :, y, x].tolist(), tau)] for n, y, x in places]
        for logits in (student, teacher)
    )  # [position][class]
    inter = [1 - pearson(a, b) for a, b in zip(p, q, strict=True)]
    columns = (zip(*rows, strict=True) for rows in (p, q))  # [class][position]
    intra = [1 - pearson(list(a), list(b)) for a, b in zip(*columns, strict=True)]
    return (beta * mean(inter) + gamma * mean(intra)) * (tau**2 if mode == 'code' else 1)


@pytest.mark.parametrize('labelled', [False, True])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
    'settings', [{}, {'beta': 0.3, 'gamma': 1.7, 'tau': 4.0}, {'tau': 2.0, 'mode': 'code', 'gamma': 0.5}]
)
def test_is_the_definition(shape, masked, labelled, settings):
    student, teacher, label, mask = draw(shape, 1, masked)
    places = positions(label if labelled else torch.zeros_like(label), mask)
    value = DISTLoss(**settings, mask_ignored=labelled)(student, teacher, label, mask=mask)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(reference(student, teacher, places, **settings), rel=1e-9)


@pytest.mark.parametrize('masked', [False, True])
def test_gradient_is_that_of_corrcoef(masked):
    student, teacher, label, mask = draw((2, 4, 3, 5), 2, masked)
    places = tuple(torch.tensor(positions(label, mask)).T)
    leaf = student.clone().requires_grad_()
    q, p = ((x / 2).softmax(1).movedim(1, 3)[places] for x in (leaf, teacher))  # (positions, C)
    terms = [
        torch.stack([1 - torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(a, b, strict=True)]).mean()
        for a, b in ((p, q), (p.T, q.T))
    ]
    (2.5 * (0.3 * terms[0] + 1.7 * terms[1])).backward()
    student.requires_grad_()
    loss = DISTLoss(0.3, 1.7, tau=2.0, mask_ignored=True)
    (2.5 * loss(student, teacher, label, mask=mask)).backward()
    torch.testing.assert_close(student.grad, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('weights', [(1.0, 0.0), (0.0, 1.0)])
def test_gradcheck(masked, weights):
    student, teacher, label, mask = draw((2, 3, 3, 2), 3, masked)
    loss = DISTLoss(*weights, tau=1.5, mask_ignored=masked)
    assert gradcheck(lambda s: loss(s, teacher, label, mask=mask), student.requires_grad_())


def probabilities(shape=(2, 5, 4, 3), seed=4):
    return draw(shape, seed)[1].softmax(1)


def test_an_affine_change_of_the_probabilities_with_a_positive_factor_is_no_distance():
    """q = a·p + (1 − a)/C: all of a position's probabilities change alike, and all of a class's."""
    p = probabilities()
    loss = DISTLoss(beta=1.0, gamma=1.0)
    for a in (1.0, 0.4, 0.01):
        assert loss((a * p + (1 - a) / 5).log(), p.log()).item() == pytest.approx(0, abs=1e-12)
    reflected = (1 - p) / 4  # a = −1/4
    assert loss(reflected.log(), p.log()).item() == pytest.approx(4, rel=1e-12)


def test_inter_allows_another_change_at_each_position_and_intra_at_each_class():
    p = probabilities()
    inter, intra = DISTLoss(1.0, 0.0), DISTLoss(0.0, 1.0)
    a = torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2 + 0.1
    by_position = (a * p + (1 - a) / 5).log()
    assert inter(by_position, p.log()).item() == pytest.approx(0, abs=1e-12)
    assert intra(by_position, p.log()).item() > 0.01
    prior = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).view(1, 5, 1, 1)
    by_class = (0.3 * p + 0.7 * prior).log()
    assert intra(by_class, p.log()).item() == pytest.approx(0, abs=1e-12)
    assert inter(by_class, p.log()).item() > 0.01


def test_relations_are_pearsons_of_anything():
    """They are invariant to scale and shift, change sign with a, and are symmetric."""
    p, q = probabilities(seed=5), probabilities(seed=6)
    mask = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(7)) < 0.6
    for relation, axis in (
        (inter_class_relation, (2, 1, 4, 3)),
        (lambda p, q: intra_class_relation(p, q, mask), (1, 5, 1, 1)),
    ):
        generator = torch.Generator().manual_seed(8)
        scale, shift = (torch.rand(axis, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
        expected = relation(p, q)
        assert expected.abs().max() <= 1 and expected.abs().min() > 1e-3
        torch.testing.assert_close(relation(p, scale * q - shift), expected)
        torch.testing.assert_close(relation(p, -scale * q + shift), -expected)
        torch.testing.assert_close(relation(q, p), expected)
    changed = q.masked_fill(~mask[:, None], 100.0)
    assert torch.equal(intra_class_relation(p, changed, mask), intra_class_relation(p, q, mask))


def test_intra_is_over_the_whole_batch():
    """Two images at which the student is right about each, and wrong about which has more of a class."""
    p = torch.tensor([[[0.1, 0.2]], [[0.6, 0.7]]], dtype=torch.float64)  # class 0 at (N, 1, 2)
    q = p.flip(0)
    p, q = (torch.stack([x, 1 - x], dim=1) for x in (p, q))
    expected = 1 - pearson([0.1, 0.2, 0.6, 0.7], [0.6, 0.7, 0.1, 0.2])
    assert DISTLoss(0.0, 1.0)(q.log(), p.log()).item() == pytest.approx(expected, rel=1e-9)
    assert expected > 1.5


def test_nothing_that_varies_correlates_with_nothing():
    """A constant has no correlation: the distance is 1, and there is no gradient out of it."""
    teacher = draw((2, 4, 3, 5), 9)[1].float()
    for constant in (0.0, 0.3, 7.0):
        student = torch.full_like(teacher, constant).requires_grad_()
        value = DISTLoss()(student, teacher)
        assert value.item() == pytest.approx(2, abs=1e-5)
        value.backward()
        assert student.grad.isfinite().all()


def test_a_temperature_that_a_schedule_has_led_to_zero():
    loss = DISTLoss()
    loss.tau = 0.0
    with pytest.raises(ValueError, match='tau must be a positive number, got 0.0'):
        loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))


def test_settings():
    loss = MODELS.build({'type': 'DISTLoss'})
    assert (loss.beta, loss.gamma, loss.tau, loss.mode) == (1.0, 1.0, 1.0, 'paper')
    assert (loss.loss_weight, loss.loss_name) == (1.0, 'loss_dist')
    for settings, expected in (
        ({'tau': 0.0}, 'tau must be a positive number, got 0.0'),
        ({'beta': None}, 'beta must be a number, got None'),
        ({'gamma': '1'}, "gamma must be a number, got '1'"),
        ({'mode': 'papers'}, "mode must be 'paper' or 'code', got 'papers'"),
    ):
        with pytest.raises(ValueError, match=expected):
            DISTLoss(**settings)
