"""Facts that hold for every distillation loss, of which METHODS has to name each.

`make stress` lets Hypothesis try more inputs, and others each time.
"""

import inspect
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.registry import MODELS
from references import LargestTemporary
from torch import Tensor
from torch.autograd import gradcheck

from bdd_seg.losses import BalancedLoss, DistillLoss

if os.environ.get('HYPOTHESIS_PROFILE') == 'stress':
    examples = settings(max_examples=2_000, deadline=None, derandomize=False)
else:
    examples = settings(max_examples=25, deadline=None)

CLASSES = 3
FEATURES = 3, 4
"""Channels of the student's and of the teacher's features. Logits have one for each class."""
QUEUES = {
    'num_classes': CLASSES,
    'student_channels': FEATURES[0],
    'teacher_channels': FEATURES[1],
    'pixel_memory': 7,
    'region_memory': 3,
    'pixel_keys': 12,
    'region_keys': 6,
}
BOTH = {'tau_reverse': 0.7, 'forward_weight': 0.6, 'reverse_weight': 1.7}

METHODS: dict[str, list[dict]] = {
    'AlphaBetaLoss': [
        {'alpha': 0.7, 'beta': 0.4, 'tau': 2.0},
        {'domain': 'channel', 'standardize': True},
        {'alpha': 1.0, 'beta': 0.0},
        {'alpha': 0.0, 'beta': 1.0, 'domain': 'channel'},
    ],
    'AttentionLoss': [{'loss_weight': 3.0}],
    'BDDLoss': [
        {'domain': 'pixel', 'tau_forward': 2.0, 'standardize': True},
        {'domain': 'channel', 'tau_reverse': 3.0},
    ],
    'BPKDLoss': [{'tau': 2.0, **BOTH}, {'edge_radius': 2, 'standardize': True}],
    'CIRKDLoss': [{}, {'pool': 2, **BOTH}],
    'CIRKDMemoryLoss': [QUEUES, {**QUEUES, 'mode': 'code', 'positions': 5, **BOTH}],
    'CWDLoss': [{}, {'standardize': True, **BOTH}],
    'DISTLoss': [{'tau': 2.0, 'mode': 'code'}, {'standardize': True}],
    'DKDLoss': [{'tau': 2.0, **BOTH}, {'standardize': True}],
    'FeatureLoss': [
        {'student_channels': FEATURES[0], 'teacher_channels': FEATURES[1]},
        {'student_channels': FEATURES[0], 'teacher_channels': FEATURES[1], 'distance': 'cosine'},
    ],
    'IFVDLoss': [{}],
    'KDLoss': [{}, {'standardize': True, **BOTH}],
    'MGDLoss': [
        {'student_channels': FEATURES[0], 'teacher_channels': FEATURES[1], 'loss_weight': 0.1},
        {'student_channels': FEATURES[0], 'teacher_channels': FEATURES[0], 'mask_ratio': 0.3},
    ],
    'PairwiseLoss': [{}, {'mode': 'code'}],
}
"""By class, settings that make small losses of it."""

CASES = [
    pytest.param(name, changes, id=f'{name}{number or ""}')
    for name, variants in METHODS.items()
    for number, changes in enumerate(variants)
]
every_method = pytest.mark.parametrize('name, changes', CASES)


def concrete(of: type) -> set[str]:
    """Return the names of the classes of this package that derive from a class and are not abstract."""
    found = set()
    for derived in of.__subclasses__():
        if not inspect.isabstract(derived) and derived.__module__.startswith('bdd_seg.'):
            found.add(derived.__name__)
        found |= concrete(derived)
    return found


def test_no_method_is_missing():
    registered = {
        name
        for name, module in MODELS.module_dict.items()
        if inspect.isclass(module)
        and issubclass(module, DistillLoss)
        and module.__module__.startswith('bdd_seg.')
    }
    assert registered == concrete(DistillLoss) == set(METHODS)


