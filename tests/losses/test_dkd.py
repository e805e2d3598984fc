"""DKD against its definition in Python loops, and the identity that its paper begins with."""

import math

import pytest
import torch
from mmseg.registry import MODELS
from references import BALANCES, SHAPES, balance, draw, kl, log_softmax, mean, positions
from torch.autograd import gradcheck

from bdd_seg.losses import DKDLoss, KDLoss


def binary(logits: list[float], label: int, tau: float) -> list[float]:
    """Return log p_y and log(1 − p_y)."""
    log_p = log_softmax(logits, tau)
    others = [value for k, value in enumerate(log_p) if k != label]
    highest = max(others)
    return [log_p[label], highest + math.log(math.fsum(math.exp(value - highest) for value in others))]


def target_class(student, teacher, label, settings) -> float:
    tau = settings.get('tau', 1.0)
    tau_reverse = settings.get('tau_reverse', tau)
    forward = kl(binary(teacher, label, tau), binary(student, label, tau))
    reverse = kl(binary(student, label, tau_reverse), binary(teacher, label, tau_reverse))
    weights = settings.get('forward_weight', 1.0), settings.get('reverse_weight', 0.0)
    return weights[0] * tau**2 * forward + weights[1] * tau_reverse**2 * reverse


def reference(student, teacher, label, mask, alpha, beta, settings) -> float:
    values = []
    for n, y, x in positions(label, mask):
        own = int(label[n, y, x])
        s, t = student[n, :, y, x].tolist(), teacher[n, :, y, x].tolist()
        others = [[value for k, value in enumerate(logits) if k != own] for logits in (s, t)]
        values.append(alpha * target_class(s, t, own, settings) + beta * balance(*others, **settings))
    return mean(values)


@pytest.mark.parametrize('settings', BALANCES)
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_is_the_definition(shape, masked, settings):
    student, teacher, label, mask = draw(shape, 1, masked)
    for alpha, beta in ((1.0, 2.0), (1.0, 0.0), (0.0, 8.0)):
        value = DKDLoss(alpha, beta, **settings)(student, teacher, label, mask=mask)
        expected = reference(student, teacher, label, mask, alpha, beta, settings)
        assert value.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('masked', [False, True])
