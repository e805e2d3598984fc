import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from bdd_seg.losses import DistillLoss, Pair
from bdd_seg.losses.base import run_in_float32
from bdd_seg.losses.pair import align, unit


class Recorder(DistillLoss):
    """A method that keeps the pair it is given."""

    def compare(self, pair):
        self.pair = pair
        self.autocast = torch.is_autocast_enabled('cpu')
        return pair.mean((pair.student.sum(1) - pair.teacher.sum(1)).square())


class AnyChannels(Recorder):
    channels = 'any'


class OwnLayers(Recorder):
    channels = 'adapted'

    def adapt(self, student_channels, teacher_channels):
        super().adapt(student_channels, teacher_channels)
        self.adapter = nn.Conv2d(student_channels, teacher_channels, 1, bias=True)


class ByClass(Recorder):
    needs_labels = True


def test_maps_labels_and_mask_come_to_the_students_grid():
    student = torch.randn(2, 3, 4, 6, requires_grad=True)
    teacher = torch.randn(2, 5, 8, 3, requires_grad=True)
    label = torch.arange(2 * 8 * 12).view(2, 8, 12)
    mask = torch.zeros(2, 8, 3, dtype=torch.bool)
    mask[:, ::4, 1] = True
    for align_corners in (False, True):
        pair = align(student, teacher, label, align_corners, mask)
        assert pair.student is student
        expected = F.interpolate(teacher, (4, 6), mode='bilinear', align_corners=align_corners)
        assert torch.equal(pair.teacher, torch.where(pair.mask[:, None], expected, 0))
        assert torch.equal(align(student, teacher, None, align_corners).teacher, expected)
        assert not pair.teacher.requires_grad
        assert torch.equal(pair.label, label[:, ::2, ::2])
        expected = torch.zeros(2, 4, 6, dtype=torch.bool)
        expected[:, ::2, 2:4] = True
        assert torch.equal(pair.mask, expected)


def test_what_is_on_the_grid_is_not_copied():
    student, teacher = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    label, mask = torch.zeros(2, 4, 6, dtype=torch.long), torch.ones(2, 4, 6, dtype=torch.bool)
    assert align(student, teacher).teacher.data_ptr() == teacher.data_ptr()
    pair = align(student, teacher, label, mask=mask)
    assert pair.label is label and pair.mask is mask


@pytest.mark.parametrize(
    'dtype, expected',
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_methods_compute_in_float32_or_more(dtype, expected):
    loss = Recorder()
    student = torch.randn(1, 2, 3, 3).to(dtype).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(student, torch.randn(1, 2, 3, 3).to(dtype))
    assert (loss.pair.student.dtype, loss.pair.teacher.dtype, value.dtype) == (expected,) * 3
    assert not loss.autocast
    value.backward()
    assert student.grad.dtype == dtype


def test_the_weight_multiplies_the_whole_and_may_change():
    student, teacher = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    loss = Recorder(loss_weight=4)
    expected = (student.sum(1) - teacher.sum(1)).square().mean()
    assert torch.equal(loss(student, teacher), 4 * expected)
    loss.loss_weight = 0.5
    assert torch.equal(loss(student, teacher), 0.5 * expected)


def test_ignored_labels_and_unknown_answers_make_one_mask():
    label = torch.tensor([[[0, 255], [1, 7]]])
    mask = torch.tensor([[[True, True], [False, True]]])
    maps = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    for ignored, given, expected in (
        (False, None, None),
        (False, mask, [[True, True], [False, True]]),
        (True, None, [[True, False], [True, True]]),
        (True, mask, [[True, False], [False, True]]),
    ):
        loss = Recorder(mask_ignored=ignored)
        loss(*maps, label, mask=given)
        assert (None if loss.pair.mask is None else loss.pair.mask[0].tolist()) == expected
    loss = Recorder(mask_ignored=True, ignore_index=7)
    loss(*maps, label)
    assert loss.pair.mask[0].tolist() == [[True, True], [True, False]]


def test_the_mean_is_over_positions_that_count():
    values = torch.tensor([[[1.0, 2.0], [torch.nan, 6.0]]], requires_grad=True)
    maps = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert align(*maps).mean(values[:, :1]).item() == 1.5
    mask = torch.tensor([[[True, False], [False, True]]])
    value = align(*maps, mask=mask).mean(values)
    value.backward()
    assert value.item() == 3.5
    assert values.grad.tolist() == [[[0.5, 0], [0, 0.5]]]
    nothing = align(*maps, mask=torch.zeros(1, 2, 2, dtype=torch.bool)).mean(values)
    assert nothing.item() == 0 and nothing.requires_grad


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({'loss_weight': 'abc'}, "loss_weight must be a number, got 'abc'"),
        ({'loss_weight': None}, 'loss_weight must be a number, got None'),
        ({'loss_name': 'distance'}, "a name that contains 'loss', got 'distance'"),
        ({'loss_name': 3}, "a name that contains 'loss', got 3"),
    ],
)
def test_settings_are_checked_for_every_method(settings, expected):
    with pytest.raises(ValueError, match=expected):
        Recorder(**settings)


