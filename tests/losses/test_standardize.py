"""Logit standardization: every logit loss with it is the loss of logits standardised in Python loops."""

import math

import pytest
import torch
from mmseg.registry import MODELS
from references import SHAPES, draw, positions
from torch.autograd import gradcheck

BALANCED = {'tau_reverse': 0.7, 'forward_weight': 0.6, 'reverse_weight': 1.7}
LOSSES = [
    ({'type': 'BDDLoss', 'domain': 'channel', 'tau_forward': 2.0, **BALANCED}, 'channel'),
    ({'type': 'BDDLoss', 'domain': 'pixel', 'tau_forward': 2.0, **BALANCED}, 'pixel'),
    ({'type': 'KDLoss', 'tau': 2.0}, 'pixel'),
    ({'type': 'CWDLoss', 'tau': 2.0}, 'channel'),
    ({'type': 'DISTLoss', 'tau': 2.0}, 'pixel'),
    ({'type': 'DKDLoss', 'tau': 2.0, **BALANCED}, 'pixel'),
    ({'type': 'BPKDLoss', 'tau': 2.0, 'body_weight': 0.0, **BALANCED}, 'pixel'),
    ({'type': 'BPKDLoss', 'tau': 2.0, 'edge_weight': 0.0, **BALANCED}, 'channel'),
    ({'type': 'AlphaBetaLoss', 'alpha': 0.7, 'beta': 0.4, 'tau': 2.0, 'domain': 'pixel'}, 'pixel'),
    ({'type': 'AlphaBetaLoss', 'alpha': 0.7, 'beta': 0.4, 'tau': 2.0, 'domain': 'channel'}, 'channel'),
]
every_loss = pytest.mark.parametrize(
    'settings, domain', LOSSES, ids=[f'{settings["type"]}-{domain}' for settings, domain in LOSSES]
)


def build(settings, **changes):
    return MODELS.build({**settings, 'mask_ignored': True, **changes})


def standardised(values: list[float]) -> list[float]:
    mean = math.fsum(values) / max(1, len(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return [(value - mean) / (math.sqrt(variance) + 1e-7) for value in values]


def bodies(label, places):
    """Return (n, class) → the places of BPKD's second term: labelled so, and no other label beside them."""
    known = {(n, y, x): int(label[n, y, x]) for n, y, x in places}
    found: dict = {}
    for (n, y, x), k in known.items():
        around = {known.get((n, v, u), k) for v in (y - 1, y, y + 1) for u in (x - 1, x, x + 1)}
        if around == {k}:
            found.setdefault((n, k), []).append((y, x))
    return found


def reference(logits, domain, places, of_class=None):
    """Return logits whose distributions, at the places that count, have mean 0 and deviation 1.

    ``of_class`` gives for (n, class) the places of its distribution, all that count by default.
    """
    found = torch.zeros_like(logits)
    if domain == 'pixel':
        for n, y, x in places:
            found[n, :, y, x] = logits.new_tensor(standardised(logits[n, :, y, x].tolist()))
        return found
    for n in {n for n, _, _ in places}:
        all_there = [(y, x) for image, y, x in places if image == n]
        for k in range(logits.shape[1]):
            there = all_there if of_class is None else of_class.get((n, k), [])
            values = standardised([logits[n, k, y, x].item() for y, x in there])
            for (y, x), value in zip(there, values, strict=True):
                found[n, k, y, x] = value
    return found


@every_loss
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_is_the_loss_of_standardised_logits(settings, domain, shape, masked):
    student, teacher, label, mask = draw(shape, 1, masked, scale=3.0)
    label = label.sort(2).values  # so that classes have bodies
    places = positions(label, mask)
    value = build(settings, standardize=True)(student, teacher, label, mask=mask)
    of_class = bodies(label, places) if settings['type'] == 'BPKDLoss' else None
    maps = (reference(logits, domain, places, of_class) for logits in (student, teacher))
    expected = build(settings)(*maps, label, mask=mask)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


@every_loss
@pytest.mark.parametrize('masked', [False, True])
def test_gradcheck(settings, domain, masked):
    student, teacher, label, mask = draw((2, 3, 3, 2), 2, masked)
    loss = build(settings, standardize=True)
    assert gradcheck(lambda s: loss(s, teacher, label.sort(1).values, mask=mask), student.requires_grad_())


@every_loss
def test_another_scale_and_shift_of_each_distribution_changes_nothing(settings, domain):
    student, teacher, label, _ = draw((2, 4, 5, 6), 3)
    label = label.sort(2).values
    axis = (2, 1, 5, 6) if domain == 'pixel' else (2, 4, 1, 1)
    generator = torch.Generator().manual_seed(4)
    scale, shift = (torch.rand(axis, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    with_it, without = build(settings, standardize=True), build(settings)
    expected = with_it(student, teacher, label).item()
    assert expected > 1e-4
    changed = with_it(4 * scale * student + shift, teacher, label).item()
    assert changed == pytest.approx(expected, rel=1e-5)
    changed = with_it(student, 4 * scale * teacher - shift, label).item()
    assert changed == pytest.approx(expected, rel=1e-5)
    assert without(4 * scale * student + shift, teacher, label).item() != pytest.approx(expected, rel=1e-2)


@every_loss
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_the_largest_logits_and_maps_without_any_difference(settings, domain, dtype):
    _, teacher, label, _ = draw((2, 4, 5, 6), 5)
    teacher = (6e4 * teacher.sign()).to(dtype)
    loss = build(settings, standardize=True)
    for student in (-teacher, torch.zeros_like(teacher), torch.full_like(teacher, 0.1), teacher):
        student = student.clone().requires_grad_()
        value = loss(student, teacher, label)
        value.backward()
        assert value.isfinite()
        # Out of equal logits it is the teacher's, times 1e7: in float16 infinite, for GradScaler to see.
        assert not student.grad.isnan().any() if dtype == torch.float16 else student.grad.isfinite().all()


def test_the_default_is_without():
    for settings, _ in LOSSES:
        assert build(settings).standardize is False
