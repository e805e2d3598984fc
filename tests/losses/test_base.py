import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from bdd_seg.losses import DistillLoss
from bdd_seg.losses.base import align


class Recorder(DistillLoss):
    """A method that keeps the pair it is given."""

    def compare(self, pair):
        self.pair = pair
        self.autocast = torch.is_autocast_enabled('cpu')
        return (pair.student - pair.teacher).square().mean()


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
    expected = (student - teacher).square().mean()
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
