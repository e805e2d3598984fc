"""Properties of the losses that hold for any input: hypothesis looks for a counterexample.

`make stress` lets it try more inputs, and others each time.
"""

import math
import os
from dataclasses import dataclass

import pytest
import torch
from helpers import naive
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bdd_seg.losses import BDDLoss, FeatureLoss, balance_divergence
from bdd_seg.losses.pair import align

if os.environ.get('HYPOTHESIS_PROFILE') == 'stress':
    examples = settings(max_examples=10_000, deadline=None, derandomize=False)
else:
    examples = settings(max_examples=200, deadline=None)

HALF = [torch.bfloat16, torch.float16]
ROUNDING = -1e-12  # how far below 0 a divergence may come
LARGEST = 6e4  # nearly the largest of float16, 65504
LAYOUTS = {
    'contiguous': lambda x: x,
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    'images last': lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    'sliced': lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    'every other': lambda x: torch.stack([x, x], dim=4).flatten(3)[..., ::2],
    'one image expanded': lambda x: x[:1].expand_as(x),
    'one class expanded': lambda x: x[:, :1].expand_as(x),
    'one column expanded': lambda x: x[..., :1].expand_as(x),
}
VALUES = {  # what logits may look like, within -1 and 1
    'normal': lambda shape, rng: (torch.randn(shape, generator=rng, dtype=torch.float64) / 4).clamp(-1, 1),
    'extremes': lambda shape, rng: torch.randint(-1, 2, shape, generator=rng, dtype=torch.float64),
    'confident': lambda shape, rng: (torch.rand(shape, generator=rng, dtype=torch.float64) > 0.8).double(),
    'equal': lambda shape, rng: torch.ones(shape, dtype=torch.float64),
}
MASKS = {
    'none': lambda shape, rng: None,
    'nothing ignored': lambda shape, rng: torch.ones(shape, dtype=torch.bool),
    'everything ignored': lambda shape, rng: torch.zeros(shape, dtype=torch.bool),
    'random': lambda shape, rng: torch.rand(shape, generator=rng) > 0.5,
    'one position': lambda shape, rng: torch.arange(math.prod(shape)).view(shape) == 0,
}

seeds = st.integers(0, 2**32)
taus = st.sampled_from([0.1, 1.0, 4.0, 20.0]) | st.floats(0.1, 20)
weights = st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.9)])
scales = st.sampled_from([0.0, 1e-4, 1.0, 30.0, 1e3, LARGEST])
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))
dtypes = st.sampled_from([torch.float64, torch.float32, *HALF])


@dataclass
class Case:
    """Logits, a mask and settings for ``balance_divergence``."""

    student: Tensor
    teacher: Tensor
    mask: Tensor | None
    domain: str
    taus: tuple[float, float]
    weights: tuple[float, float]

    def kwargs(self) -> dict:
        return {
            'domain': self.domain,
            'tau_forward': self.taus[0],
            'tau_reverse': self.taus[1],
            'forward_weight': self.weights[0],
            'reverse_weight': self.weights[1],
            'mask': self.mask,
        }

    def counts(self) -> Tensor:
        """The mask of logits that count, in their shape."""
        mask = torch.ones_like(self.student[:, 0], dtype=torch.bool) if self.mask is None else self.mask
        return mask[:, None].expand_as(self.student)

    def distributions(self) -> int:
        """The number of distributions in the mean."""
        counts = self.counts().flatten(2)
        number = counts[:, 0].sum() if self.domain == 'pixel' else counts.any(dim=2).sum()
        return max(1, int(number))


@st.composite
def cases(draw, dtypes=dtypes, scales=scales) -> Case:
    shape, dtype = draw(shapes), draw(dtypes)
    rng = torch.Generator().manual_seed(draw(seeds))
    student, teacher = (
        LAYOUTS[draw(st.sampled_from([*LAYOUTS]))](
            (VALUES[draw(st.sampled_from([*VALUES]))](shape, rng) * draw(scales)).to(dtype)
        ).detach()
        for _ in range(2)
    )
    mask = MASKS[draw(st.sampled_from([*MASKS]))]((shape[0], *shape[2:]), rng)
    domain = draw(st.sampled_from(['pixel', 'channel']))
    return Case(student, teacher, mask, domain, draw(st.tuples(taus, taus)), draw(weights))