class Method:
    """A loss whose every call is the first: its queues are empty and it draws the same numbers."""

    def __init__(self, name: str, changes: dict, **more) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.loss: DistillLoss = MODELS.build({'type': name, **changes, **more})
        self.beginning = {name: buffer.clone() for name, buffer in self.loss.named_buffers()}

    def __call__(self, *args, **kwargs) -> Tensor:
        for name, buffer in self.loss.named_buffers():
            buffer.copy_(self.beginning[name])
        return self.loss(*args, **kwargs)

    @property
    def channels(self) -> tuple[int, int]:
        """The channels of both maps."""
        if self.loss.channels == 'equal':
            return CLASSES, CLASSES
        return self.loss.student_channels or FEATURES[0], self.loss.teacher_channels or FEATURES[1]

    def maps(self, images=2, height=5, width=7, seed=0, dtype=torch.float32, scale=2.0):
        """Return a student's and a teacher's map, and labels of which a few are ignored."""
        generator = torch.Generator().manual_seed(seed)
        student, teacher = (
            (scale * torch.randn(images, channels, height, width, generator=generator)).to(dtype)
            for channels in self.channels
        )
        label = torch.randint(CLASSES, (images, -(-height // 2), -(-width // 2)), generator=generator)
        label = label.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width].contiguous()
        label[torch.rand(label.shape, generator=generator) < 0.15] = 255
        return student, teacher, label

    def step(self, student, teacher, label, mask=None, upstream=1.0, autocast=None):
        """Return the value, and the gradients of the student's map and of the loss's own weights."""
        student = student.detach().requires_grad_()
        self.loss.zero_grad()
        with torch.autocast('cpu', autocast, enabled=autocast is not None):
            value = self(student, teacher, label, mask=mask)
        (upstream * value).backward()
        assert student.grad is not None
        return value.detach(), [student.grad, *(parameter.grad for parameter in self.loss.parameters())]


def mask_of(label: Tensor, seed: int = 1, share: float = 0.7) -> Tensor:
    return torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)) < share


@every_method
def test_methods_are_not_trivial(name, changes):
    """The small loss has a value and a gradient, so that the tests below can fail."""
    method = Method(name, changes, mask_ignored=True)
    student, teacher, label = method.maps(dtype=torch.float64)
    mask = mask_of(label)
    value, gradients = method.step(student, teacher, label, mask)
    assert value > 1e-4
    touched = gradients[0].abs().sum(1) > 0
    assert touched.any()
    assert not touched[~mask | (label == 255)].any()
    again, _ = method.step(student, teacher, label, mask)
    assert torch.equal(again, value)


@every_method
@examples
@given(st.data())
def test_positions_that_do_not_count_may_hold_anything(name, changes, data):
    images, height, width = (data.draw(st.integers(1, limit)) for limit in (3, 6, 6))
    seed = data.draw(st.integers(0, 2**32))
    generator = torch.Generator().manual_seed(seed)
    ignoring = data.draw(st.booleans())
    method = Method(name, changes, mask_ignored=ignoring)
    ignoring = ignoring or method.loss.needs_labels
    student, teacher, label = method.maps(images, height, width, seed)
    label[torch.rand(label.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.4, 1.0]))] = 255
    share = data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    mask = torch.rand(label.shape, generator=generator) < share
    counts = mask & (label != 255) if ignoring else mask
    value, (gradient, *of_weights) = method.step(student, teacher, label, mask)
    assert value.isfinite()
    assert not gradient[~counts[:, None].expand_as(gradient)].any()

    scale = data.draw(st.sampled_from([1e-3, 1.0, 1e3]))
    others = [scale * torch.randn(x.shape, generator=generator) for x in (student, teacher)]
    if data.draw(st.booleans()):
        fill = data.draw(st.sampled_from([0.0, torch.nan]))
        others = [torch.full_like(x, fill) for x in others]
    changed = [torch.where(counts[:, None], *both) for both in zip((student, teacher), others, strict=True)]
    labels = torch.tensor([*range(CLASSES), 7, 200, 255])
    labels = labels[torch.randint(len(labels), label.shape, generator=generator)]
    relabelled = torch.where(mask, label, labels)
    again, (slope, *slopes) = method.step(*changed, relabelled, mask)
    assert torch.equal(again, value)
    assert torch.equal(slope, gradient)
    for one, other in zip(slopes, of_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * max(1.0, other.abs().max().item()))