def test_gradient_is_autograds_through_probabilities(masked):
    student, teacher, label, mask = draw((2, 4, 3, 5), 2, masked)
    leaf = student.clone().requires_grad_()
    places = positions(label, mask)
    total = 0
    for (tau, weight, forward), (n, y, x) in (
        (term, place) for term in ((2.0, 0.6, True), (0.7, 1.7, False)) for place in places
    ):
        own = int(label[n, y, x])
        p, q = ((logits[n, :, y, x] / tau).softmax(0) for logits in (teacher, leaf))
        for weight_of_part, parts in (
            (1.5, [torch.stack([one[own], 1 - one[own]]) for one in (p, q)]),
            (3.0, [torch.cat([one[:own], one[own + 1 :]]) / (1 - one[own]) for one in (p, q)]),
        ):
            a, b = parts if forward else parts[::-1]
            total = total + weight * weight_of_part * tau**2 * (a * (a / b).log()).sum()
    (2.5 * total / len(places)).backward()
    student.requires_grad_()
    loss = DKDLoss(1.5, 3.0, 2.0, tau_reverse=0.7, forward_weight=0.6, reverse_weight=1.7)
    (2.5 * loss(student, teacher, label, mask=mask)).backward()
    torch.testing.assert_close(student.grad, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('settings', [BALANCES[1], BALANCES[2]])
@pytest.mark.parametrize('masked', [False, True])
def test_gradcheck(masked, settings):
    student, teacher, label, mask = draw((2, 3, 3, 2), 3, masked)
    loss = DKDLoss(**settings)
    assert gradcheck(lambda s: loss(s, teacher, label, mask=mask), student.requires_grad_())


@pytest.mark.parametrize('classes', [2, 3, 19])
@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_kl_is_that_of_the_target_and_one_minus_p_y_of_the_others(classes, tau):
    """The paper's identity KD = TCKD + (1 − p_y)·NCKD, and with q_y that of the reverse divergence."""
    student, teacher, _, _ = draw((1, classes, 3, 4), 4)
    for forward, place in ((f, (y, x)) for f in (True, False) for y in range(3) for x in range(4)):
        s, t = (logits[:, :, place[0], place[1], None, None] for logits in (student, teacher))
        label = torch.full((1, 1, 1), sum(place) % classes)
        one = (t if forward else s)[0, :, 0, 0] / tau
        weights = {'tau': tau, 'forward_weight': float(forward), 'reverse_weight': float(not forward)}
        target = DKDLoss(1.0, 0.0, **weights)(s, t, label).item()
        others = DKDLoss(0.0, 1.0, **weights)(s, t, label).item()
        beta = 1 - one.softmax(0)[label.item()].item()
        assert KDLoss(**weights)(s, t).item() == pytest.approx(target + beta * others, rel=1e-9)
        both = DKDLoss(1.0, beta, **weights)(s, t, label).item()
        assert both == pytest.approx(target + beta * others, rel=1e-12)


def test_two_classes_are_the_target_alone():
    student, teacher, label, _ = draw((2, 2, 4, 5), 5)
    value = DKDLoss(1.0, 8.0, tau=2.0, reverse_weight=1.0)(student, teacher, label)
    expected = KDLoss(tau=2.0, reverse_weight=1.0, mask_ignored=True)(student, teacher, label)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_constant_added_to_a_positions_logits_changes_nothing():
    student, teacher, label, mask = draw((2, 4, 3, 5), 6, masked=True)
    shift = 100 * torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = DKDLoss(tau=2.0, tau_reverse=3.0, reverse_weight=1.0)
    expected = loss(student, teacher, label, mask=mask).item()
    assert loss(student + shift, teacher - shift, label, mask=mask).item() == pytest.approx(
        expected, rel=1e-9
    )
    assert loss(teacher + shift, teacher, label, mask=mask).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('tau', [0.1, 1.0, 20.0])
def test_nothing_overflows_at_the_largest_logits(dtype, tau):
    """Student and teacher contradict each other as much as float16 allows."""
    generator = torch.Generator().manual_seed(7)
    student, teacher = (
        (6e4 * torch.randint(-1, 2, (2, 5, 3, 4), generator=generator)).to(dtype) for _ in range(2)
    )
    label = torch.randint(5, (2, 3, 4), generator=generator)
    settings = {'tau': tau, 'tau_reverse': 2 * tau, 'reverse_weight': 1.0}
    student.requires_grad_()
    value = DKDLoss(**settings)(student, teacher, label)
    expected = reference(student.detach().double(), teacher.double(), label, None, 1.0, 2.0, settings)
    assert value.item() == pytest.approx(expected, rel=1e-4)  # float32 has steps of 0.004 at 6e4
    value.backward()
    assert student.grad.isfinite().all()
    assert student.grad.any()


def test_settings():
    loss = MODELS.build({'type': 'DKDLoss'})
    assert (loss.alpha, loss.beta, loss.tau, loss.reverse_weight) == (1.0, 2.0, 1.0, 0.0)
    assert (loss.loss_weight, loss.loss_name) == (1.0, 'loss_dkd')
    with pytest.raises(ValueError, match="beta must be a number, got '8'"):
        DKDLoss(beta='8')
    with pytest.raises(ValueError, match='needs labels'):
        DKDLoss()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))


def test_a_label_that_is_no_class_does_not_count():
    student, teacher = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    label = torch.tensor([[[0, 1], [2, 9]]])
    ignored = label.where(label < 3, 255)
    loss = DKDLoss(reverse_weight=0.5)
    assert torch.equal(loss(student, teacher, label), loss(student, teacher, ignored))