@examples
@given(cases())
def test_the_divergence_agrees_with_its_definition(case):
    value = balance_divergence(case.student, case.teacher, **case.kwargs())
    assert value.dtype == torch.promote_types(case.student.dtype, torch.float32)
    expected = naive(case.student, case.teacher, case.domain, *case.taus, *case.weights, case.mask)
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert value.item() >= ROUNDING


@examples
@given(cases())
def test_the_divergence_is_zero_at_equality(case):
    same = case.student.contiguous()
    for teacher in (case.student, same, case.student.contiguous(memory_format=torch.channels_last)):
        student = case.student.detach().requires_grad_()
        value = balance_divergence(student, teacher, **case.kwargs())
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-9)
        assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-5)


@examples
@given(cases())
def test_the_divergence_is_symmetric_with_its_terms_swapped(case):
    value = balance_divergence(case.student, case.teacher, **case.kwargs())
    case.taus, case.weights = case.taus[::-1], case.weights[::-1]
    swapped = balance_divergence(case.teacher, case.student, **case.kwargs())
    assert swapped.item() == pytest.approx(value.item(), rel=1e-4, abs=1e-7)


@examples
@given(cases(dtypes=st.just(torch.float64), scales=st.sampled_from([1e-4, 1.0, 30.0, 1e3])), seeds)
def test_a_constant_along_the_domains_axis_changes_nothing(case, seed):
    images, classes, *size = case.student.shape
    axis = (images, 1, *size) if case.domain == 'pixel' else (images, classes, 1, 1)
    shift = 100 * torch.randn(axis, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value = balance_divergence(case.student, case.teacher, **case.kwargs())
    for student, teacher in ((shift, 0), (0, shift), (shift, shift)):
        shifted = balance_divergence(case.student + student, case.teacher + teacher, **case.kwargs())
        assert shifted.item() == pytest.approx(value.item(), rel=1e-6, abs=1e-9)


@examples
@given(cases())
def test_the_divergences_gradient(case):
    """It is finite, sums to zero along the axis, goes to the student alone, and obeys a bound.

    By |q·(log(q/p) − KL)| ≤ q·(1 − q)·spread of log(q/p), which lets float16 hold it at all logits to 6e4.
    """
    student = case.student.detach().requires_grad_()
    teacher = case.teacher.detach().requires_grad_()
    balance_divergence(student, teacher, **case.kwargs()).backward()
    assert teacher.grad is None
    assert student.grad.dtype == student.dtype
    assert student.grad.isfinite().all()
    assert not student.grad[~case.counts()].any()
    wide = student.grad.double()
    difference = case.student.double() - case.teacher.double()
    spread = difference.max() - difference.min()
    (alpha, beta), tau = case.weights, case.taus[0]
    epsilon = max(torch.finfo(student.dtype).eps, torch.finfo(torch.float32).eps)
    bound = (alpha * tau + beta * spread / 4) / case.distributions()
    assert wide.abs().max() <= bound * (1 + 4 * epsilon) + 1e-7
    along = wide.flatten(2).sum(1 if case.domain == 'pixel' else 2)
    # Beside each element's last rounding, that of probabilities times τ, and where q is 1 that of a
    # difference between numbers as large as the logits' spread. And float16 ends at 6e-8.
    rounding = 4 * epsilon * wide.abs().sum() + 4e-7 * (sum(case.taus) + beta * spread) + 1e-7 * wide.numel()
    assert along.abs().max() <= rounding


@examples
@given(cases(), st.sampled_from([math.nan, math.inf, -math.inf]), st.booleans(), seeds)
def test_what_is_not_finite_shows_where_it_counts_and_only_there(case, value, in_teacher, seed):
    """FiniteLossHook relies on the former, cached teachers on the latter."""
    expected = balance_divergence(case.student, case.teacher, **case.kwargs())
    spoilt = (case.teacher if in_teacher else case.student).contiguous().clone()
    place = torch.randint(spoilt.numel(), (), generator=torch.Generator().manual_seed(seed))
    spoilt.view(-1)[place] = value
    student, teacher = (case.student, spoilt) if in_teacher else (spoilt, case.teacher)
    student = student.detach().requires_grad_()
    result = balance_divergence(student, teacher, **case.kwargs())
    if case.counts().reshape(-1)[place]:
        assert not result.isfinite()
    else:
        result.backward()
        assert result.item() == pytest.approx(expected.item(), rel=1e-6)
        assert student.grad.isfinite().all()


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def maps(draw, channels, size) -> Tensor:
    """(2, C, H, W) outputs of a network, of any precision."""
    rng = torch.Generator().manual_seed(draw(seeds))
    values = VALUES[draw(st.sampled_from([*VALUES]))]((2, channels, *size), rng) * draw(scales)
    return LAYOUTS[draw(st.sampled_from([*LAYOUTS]))](values.to(draw(dtypes))).detach()


def check(loss, student, teacher, **kwargs):
    """Both the value and the gradient are finite, and half precision loses nothing but the last rounding.

    Where that leads beyond float16, because few positions count, the gradient is infinite: a smaller one
    would be wrong, and GradScaler must see it.
    """
    grads, values = [], []
    for outputs in (student, student.to(torch.promote_types(student.dtype, torch.float32))):
        outputs = outputs.detach().requires_grad_()
        teacher = teacher.detach().requires_grad_()
        loss.zero_grad()
        value = loss(outputs, teacher, **kwargs)
        value.backward()
        assert value.isfinite() and value >= ROUNDING
        assert teacher.grad is None
        grads.append(outputs.grad)
        values.append(value.item())
    assert values[0] == values[1]
    assert grads[1].isfinite().all()
    assert grads[0].dtype == student.dtype
    assert torch.equal(grads[0], grads[1].to(student.dtype))
    return value


@examples
@given(st.data(), st.sampled_from(['pixel', 'channel']), taus, taus, st.booleans(), st.booleans())
def test_bdd_loss_under_autocast(data, domain, tau_forward, tau_reverse, mask_ignored, align_corners):
    classes = data.draw(st.integers(2 if domain == 'pixel' else 1, 6))
    student, teacher = (data.draw(maps(classes, data.draw(sizes))) for _ in range(2))
    rng = torch.Generator().manual_seed(data.draw(seeds))
    label = torch.randint(classes, (2, 16, 16), generator=rng)
    label[torch.rand(label.shape, generator=rng) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))] = 255
    mask = MASKS[data.draw(st.sampled_from([*MASKS]))]((2, *teacher.shape[2:]), rng)
    loss = BDDLoss(domain, tau_forward, tau_reverse, mask_ignored=mask_ignored)
    with torch.autocast('cpu', data.draw(st.sampled_from(HALF))):
        check(loss, student, teacher, seg_label=label, align_corners=align_corners, mask=mask)