@every_method
def test_what_the_teacher_does_not_know_may_be_nan(name, changes):
    method = Method(name, changes)
    student, teacher, label = method.maps()
    mask = mask_of(label)
    value, gradients = method.step(student, teacher, label, mask)
    spoilt = teacher.masked_fill(~mask[:, None], torch.nan)
    again, others = method.step(student, spoilt, label, mask)
    assert torch.equal(again, value)
    for one, other in zip(others, gradients, strict=True):
        assert torch.equal(one, other)


@every_method
@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_a_student_that_is_not_finite_shows(name, changes, value):
    """FiniteLossHook relies on it."""
    method = Method(name, {**changes, **({'positions': None} if 'positions' in changes else {})})
    student, teacher, label = method.maps()
    label.clamp_(max=CLASSES - 1)
    student[1, 0, 2, 3] = value
    assert not method(student, teacher, label).isfinite()


@every_method
@pytest.mark.parametrize('masked', [False, True])
def test_gradcheck(name, changes, masked):
    method = Method(name, changes, mask_ignored=masked)
    method.loss.double()
    method.beginning = {key: buffer.clone() for key, buffer in method.loss.named_buffers()}
    student, teacher, label = method.maps(2, 3, 4, dtype=torch.float64, seed=3)
    mask = mask_of(label) if masked else None
    weights = dict(method.loss.named_parameters())

    def with_weights(student: Tensor, *values: Tensor) -> Tensor:
        for key, buffer in method.loss.named_buffers():
            buffer.copy_(method.beginning[key])
        state = dict(zip(weights, values, strict=True))
        return torch.func.functional_call(
            method.loss, state, (student, teacher), {'seg_label': label, 'mask': mask}
        )

    inputs = (student.requires_grad_(), *weights.values())
    assert gradcheck(with_weights, inputs, fast_mode=bool(weights))


@every_method
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name, changes, dtype):
    """Exactly as from the rounded inputs; the gradient is rounded once."""
    method = Method(name, changes)
    student, teacher, label = method.maps(dtype=dtype)
    expected, exact = method.step(student.float(), teacher.float(), label)
    for autocast in (torch.bfloat16, torch.float16):
        value, gradients = method.step(student, teacher, label, autocast=autocast)
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)
        assert gradients[0].dtype == dtype
        assert gradients[0].isfinite().all()
        assert torch.equal(gradients[0], exact[0].to(dtype))
        for one, other in zip(gradients[1:], exact[1:], strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)


LAYOUTS = {
    'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    'sliced': lambda x: torch.nn.functional.pad(x, (1, 2, 3, 1), value=9.0)[..., 3:-1, 1:-2],
    'images last': lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


@every_method
def test_memory_layout_does_not_matter(name, changes):
    method = Method(name, changes, mask_ignored=True)
    student, teacher, label = method.maps(3, 4, 6)
    mask = mask_of(label)
    expected, gradients = method.step(student, teacher, label, mask)
    for layout in LAYOUTS.values():
        assert not layout(student).is_contiguous()
        value, others = method.step(layout(student), layout(teacher), layout(label[:, None])[:, 0], mask)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        for one, other in zip(others, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


def scene(method: Method, kind: str):
    """Return maps, labels and a mask of one of SCENES."""
    sizes = {'odd size': (2, 5, 7), 'one image': (1, 6, 5), 'one position each': (3, 1, 1)}
    sizes |= {'one position': (1, 1, 1), 'one row': (2, 1, 9), 'one column': (1, 8, 1)}
    student, teacher, label = method.maps(*sizes.get(kind, (2, 4, 6)), seed=5)
    mask = torch.ones_like(label, dtype=torch.bool)
    if 'position' in kind:
        label.fill_(1)
    elif kind == 'one class':
        label.fill_(2)
    elif kind == 'no labels':
        label.fill_(255)
    elif kind == 'one label':
        label.fill_(255)[1, 2, 3] = 1
    elif kind == 'nothing known':
        mask[:] = False
    elif kind == 'student constant':
        student.fill_(0.3)
    elif kind == 'teacher constant':
        teacher.fill_(0.3)
    elif kind == 'both constant':
        student.fill_(0.3)
        teacher.fill_(-7.0)
    elif kind == 'both zero':
        student.zero_()
        teacher.zero_()
    elif kind == 'an image without labels':
        label[0] = 255
    return student, teacher, label, mask


NOTHING_COUNTS = ['no labels', 'nothing known']
SCENES = [
    'odd size',
    'one image',
    'one position each',
    'one position',
    'one row',
    'one column',
    'one class',
    'one label',
    'an image without labels',
    'student constant',
    'teacher constant',
    'both constant',
    'both zero',
    *NOTHING_COUNTS,
]


@every_method
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_unusual_maps_and_labels_have_a_finite_value_and_gradient(name, changes, dtype):
    method = Method(name, changes, mask_ignored=True)
    for kind in SCENES:
        student, teacher, label, mask = scene(method, kind)
        value, gradients = method.step(student.to(dtype), teacher.to(dtype), label, mask)
        assert value.isfinite() and value >= -1e-6, kind
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients), kind
        if kind in NOTHING_COUNTS:
            assert value == 0, kind
            assert not any(gradient.any() for gradient in gradients), kind


@every_method
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name, changes):
    method = Method(name, changes)
    if method.loss.channels == 'adapted':  # by layers that change the student's map
        assert list(method.loss.parameters())
        return
    _, teacher, label = method.maps()
    value, gradients = method.step(teacher, teacher, label)
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert gradients[0].abs().max().item() == pytest.approx(0, abs=1e-4)


