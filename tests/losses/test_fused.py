"""The blocked divergence against the plain form, a float64 reference, and its properties."""

import pytest
import torch
from helpers import naive
from references import LargestTemporary, balance, mean
from torch.autograd import gradcheck

from bdd_seg.losses import fused
from bdd_seg.losses.fused import balance_divergence

SHAPES = [(2, 19, 8, 16), (1, 1, 5, 7), (3, 5, 1, 1), (2, 2, 1, 9), (1, 11, 45, 60)]


def draw(shape, scale=1.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype) for _ in range(2)
    ]


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('taus', [(0.5, 20.0), (1.0, 1.0), (4.0, 4.0), (20.0, 0.5)])
@pytest.mark.parametrize('scale', [1.0, 1e4])
def test_agrees_with_the_definition(domain, shape, taus, scale):
    student, teacher = draw(shape, scale, seed=hash((shape, taus)) % 1000)
    value = balance_divergence(
        student,
        teacher,
        domain=domain,
        tau_forward=taus[0],
        tau_reverse=taus[1],
        forward_weight=0.7,
        reverse_weight=1.3,
    )
    expected = naive(student, teacher, domain, *taus, 0.7, 1.3)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize('dtype, rtol', [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_gradient_agrees_with_autograd_of_the_definition(domain, dtype, rtol):
    student, teacher = draw((2, 7, 6, 5), 2.0, dtype=dtype)
    student.requires_grad_()
    reference = student.detach().double().requires_grad_()
    dim = 1 if domain == 'pixel' else 2
    for tau, forward in ((2.0, True), (3.0, False)):
        log_q = torch.log_softmax(reference.flatten(2) / tau, dim)
        log_p = torch.log_softmax(teacher.double().flatten(2) / tau, dim)
        kl = (log_p.exp() * (log_p - log_q)) if forward else (log_q.exp() * (log_q - log_p))
        (tau**2 * kl.sum(dim).mean() * 2.5).backward()  # gradients of both terms add up; 2.5 comes from above
    value = balance_divergence(student, teacher, domain=domain, tau_forward=2.0, tau_reverse=3.0)
    (2.5 * value).backward()
    torch.testing.assert_close(student.grad.double(), reference.grad, rtol=rtol, atol=rtol * 1e-2)


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('masked', [False, True])
def test_gradcheck(domain, masked):
    student, teacher = draw((2, 3, 4, 2), dtype=torch.float64)
    mask = torch.rand(2, 4, 2, generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    assert gradcheck(
        lambda s: balance_divergence(s, teacher, domain=domain, tau_forward=1.5, tau_reverse=0.8, mask=mask),
        student.requires_grad_(),
    )


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_masked_positions_leave_every_sum(domain):
    student, teacher = draw((3, 5, 6, 7), 3.0)
    mask = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(2)) > 0.5
    mask[1] = False  # an image without any position that counts leaves the mean
    student.requires_grad_()
    value = balance_divergence(student, teacher, domain=domain, tau_forward=2.0, tau_reverse=3.0, mask=mask)
    assert value.item() == pytest.approx(
        naive(student.detach(), teacher, domain, 2.0, 3.0, 1, 1, mask), rel=1e-5
    )
    value.backward()
    excluded = ~mask[:, None].expand_as(student)
    assert student.grad[excluded].abs().max() == 0
    assert student.grad[~excluded].abs().min() > 0
    changed = torch.where(excluded, torch.full_like(student, 1e4), student.detach())
    again = balance_divergence(changed, teacher, domain=domain, tau_forward=2.0, tau_reverse=3.0, mask=mask)
    assert again.item() == value.item()


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_a_mask_of_everything_gives_zero_and_a_full_one_changes_nothing(domain):
    student, teacher = draw((2, 4, 3, 3))
    student.requires_grad_()
    nothing = balance_divergence(student, teacher, domain=domain, mask=torch.zeros(2, 3, 3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    everything = balance_divergence(
        student, teacher, domain=domain, mask=torch.ones(2, 3, 3, dtype=torch.bool)
    )
    assert torch.equal(everything, balance_divergence(student, teacher, domain=domain))


def mask_of_logits(shape, seed=4):
    """Return a mask (N, C, H, W) that leaves some distributions of either domain without any logit."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:, :, 0, 0] = False
    mask[0, 0] = False
    return mask


def selected(logits, domain, mask):
    """Return for each distribution the logits that count, where there are any."""
    found = []
    for image, counts in zip(logits.flatten(2), mask.flatten(2), strict=True):
        if domain == 'pixel':
            image, counts = image.T, counts.T
        found += [values[kept] for values, kept in zip(image, counts, strict=True) if kept.any()]
    return found


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('shape', [*SHAPES[:4], (1, 11, 9, 12)])
@pytest.mark.parametrize('settings', [(2.0, 0.7, 0.6, 1.7), (4.0, 4.0, 1.0, 1.0), (1.0, 3.0, 0.0, 7.0)])
def test_a_mask_of_logits_agrees_with_the_definition(domain, shape, settings):
    student, teacher = draw(shape, 3.0, dtype=torch.float64)
    mask = mask_of_logits(shape)
    tau, tau_reverse, forward_weight, reverse_weight = settings
    pairs = zip(*(selected(logits, domain, mask) for logits in (student, teacher)), strict=True)
    expected = mean([balance(s.tolist(), t.tolist(), *settings) for s, t in pairs])
    value = balance_divergence(
        student,
        teacher,
        domain=domain,
        tau_forward=tau,
        tau_reverse=tau_reverse,
        forward_weight=forward_weight,
        reverse_weight=reverse_weight,
        mask=mask,
    )
    assert value.item() == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_gradient_with_a_mask_of_logits_is_autograds_of_those_that_count(domain):
    student, teacher = draw((2, 4, 3, 5), 2.0, dtype=torch.float64)
    mask = mask_of_logits(student.shape)
    reference = student.clone().requires_grad_()
    pairs = list(zip(*(selected(logits, domain, mask) for logits in (reference, teacher)), strict=True))
    for s, t in pairs:
        forward = (t / 2).softmax(0) * ((t / 2).log_softmax(0) - (s / 2).log_softmax(0))
        reverse = (s / 3).softmax(0) * ((s / 3).log_softmax(0) - (t / 3).log_softmax(0))
        (2.5 * (4 * forward.sum() + 7 * 9 * reverse.sum()) / len(pairs)).backward(retain_graph=True)
    settings = {'domain': domain, 'tau_forward': 2.0, 'tau_reverse': 3.0, 'reverse_weight': 7.0, 'mask': mask}
    student.requires_grad_()
    (2.5 * balance_divergence(student, teacher, **settings)).backward()
    torch.testing.assert_close(student.grad, reference.grad, rtol=1e-10, atol=1e-13)
    assert not student.grad[~mask].any()
    assert gradcheck(lambda s: balance_divergence(s, teacher, **settings), student)


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_a_mask_of_logits_that_is_one_of_positions(domain):
    student, teacher = draw((3, 5, 6, 7), 3.0)
    mask = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(2)) > 0.5
    mask[1] = False
    found = []
    for counts in (mask, mask[:, None].expand_as(student), mask[:, None].repeat(1, 5, 1, 1)):
        leaf = student.clone().requires_grad_()
        value = balance_divergence(leaf, teacher, domain=domain, mask=counts)
        value.backward()
        found.append((value.item(), leaf.grad))
    for value, gradient in found[1:]:
        assert value == found[0][0]
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_logits_that_do_not_count_may_be_anything(domain):
    student, teacher = draw((2, 4, 3, 5), 3.0)
    mask = mask_of_logits(student.shape)
    expected = balance_divergence(student, teacher, domain=domain, mask=mask)
    for anything in (-6e4, 1e30, torch.inf, torch.nan):
        leaf = student.masked_fill(~mask, anything).requires_grad_()
        value = balance_divergence(leaf, teacher.masked_fill(~mask, -anything), domain=domain, mask=mask)
        value.backward()
        assert value.item() == expected.item()
        assert not leaf.grad[~mask].any()
        assert leaf.grad.isfinite().all()
    nothing = balance_divergence(student, teacher, domain=domain, mask=torch.zeros_like(mask))
    assert nothing.item() == 0


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_memory_layout_does_not_matter(domain):
    student, teacher = draw((3, 4, 6, 8))
    layouts = {
        'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
        'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        'sliced': lambda x: torch.cat([x, x], dim=3)[..., :8],
        'every other': lambda x: torch.stack([x, x], dim=4)[..., 0],
    }
    expected = student.clone().requires_grad_()
    value = balance_divergence(expected, teacher, domain=domain)
    value.backward()
    for name, layout in layouts.items():
        leaf = student.clone().requires_grad_()
        other = balance_divergence(layout(leaf), layout(teacher), domain=domain)
        other.backward()
        assert other.item() == pytest.approx(value.item(), rel=1e-6), name
        torch.testing.assert_close(leaf.grad, expected.grad, rtol=1e-5, atol=2e-8, msg=name)


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('block', [1, 7, 40, 10**6])
def test_block_size_does_not_matter(domain, block, monkeypatch):
    student, teacher = draw((3, 4, 5, 6))
    expected = student.clone().requires_grad_()
    value = balance_divergence(expected, teacher, domain=domain)
    value.backward()
    monkeypatch.setitem(fused._BLOCK, 'cpu', block)
    student.requires_grad_()
    other = balance_divergence(student, teacher, domain=domain)
    other.backward()
    assert other.item() == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(student.grad, expected.grad, rtol=1e-5, atol=2e-8)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype):
    student, teacher = draw((1, 3, 64, 128), 4.0, dtype=dtype)
    student.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        value = balance_divergence(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert student.grad.dtype == dtype
    exact = balance_divergence(student.detach().double(), teacher.double())
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
def test_temporaries_are_no_larger_than_a_block(domain, monkeypatch):
    student, teacher = draw((2, 8, 16, 16))
    monkeypatch.setitem(fused._BLOCK, 'cpu', 512)
    student.requires_grad_()
    with LargestTemporary() as largest:
        balance_divergence(student, teacher, domain=domain).backward()
    assert student.grad.shape == student.shape
    assert 256 <= largest.elements <= 512


@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_students_close_to_their_teacher(domain, tau):
    """Float32 keeps 1e-4 of a divergence that is a difference of nearly equal sums."""
    teacher, noise = draw((2, 19, 16, 16))
    student = teacher + 1e-2 * noise
    value = balance_divergence(student, teacher, domain=domain, tau_forward=tau, tau_reverse=tau)
    assert value.item() == pytest.approx(naive(student, teacher, domain, tau, tau, 1, 1), rel=1e-4)


def test_gives_the_teacher_no_gradient():
    student, teacher = (logits.requires_grad_() for logits in draw((2, 19, 16, 16)))
    balance_divergence(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_takes_a_teachers_logits_from_inference_mode():
    student, teacher = draw((2, 3, 8, 8))
    expected = torch.autograd.grad(balance_divergence(student.requires_grad_(), teacher), student)[0]
    with torch.inference_mode():
        teacher = teacher * 1
    assert torch.equal(torch.autograd.grad(balance_divergence(student, teacher), student)[0], expected)


@pytest.mark.parametrize('tau_reverse', [4.0, 1.0])
def test_a_second_backward_pass_gives_the_same(tau_reverse):
    student, teacher = draw((2, 3, 8, 8))
    value = 3 * balance_divergence(student.requires_grad_(), teacher, tau_reverse=tau_reverse)
    (first,) = torch.autograd.grad(value, student, retain_graph=True)
    expected = first.clone()
    (second,) = torch.autograd.grad(value, student)
    assert torch.equal(second, expected)
    assert torch.equal(first, expected)


def test_older_methods_are_settings():
    student, teacher = draw((2, 5, 4, 3))
    dims = {'pixel': (1, 2 * 12), 'channel': (2, 2 * 5)}
    for domain, (dim, count) in dims.items():
        log_q = torch.log_softmax(student.flatten(2) / 3, dim)
        p = torch.softmax(teacher.flatten(2) / 3, dim)
        expected = 9 * torch.nn.functional.kl_div(log_q, p, reduction='sum') / count
        value = balance_divergence(student, teacher, domain=domain, tau_forward=3.0, reverse_weight=0)
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    'change, error, message',
    [
        ({'domain': 'image'}, ValueError, r"one of \['channel', 'pixel'\], got 'image'"),
        ({'tau_forward': 0.0}, ValueError, 'tau_forward must be a positive number, got 0.0'),
        ({'tau_reverse': -1.0}, ValueError, 'tau_reverse must be a positive number, got -1.0'),
        ({'tau_reverse': float('nan')}, ValueError, 'tau_reverse'),
        (
            {'teacher_logits': torch.zeros(2, 4, 4, 4)},
            ValueError,
            'same channels, which for logits are the classes; got 3 and 4',
        ),
        ({'teacher_logits': torch.zeros(2, 3, 4, 5)}, ValueError, 'same shape'),
        ({'teacher_logits': torch.zeros(2, 3, 4, 4, dtype=torch.long)}, TypeError, 'must be floating point'),
        ({'student_logits': torch.zeros(3, 4, 4)}, ValueError, r'must be \(N, C, H, W\)'),
        (
            {'mask': torch.ones(2, 4, 5, dtype=torch.bool)},
            ValueError,
            r'mask must be \(N, H, W\) = \(2, 4, 4\)',
        ),
        (
            {'mask': torch.ones(2, 1, 4, 4, dtype=torch.bool)},
            ValueError,
            r'or \(N, C, H, W\), got \(2, 1, 4, 4\)',
        ),
        ({'mask': torch.ones(2, 4, 4)}, TypeError, 'mask must be bool'),
    ],
)
def test_wrong_input(change, error, message):
    arguments = {
        'student_logits': torch.zeros(2, 3, 4, 4),
        'teacher_logits': torch.zeros(2, 3, 4, 4),
        **change,
    }
    with pytest.raises(error, match=message):
        balance_divergence(arguments.pop('student_logits'), arguments.pop('teacher_logits'), **arguments)