def test_a_method_must_compare():
    class Incomplete(DistillLoss):
        pass

    with pytest.raises(TypeError, match='compare'):
        Incomplete()


def test_maps_that_cannot_be_aligned():
    with pytest.raises(
        ValueError, match=r'teacher must be \(N, C, H, W\) with N = 2, got shape \(3, 1, 2, 2'
    ):
        Recorder()(torch.zeros(2, 1, 2, 2), torch.zeros(3, 1, 2, 2))
    with pytest.raises(ValueError, match=r'student must be .* got shape \(2, 4\)'):
        Recorder()(torch.zeros(2, 4), torch.zeros(2, 1, 2, 2))


@pytest.mark.parametrize('late', [False, True])
def test_a_convolution_adapts_the_students_channels(late):
    student, teacher = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randn(2, 7, 4, 5)
    loss = Recorder() if late else Recorder(student_channels=3, teacher_channels=7)
    if late:
        loss.adapt(3, 7)
    assert (loss.student_channels, loss.teacher_channels) == (3, 7)
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {'adapter.weight': (7, 3, 1, 1)}
    loss(student, teacher).backward()
    expected = torch.einsum('nshw,ts->nthw', student, loss.adapter.weight[:, :, 0, 0])
    torch.testing.assert_close(loss.pair.student, expected)
    assert torch.equal(loss.pair.teacher, teacher)
    assert loss.adapter.weight.grad.abs().min() > 0 and student.grad.abs().min() > 0


def test_equal_channels_need_no_layer():
    for loss in (Recorder(), Recorder(student_channels=3, teacher_channels=3)):
        assert isinstance(loss.adapter, nn.Identity) and not [*loss.parameters()]
        student = torch.randn(2, 3, 4, 5)
        loss(student, torch.randn(2, 3, 4, 5))
        assert loss.pair.student is student


def test_the_numbers_of_channels_that_a_method_takes():
    five, seven = torch.zeros(1, 5, 2, 2), torch.zeros(1, 7, 2, 2)
    with pytest.raises(
        ValueError,
        match='same channels, which for logits are the classes; got 5 and 7. For features give '
        'student_channels and teacher_channels',
    ):
        Recorder()(five, seven)
    for loss in (AnyChannels(), AnyChannels(student_channels=5, teacher_channels=7)):
        assert loss(five, seven) == 0 and not [*loss.parameters()]
        assert loss.pair.student is five
    with pytest.raises(ValueError, match='give student_channels and teacher_channels, or let a SegDistiller'):
        OwnLayers()(five, five)
    loss = OwnLayers(student_channels=5, teacher_channels=7)
    loss(five, seven)  # it applies its layers itself
    assert loss.pair.student is five


@pytest.mark.parametrize('method', [Recorder, AnyChannels, OwnLayers])
def test_other_channels_than_expected_are_named(method):
    five, seven = torch.zeros(1, 5, 2, 2), torch.zeros(1, 7, 3, 3)
    loss = method(student_channels=5, teacher_channels=7)
    with pytest.raises(
        ValueError,
        match=r'student must be \(N, C, H, W\) = \(1, 5, H, W\) with student_channels=5, got \(1, 7, 3, 3\)',
    ):
        loss(seven, seven)
    with pytest.raises(ValueError, match=r'teacher must be .* teacher_channels=7, got \(1, 5, 2, 2\)'):
        loss(five, five)
    for given in ('student_channels', 'teacher_channels'):
        with pytest.raises(ValueError, match='give both student_channels and teacher_channels, or neither'):
            method(**{given: 5})


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_the_adapter_computes_in_float32(dtype):
    """The dtype of its weights and autocast do not matter."""
    loss = Recorder(student_channels=5, teacher_channels=7).to(dtype)
    student = (100 + torch.randn(2, 5, 3, 3)).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype):
        value = loss(student, torch.zeros(2, 7, 3, 3).to(dtype))
    expected = F.conv2d(student.float(), loss.adapter.weight.float())
    assert loss.pair.student.dtype == torch.float32
    torch.testing.assert_close(loss.pair.student, expected)
    value.backward()
    assert loss.adapter.weight.grad.dtype == student.grad.dtype == dtype