@every_method
def test_the_teacher_gets_no_gradient_and_upstream_gradients_scale(name, changes):
    method = Method(name, changes)
    student, teacher, label = method.maps()
    teacher.requires_grad_()
    value, gradients = method.step(student, teacher, label)
    assert teacher.grad is None
    same, scaled = method.step(student, teacher, label, upstream=2.5)
    assert torch.equal(same, value)
    assert gradients[0].any()
    for one, other in zip(scaled, gradients, strict=True):
        torch.testing.assert_close(one, 2.5 * other, rtol=1e-5, atol=1e-6 * other.abs().max().item())


@every_method
def test_without_gradient_the_value_is_the_same(name, changes):
    method = Method(name, changes)
    student, teacher, label = method.maps()
    value, _ = method.step(student, teacher, label)
    with torch.no_grad():
        assert torch.equal(method(student.requires_grad_(), teacher, label), value)
    found = method(student.detach(), teacher, label)
    assert torch.equal(found.detach(), value)
    with torch.inference_mode():
        teacher = teacher * 1
    assert torch.equal(method.step(student, teacher, label)[0], value)


@every_method
def test_the_weight_multiplies_the_whole(name, changes):
    weight = 4 * changes.get('loss_weight', MODELS.build({'type': name, **changes}).loss_weight)
    method, other = Method(name, changes), Method(name, {**changes, 'loss_weight': weight})
    student, teacher, label = method.maps()
    value, gradients = method.step(student, teacher, label)
    again, scaled = other.step(student, teacher, label)
    torch.testing.assert_close(again, 4 * value)
    for one, smaller in zip(scaled, gradients, strict=True):
        torch.testing.assert_close(one, 4 * smaller, rtol=1e-5, atol=1e-6 * smaller.abs().max().item())
    other.loss.loss_weight = 0.0  # as a schedule may set it
    nothing, gradients = other.step(student, teacher, label)
    assert nothing == 0
    assert not any(gradient.any() for gradient in gradients)


@every_method
def test_labels_are_asked_for_where_they_are_needed(name, changes):
    method = Method(name, changes)
    student, teacher, label = method.maps()
    if method.loss.needs_labels:
        with pytest.raises(ValueError, match='this loss needs labels, and the batch has none'):
            method(student, teacher)
    else:
        assert torch.equal(method(student, teacher), method(student, teacher, label))
        with pytest.raises(ValueError, match='this loss needs labels, and the batch has none'):
            Method(name, changes, mask_ignored=True)(student, teacher)


@every_method
def test_labels_teachers_and_masks_of_another_size_come_to_the_students(name, changes):
    method = Method(name, changes, mask_ignored=True)
    student, teacher, label = method.maps(2, 4, 6)
    mask = mask_of(label)
    expected = method(student, teacher, label, mask=mask)
    large = [x.repeat_interleave(3, 1).repeat_interleave(3, 2) for x in (label, mask)]
    coarse = torch.nn.functional.interpolate(student, (2, 3), mode='bilinear')
    assert torch.equal(method(student, teacher, large[0], mask=mask), expected)
    assert method(coarse, teacher, label, mask=large[1]).isfinite()