@examples
@given(st.data(), dtypes, st.booleans())
def test_feature_loss_under_autocast(data, weights_dtype, align_corners):
    """With the weights that it begins with, also where something has made them half precision."""
    channels = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    student, teacher = (data.draw(maps(number, data.draw(sizes))) for number in channels)
    rng = torch.Generator().manual_seed(data.draw(seeds))
    mask = MASKS[data.draw(st.sampled_from([*MASKS]))]((2, *teacher.shape[2:]), rng)
    with torch.random.fork_rng():
        torch.manual_seed(data.draw(seeds))
        loss = FeatureLoss(*channels).to(weights_dtype)
    with torch.autocast('cpu', data.draw(st.sampled_from(HALF))):
        value = check(loss, student, teacher, align_corners=align_corners, mask=mask)
    promoted = torch.promote_types(weights_dtype, student.dtype)
    assert value.dtype == torch.promote_types(promoted, torch.float32)
    if weights_dtype != torch.float16:
        assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())

    weight, bias = (parameter.detach().double() for parameter in loss.parameters())
    pair = align(student.double(), teacher.double(), None, align_corners, mask)
    mask = pair.mask
    difference = torch.einsum('nshw,ts->nthw', pair.student, weight[..., 0, 0]) - pair.teacher
    difference = (difference + bias[:, None, None]).permute(0, 2, 3, 1)[... if mask is None else mask]
    expected = difference.square().mean().nan_to_num(0).item()  # the mean of nothing
    rounding = 1e-6 * (student.abs().max() + teacher.abs().max()).item()
    assert value.item() == pytest.approx(expected, rel=1e-4, abs=10 * rounding * (rounding + expected**0.5))