def test_a_method_that_compares_by_class_needs_labels():
    maps = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    label = torch.tensor([[[0, 255], [9, 1]]])
    loss = ByClass()
    assert not loss.mask_ignored
    loss(*maps, label)
    assert loss.pair.mask[0].tolist() == [[True, False], [True, True]]
    loss(*maps, label, mask=torch.tensor([[[True, True], [True, False]]]))
    assert loss.pair.mask[0].tolist() == [[True, False], [True, False]]
    loss = ByClass(ignore_index=9)
    loss(*maps, label)
    assert loss.pair.mask[0].tolist() == [[True, True], [False, True]]
    assert torch.equal(loss.pair.label, label)
    for loss in (ByClass(), Recorder(mask_ignored=True)):
        with pytest.raises(ValueError, match=r'needs labels, and the batch has none \(seg_label\)'):
            loss(*maps)


def test_a_zeroed_pair():
    student = torch.arange(1.0, 9).view(1, 2, 2, 2).requires_grad_()
    teacher = torch.full((1, 3, 2, 2), torch.nan)
    mask = torch.tensor([[[True, False], [False, True]]])
    pair = Pair(student, teacher, mask[:, 0].long(), mask).zeroed()
    assert pair.student.tolist() == [[[[1, 0], [0, 4]], [[5, 0], [0, 8]]]]
    assert torch.equal(pair.teacher.isnan(), mask[:, None].expand(1, 3, 2, 2))
    assert (pair.teacher[0, :, 0, 1] == 0).all() and pair.mask is mask
    pair.student.sum().backward()
    assert student.grad.tolist() == [[[[1, 0], [0, 1]]] * 2]
    unmasked = Pair(student, teacher)
    assert unmasked.zeroed() is unmasked


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_unit_vectors(dtype):
    vectors = torch.tensor([[3.0, 4.0], [0.0, -1e-6], [1e9, 1e9]], dtype=dtype)
    half = 0.5**0.5
    expected = torch.tensor([[0.6, 0.8], [0.0, -1.0], [half, half]], dtype=dtype)
    torch.testing.assert_close(unit(vectors, 1), expected)
    torch.testing.assert_close(unit(vectors.T, 0), expected.T)


def test_unit_vectors_have_the_gradient_of_directions():
    """It is orthogonal to the vector, 1/norm as long; vectors without a direction have none."""
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-9, 4e-9], [6e-8, 8e-8]], dtype=torch.float64)
    vectors.requires_grad_()
    values = unit(vectors, 1)
    values[:, 0].sum().backward()
    expected = [[0.16 * 4 / 5, -0.16 * 3 / 5], [0, 0], [0, 0], [0.128 / 2e-8, -0.096 / 2e-8]]
    assert values[1:3].tolist() == [[0, 0], [0, 0]]
    torch.testing.assert_close(vectors.grad, torch.tensor(expected, dtype=torch.float64))
    some = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unit(x, 1), some)


@pytest.mark.parametrize('weights', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('features', [torch.float32, torch.float64])
def test_layers_run_in_float32_or_more(weights, features):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    module.to(weights)
    x = torch.randn(5, 3).to(features).requires_grad_()
    result = run_in_float32(module, x)
    wide = torch.promote_types(torch.float32, torch.promote_types(weights, features))
    assert result.dtype == wide
    exact = [parameter.detach().double() for parameter in module.parameters()]
    hidden = F.linear(x.detach().double(), exact[0], exact[1])
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt() * exact[2] + exact[3]
    expected = F.linear(hidden, exact[4], exact[5])
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)
    result.sum().backward()
    assert x.grad.dtype == features
    assert all(p.grad.dtype == weights for p in module.parameters())
