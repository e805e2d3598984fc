"""The α-β-divergence against its definition in Python loops, and its limits."""

import math

import pytest
import torch
from mmseg.registry import MODELS
from references import SHAPES, draw, log_softmax, mean
from torch.autograd import gradcheck

from bdd_seg.losses import AlphaBetaLoss, balance_divergence, divergences, fused

EXPONENTS = [(0.5, 0.5), (0.2, 0.2), (0.8, 0.3), (1.0, 1.0), (2.0, 0.5)]
MASKS = ['none', 'positions', 'logits']


def mask_of(kind, shape, seed=7):
    """Return a mask of positions or of logits, with distributions of either domain that have none."""
    generator = torch.Generator().manual_seed(seed)
    images, _, height, width = shape
    if kind == 'none':
        return None
    if kind == 'positions':
        mask = torch.rand(images, height, width, generator=generator) < 0.6
        mask[0] = images == 1
        return mask
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[0, :, 0] = False
    mask[-1, 0] = False
    return mask


def pairs(student, teacher, domain, tau, mask):
    """Yield each distribution's log p and log q, of the logits that count."""
    counts = torch.ones_like(student, dtype=torch.bool) if mask is None else mask
    counts = counts[:, None].expand_as(student) if counts.dim() == 3 else counts
    for n in range(len(student)):
        maps = [one[n].flatten(1) for one in (teacher, student, counts)]  # (C, H·W)
        for p, q, kept in zip(*(one.T if domain == 'pixel' else one for one in maps), strict=True):
            if kept.any():
                yield log_softmax(p[kept].tolist(), tau), log_softmax(q[kept].tolist(), tau)


def alpha_beta(log_p, log_q, alpha, beta) -> float:
    total = alpha + beta
    return math.fsum(
        math.exp(total * a) / (beta * total)
        + math.exp(total * b) / (alpha * total)
        - math.exp(alpha * a + beta * b) / (alpha * beta)
        for a, b in zip(log_p, log_q, strict=True)
    )


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('tau', [1.0, 3.0])
def test_is_the_definition(shape, domain, mask, tau):
    student, teacher, _, _ = draw(shape, 1)
    counts = mask_of(mask, shape)
    found = list(pairs(student, teacher, domain, tau, counts))
    settings = {'tau': tau, 'domain': domain, 'mask': counts}
    for alpha, beta in EXPONENTS:
        value = fused.alpha_beta_divergence(student, teacher, alpha=alpha, beta=beta, **settings)
        expected = tau**2 * mean([alpha_beta(*pair, alpha, beta) for pair in found])
        assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('alpha, beta', EXPONENTS)
def test_the_plain_form_is_the_definition(alpha, beta):
    student, teacher, _, _ = draw((2, 4, 3, 5), 2)
    for domain, dim in divergences.DOMAINS.items():
        log_p, log_q = (divergences.log_softmax(one / 2, dim, None) for one in (teacher, student))
        found = list(pairs(student, teacher, domain, 2.0, None))
        values = divergences.alpha_beta_divergence(log_p, log_q, dim, alpha, beta)
        expected = torch.tensor([alpha_beta(*pair, alpha, beta) for pair in found], dtype=torch.float64)
        torch.testing.assert_close(values.flatten(), expected)


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_gradients_are_those_of_autograd_through_the_plain_form(domain, mask):
    shape, dim = (2, 4, 3, 5), divergences.DOMAINS[domain]
    student, teacher, _, _ = draw(shape, 3)
    counts = mask_of(mask, shape)
    for alpha, beta in EXPONENTS:
        leaf = student.clone().requires_grad_()
        log_p, log_q = (divergences.log_softmax(one / 3, dim, counts) for one in (teacher, leaf))
        values = divergences.alpha_beta_divergence(log_p, log_q, dim, alpha, beta)
        value = 9 * divergences.mean_over_distributions(values, dim, counts)
        (2.5 * value).backward()
        other = student.clone().requires_grad_()
        settings = {'alpha': alpha, 'beta': beta, 'tau': 3.0, 'domain': domain, 'mask': counts}
        found = fused.alpha_beta_divergence(other, teacher, **settings)
        (2.5 * found).backward()
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other.grad, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_gradcheck(domain, mask):
    shape = (2, 3, 2, 2)
    student, teacher, _, _ = draw(shape, 4)
    student.requires_grad_()
    settings = {'tau': 1.5, 'domain': domain, 'mask': mask_of(mask, shape)}
    for alpha, beta in ((0.7, 0.4), (1.0, 0.0), (0.0, 1.0), (2.0, 0.0)):
        assert gradcheck(
            lambda s, a=alpha, b=beta: fused.alpha_beta_divergence(s, teacher, alpha=a, beta=b, **settings),
            student,
        )


