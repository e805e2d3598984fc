"""The plain forms against a reference written position by position, and the fused form against them."""

import pytest
import torch
from helpers import naive

from bdd_seg.losses import divergences, fused

SETTINGS = [(1.0, 1.0, 1.0, 1.0), (4.0, 2.0, 0.7, 1.3), (2.0, 1.0, 1.0, 0.0), (1.0, 3.0, 0.0, 7.0)]


def draw(mask: bool, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(3, 5, 4, 6, generator=generator, dtype=dtype) * 3 for _ in range(2))
    counts = torch.rand(3, 4, 6, generator=generator) > 0.4 if mask else None
    if counts is not None:
        counts[1] = False
    return student, teacher, counts


def call(function, student, teacher, mask, domain, settings):
    names = ('tau_forward', 'tau_reverse', 'forward_weight', 'reverse_weight')
    return function(student, teacher, domain=domain, mask=mask, **dict(zip(names, settings, strict=True)))


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('mask', [False, True])
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_the_plain_form_is_the_definition(domain, mask, settings):
    student, teacher, counts = draw(mask)
    value = call(divergences.balance_divergence, student, teacher, counts, domain, settings)
    assert value.item() == pytest.approx(naive(student, teacher, domain, *settings, counts), rel=1e-12)


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('mask', [False, True])
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_the_fused_form_has_its_value_and_gradient(domain, mask, settings):
    student, teacher, counts = draw(mask)
    found = []
    for function in (divergences.balance_divergence, fused.balance_divergence):
        leaf = student.clone().requires_grad_()
        value = call(function, leaf, teacher, counts, domain, settings)
        (3 * value).backward()
        found.append((value.detach(), leaf.grad))
    for plain, blocked in zip(*found, strict=True):
        torch.testing.assert_close(blocked, plain, rtol=1e-10, atol=1e-12)


def test_no_gradient_reaches_the_teacher():
    student, teacher, _ = draw(mask=False)
    student.requires_grad_()
    teacher.requires_grad_()
    divergences.balance_divergence(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_equal_logits_have_no_divergence_whatever_is_added():
    student, _, _ = draw(mask=False)
    for domain, shift in (('pixel', torch.randn(3, 1, 4, 6)), ('channel', torch.randn(3, 5, 1, 1))):
        value = divergences.balance_divergence(student, student + shift, domain=domain)
        assert value.item() == pytest.approx(0, abs=1e-12)