@every_method
def test_torchs_generator_is_left_alone(name, changes):
    """The student's dropout draws the numbers that it would draw without distillation."""
    method = Method(name, changes)
    student, teacher, label = method.maps()
    state = torch.get_rng_state()
    method.step(student, teacher, label)
    assert torch.equal(torch.get_rng_state(), state)


LIMITS = {
    'PairwiseLoss1': lambda images, size: 512 * size // 4,
    'CIRKDLoss': lambda images, size: images * min(1024, size // 4) ** 2,
    'CIRKDLoss1': lambda images, size: images * (size // 4) ** 2,
    'CIRKDMemoryLoss': lambda images, size: 4096 * QUEUES['pixel_keys'],
}
"""The elements that the docstrings allow for maps of H·W positions, beside some of the inputs' size."""
SIZES = [(case, 32, 64) for case in CASES]
SIZES += [(case, 64, 128) for case in CASES if case.id in ('PairwiseLoss1', 'CIRKDLoss', 'CIRKDMemoryLoss')]


@pytest.mark.parametrize('case, height, width', SIZES, ids=[f'{case.id}-{h}x{w}' for case, h, w in SIZES])
def test_no_operation_puts_out_much_more_than_the_inputs(case, height, width):
    """No (H·W)² similarities, above all."""
    images, size = 2, height * width
    method = Method(*case.values)
    student, teacher, label = method.maps(images, height, width)
    with LargestTemporary() as largest:
        method.step(student, teacher, label)
    limit = 2 * images * max(FEATURES) * size
    if case.id in LIMITS:
        limit = max(limit, LIMITS[case.id](images, size))
    assert size <= largest.elements <= limit < images * size**2 / 10


def balanced(name: str) -> bool:
    return issubclass(MODELS.get(name), BalancedLoss)


@pytest.mark.parametrize('name, changes', [p for p in CASES if balanced(p.values[0])])
def test_the_balanced_divergence_drops_in(name, changes):
    """The loss is α·F + β·R with F, R ≥ 0, and F alone at β = 0, whatever the reverse temperature."""
    changes = {key: value for key, value in changes.items() if key not in BOTH}

    def step(**weights):
        method = Method(name, {**changes, 'tau_reverse': 3.0, **weights}, mask_ignored=True)
        student, teacher, label = method.maps(dtype=torch.float64)
        return method.step(student, teacher, label, mask_of(label))

    published = step(forward_weight=1.0, reverse_weight=0.0)
    reverse = step(forward_weight=0.0, reverse_weight=1.0)
    assert published[0] > 1e-4 and reverse[0] > 1e-4
    both = step(forward_weight=0.6, reverse_weight=1.7)
    other_temperature = step(forward_weight=1.0, reverse_weight=0.0, tau_reverse=0.3)
    balanced = step(forward_weight=1.0, reverse_weight=1.0)
    assert balanced[0] > published[0]
    torch.testing.assert_close(both[0], 0.6 * published[0] + 1.7 * reverse[0])
    torch.testing.assert_close(balanced[0], published[0] + reverse[0])
    assert torch.equal(other_temperature[0], published[0])
    for found, forward, backward in zip(both[1], published[1], reverse[1], strict=True):
        torch.testing.assert_close(found, 0.6 * forward + 1.7 * backward, rtol=1e-5, atol=1e-7)
    if name != 'BDDLoss':  # which is the balanced one
        method = Method(name, changes)
        assert (method.loss.forward_weight, method.loss.reverse_weight) == (1.0, 0.0)
        assert method.loss.tau_reverse is None
        assert method.loss.temperatures == (method.loss.tau, method.loss.tau)


def test_the_methods_with_a_balance_slot():
    assert {name for name in METHODS if balanced(name)} == {
        'BDDLoss',
        'BPKDLoss',
        'CIRKDLoss',
        'CIRKDMemoryLoss',
        'CWDLoss',
        'DKDLoss',
        'KDLoss',
    }