LIMITS = [((1.0, 0.0), (1.0, 0.0)), ((0.0, 1.0), (0.0, 1.0))]
"""Exponents, and the weights of the forward and the reverse divergence that they stand for."""


def of_float32(function, student, teacher, **settings):
    """Return the value and the student's gradient."""
    student = student.clone().requires_grad_()
    value = function(student, teacher, **settings)
    value.backward()
    return value.item(), student.grad


@pytest.mark.parametrize('exponents, weights', LIMITS)
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('tau', [0.5, 1.0, 4.0])
def test_the_limits_are_the_two_kl_divergences(exponents, weights, domain, mask, tau):
    shape = (2, 19, 8, 9)
    student, teacher = (one.float() for one in draw(shape, 5)[:2])
    settings = {'domain': domain, 'mask': mask_of(mask, shape)}
    alpha, beta = exponents
    value, gradient = of_float32(
        fused.alpha_beta_divergence, student, teacher, alpha=alpha, beta=beta, tau=tau, **settings
    )
    weights = {'forward_weight': weights[0], 'reverse_weight': weights[1]}
    expected, slope = of_float32(
        balance_divergence, student, teacher, tau_forward=tau, tau_reverse=tau, **weights, **settings
    )
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5 * slope.abs().max().item())


@pytest.mark.parametrize('exponents, weights', LIMITS)
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_the_limits_at_the_largest_logits(exponents, weights, domain, dtype):
    """Zeros and ±6e4 for student and teacher, in every combination."""
    generator = torch.Generator().manual_seed(6)
    student, teacher = (
        (6e4 * torch.randint(-1, 2, (2, 5, 3, 4), generator=generator)).to(dtype) for _ in range(2)
    )
    alpha, beta = exponents
    value, gradient = of_float32(
        fused.alpha_beta_divergence, student, teacher, alpha=alpha, beta=beta, domain=domain
    )
    expected, slope = of_float32(
        balance_divergence,
        student,
        teacher,
        domain=domain,
        forward_weight=weights[0],
        reverse_weight=weights[1],
    )
    assert value == pytest.approx(expected, rel=1e-6)
    assert value > 1e3
    torch.testing.assert_close(gradient, slope, rtol=1e-3 if dtype == torch.float32 else 1e-2, atol=1e-3)


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('alpha, beta', [*EXPONENTS, (1e-3, 1.0), (0.999, 0.001), (3.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize('tau', [0.1, 1.0, 20.0])
def test_nothing_overflows_between_the_limits(domain, alpha, beta, tau):
    generator = torch.Generator().manual_seed(7)
    student, teacher = (6e4 * torch.randint(-1, 2, (2, 5, 3, 4), generator=generator) for _ in range(2))
    value, gradient = of_float32(
        fused.alpha_beta_divergence,
        student.float(),
        teacher.float(),
        alpha=alpha,
        beta=beta,
        tau=tau,
        domain=domain,
    )
    assert 0 < value < math.inf
    assert gradient.isfinite().all()
    if alpha > 0 and beta > 0:
        expected = tau**2 * mean(
            [alpha_beta(*pair, alpha, beta) for pair in pairs(student, teacher, domain, tau, None)]
        )
        assert value == pytest.approx(expected, rel=1e-4)


def test_near_the_limits_it_converges_to_them():
    """The distance falls with the exponent, tenfold for a tenth of it."""
    student, teacher, _, _ = draw((2, 5, 4, 6), 8)

    def divergence(alpha, beta):
        return of_float32(fused.alpha_beta_divergence, student, teacher, alpha=alpha, beta=beta)

    for limit, path in (
        ((1.0, 0.0), lambda x: (1 - x, x)),
        ((1.0, 0.0), lambda x: (1.0, x)),
        ((0.0, 1.0), lambda x: (x, 1 - x)),
        ((2.0, 0.0), lambda x: (2.0, x)),
        ((0.0, 0.5), lambda x: (x, 0.5)),
    ):
        value, gradient = divergence(*limit)
        values, gradients = zip(*(divergence(*path(x)) for x in (1e-3, 1e-4, 1e-5, 1e-6)), strict=True)
        distances = [abs(near - value) for near in values]
        for large, small in zip(distances, distances[1:], strict=False):
            assert small == pytest.approx(large / 10, rel=0.05)
        assert 0 < distances[-1] < 1e-4 * value
        torch.testing.assert_close(gradients[-1], gradient, rtol=1e-3, atol=1e-6)


def test_exponents_of_a_half_are_four_times_the_squared_hellinger_distance():
    """H² = ½·Σ(√p − √q)² is at most 1, which disjoint distributions reach."""
    student, teacher, _, _ = draw((2, 6, 4, 5), 9)
    for domain, dim in divergences.DOMAINS.items():
        p, q = (one.flatten(2).softmax(dim) for one in (teacher, student))
        hellinger = 0.5 * (p.sqrt() - q.sqrt()).square().sum(dim).mean()
        value = AlphaBetaLoss(domain=domain)(student, teacher)
        torch.testing.assert_close(value, 4 * hellinger)
        swapped = AlphaBetaLoss(domain=domain)(teacher, student)
        torch.testing.assert_close(swapped, value)
    disjoint = torch.tensor([6e4, -6e4]).view(1, 2, 1, 1)
    assert AlphaBetaLoss(tau=3.0)(disjoint, -disjoint).item() == pytest.approx(4 * 9, rel=1e-6)


@pytest.mark.parametrize('alpha, beta', [*EXPONENTS, (1.0, 0.0), (0.0, 1.0)])
def test_swapped_maps_and_swapped_exponents_are_the_same(alpha, beta):
    student, teacher, _, _ = draw((2, 5, 4, 6), 10)
    value = AlphaBetaLoss(alpha, beta, tau=2.0)(student, teacher)
    torch.testing.assert_close(AlphaBetaLoss(beta, alpha, tau=2.0)(teacher, student), value)
    assert AlphaBetaLoss(alpha, beta)(student, student).item() == pytest.approx(0, abs=1e-12)
    assert value > 0.1


@pytest.mark.parametrize('alpha, beta', [*EXPONENTS, (1.0, 0.0), (0.0, 1.0)])
def test_students_close_to_their_teacher(alpha, beta):
    """A divergence that is a difference of nearly equal sums keeps 1e-4 in float32."""
    student, noise = (one.float() for one in draw((2, 19, 16, 16), 11)[:2])
    teacher = student + 5e-3 * noise
    value, gradient = of_float32(fused.alpha_beta_divergence, student, teacher, alpha=alpha, beta=beta)
    expected, slope = of_float32(
        fused.alpha_beta_divergence, student.double(), teacher.double(), alpha=alpha, beta=beta
    )
    assert value == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=1e-3 * slope.abs().max().item())


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('block', [1, 7, 40])
def test_block_size_does_not_matter(domain, block, monkeypatch):
    shape = (3, 4, 5, 6)
    student, teacher, _, _ = draw(shape, 13)
    settings = {'alpha': 0.7, 'beta': 0.4, 'domain': domain, 'mask': mask_of('logits', shape)}
    value, gradient = of_float32(fused.alpha_beta_divergence, student, teacher, **settings)
    monkeypatch.setitem(fused._BLOCK, 'cpu', block)
    other, slope = of_float32(fused.alpha_beta_divergence, student, teacher, **settings)
    assert other == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(slope, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_is_built_from_a_config_and_calls_the_function(domain):
    student, teacher, label, mask = draw((2, 4, 5, 7), 14, masked=True)
    counts = mask & (label != 255)
    shared = {'tau': 2.0, 'domain': domain, 'loss_weight': 7.0, 'mask_ignored': True}
    loss = MODELS.build({'type': 'AlphaBetaLoss', 'alpha': 0.8, 'beta': 0.3, **shared})
    expected = fused.alpha_beta_divergence(
        student, teacher, alpha=0.8, beta=0.3, tau=2.0, domain=domain, mask=counts
    )
    assert torch.equal(loss(student, teacher, label, mask=mask), 7 * expected)
    assert AlphaBetaLoss().loss_name == 'loss_alpha_beta'
    assert (AlphaBetaLoss().alpha, AlphaBetaLoss().beta, AlphaBetaLoss().domain) == (0.5, 0.5, 'pixel')


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({'alpha': -0.1}, 'alpha must be a number from 0 on, got -0.1'),
        ({'beta': math.inf}, 'beta must be a number from 0 on, got inf'),
        ({'beta': math.nan}, 'beta must be a number from 0 on, got nan'),
        ({'alpha': '1'}, "alpha must be a number from 0 on, got '1'"),
        ({'alpha': 0, 'beta': 0.0}, 'alpha and beta must not both be 0'),
        ({'tau': 0.0}, 'tau must be a positive number, got 0.0'),
        ({'domain': 'image'}, r"one of \['channel', 'pixel'\], got 'image'"),
    ],
)
def test_wrong_settings(settings, expected):
    with pytest.raises(ValueError, match=expected):
        AlphaBetaLoss(**settings)
    with pytest.raises(ValueError, match=expected):
        fused.alpha_beta_divergence(
            torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3), **{'alpha': 1.0, 'beta': 1.0, **settings}
        )
