import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from feature_cases import EXCLUDED, SHAPES, check_minimum, check_value, make_case
from mmseg.registry import MODELS

from bdd_seg.losses import FeatureLoss

DISTANCES = ['mse', 'cosine']


def reference(loss, student, teacher, mask=None) -> float:
    """The definition, position by position in float64, at one resolution."""
    weight, bias = (p.detach().double().numpy() for p in loss.adapter.parameters())
    student, teacher = student.detach().double().numpy(), teacher.double().numpy()
    images, _, height, width = student.shape
    distances = []
    for n in range(images):
        for y in range(height):
            for x in range(width):
                if mask is None or mask[n, y, x]:
                    s, t = weight[:, :, 0, 0] @ student[n, :, y, x] + bias, teacher[n, :, y, x]
                    cosine = np.sum(s * t) / math.sqrt(np.sum(s**2) * np.sum(t**2))
                    distances.append(np.mean((s - t) ** 2) if loss.distance == 'mse' else 1 - cosine)
    return loss.loss_weight * math.fsum(distances) / max(1, len(distances))


@pytest.fixture(params=DISTANCES)
def case(request):
    """A loss, features of 5 and 7 channels, and which positions are known."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, 8), torch.randn(2, 7, 6, 8)
    return FeatureLoss(5, 7, request.param, loss_weight=3.0), student, teacher, torch.rand(2, 6, 8) < 0.4


def test_is_the_mean_over_channels_and_known_positions(case):
    loss, student, teacher, mask = case
    assert loss(student, teacher).item() == pytest.approx(reference(loss, student, teacher), rel=1e-6)
    masked = reference(loss, student, teacher, mask)
    assert loss(student, teacher, mask=mask).item() == pytest.approx(masked, rel=1e-6)
    assert masked != pytest.approx(reference(loss, student, teacher), rel=1e-3)
    everywhere = torch.ones_like(mask)
    assert loss(student, teacher, mask=everywhere).item() == pytest.approx(loss(student, teacher).item())
    assert loss(student, teacher, seg_label=torch.zeros(2, 48, 64)) == loss(student, teacher)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('distance', DISTANCES)
def test_is_the_mean_distance(distance, shape, excluded):
    case = make_case(shape, excluded)
    loss = FeatureLoss(*shape[1:3], distance, loss_weight=2.0, **case.settings)
    check_value(loss, case, reference(loss, case.student, case.teacher, case.counts))


@pytest.mark.parametrize('distance, expected', [('mse', (9 + 1 + 4) / 3), ('cosine', 1 - 20 / 25)])
def test_by_hand(distance, expected):
    """Of (3, 4) the layer makes (3, 4, 0), and the teacher has (0, 5, 2) or (0, 5, 0)."""
    loss = FeatureLoss(2, 3, distance)
    with torch.no_grad():
        loss.adapter.weight.copy_(torch.eye(3, 2).view(3, 2, 1, 1))
        loss.adapter.bias.zero_()
    teacher = torch.tensor([0.0, 5.0, 2.0 if distance == 'mse' else 0.0])
    value = loss(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), teacher.view(1, 3, 1, 1))
    assert value.item() == pytest.approx(expected)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('distance', DISTANCES)
def test_is_least_where_the_layer_gives_the_teachers_features(distance, excluded):
    case = make_case(SHAPES[1], excluded)
    loss = FeatureLoss(*SHAPES[1][1:3], distance, **case.settings).double()
    target = loss.adapter(case.student).detach()
    check_minimum(loss, case, target)
    assert not any(weight.grad.abs().max() > 1e-10 for weight in loss.parameters())
    if distance == 'cosine':
        check_minimum(loss, case, 3 * target)


def test_the_cosine_distance_of_no_direction_is_one():
    loss = FeatureLoss(3, 2, 'cosine')
    student = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(student, torch.zeros(1, 2, 4, 4))
    value.backward()
    assert value.item() == 1
    assert not student.grad.any()


def test_memory_layout_does_not_matter(case):
    loss, student, teacher, mask = case
    wide = torch.randn(2, 5, 6, 16)
    wide[..., ::2] = student
    channels_last = teacher.to(memory_format=torch.channels_last)
    expected = loss(student, teacher, mask=mask).item()
    assert loss(wide[..., ::2], channels_last, mask=mask).item() == pytest.approx(expected, rel=1e-6)


def test_is_built_from_a_config():
    loss = MODELS.build({'type': 'FeatureLoss', 'student_channels': 2, 'teacher_channels': 3})
    assert (loss.loss_weight, loss.loss_name, loss.distance) == (1.0, 'loss_feature', 'mse')
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {
        'adapter.weight': (3, 2, 1, 1),
        'adapter.bias': (3,),
    }


@pytest.mark.parametrize('align_corners', [False, True])
def test_teacher_and_mask_are_resized_to_the_student(case, align_corners):
    loss, student, _, _ = case
    teacher = torch.randn(2, 7, 12, 16)
    known = torch.ones(2, 12, 16, dtype=torch.bool)
    known[0, 6:] = False
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0, 3:] = False
    resized = F.interpolate(teacher, (6, 8), mode='bilinear', align_corners=align_corners)
    result = loss(student, teacher, align_corners=align_corners, mask=known)
    assert result.item() == pytest.approx(reference(loss, student, resized, mask), rel=1e-6)


def test_gradient(case):
    loss, student, teacher, mask = case
    loss = loss.double()
    student = student[:, :, :3, :2].double().requires_grad_()
    teacher = teacher[:, :, :3, :2].double().requires_grad_()
    mask = mask[:, :3, :2]

    def with_weights(student, weight, bias):
        state = {'adapter.weight': weight, 'adapter.bias': bias}
        return torch.func.functional_call(loss, state, (student, teacher), {'mask': mask})

    assert torch.autograd.gradcheck(with_weights, (student, *loss.parameters()))
    loss(student, teacher, mask=mask).backward()
    assert student.grad.abs().sum() > 0
    assert torch.equal(student.grad.abs().sum(1) == 0, ~mask)
    assert teacher.grad is None


def test_what_is_unknown_may_be_anything(case):
    loss, student, teacher, mask = case
    student.requires_grad_()
    expected = loss(student, teacher, mask=mask)
    result = loss(student, teacher.masked_fill(~mask[:, None], torch.nan), mask=mask)
    assert torch.equal(result, expected)
    result.backward()
    assert student.grad.isfinite().all()


def test_nothing_known_gives_zero_and_a_gradient_of_zeros(case):
    loss, student, teacher, mask = case
    result = loss(student, teacher, mask=torch.zeros_like(mask))
    result.backward()  # DDP waits for the gradients of all its parameters
    assert result.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in loss.parameters())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_computes_in_float32(case, dtype):
    loss, student, teacher, mask = case
    student, teacher = (100 + student).to(dtype).requires_grad_(), teacher.to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        result = loss(student, teacher, mask=mask)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(reference(loss, student, teacher, mask), rel=1e-5)
    result.backward()
    assert student.grad.dtype == dtype
    assert loss.adapter.weight.grad.dtype == torch.float32


def test_wrong_shapes_are_named(case):
    loss, student, teacher, _ = case
    with pytest.raises(ValueError, match=r'student must be .*\(2, 5, H, W\) with student_channels=5, got'):
        loss(teacher, teacher)
    with pytest.raises(ValueError, match=r'teacher_channels=7, got \(2, 5, 6, 8\)'):
        loss(student, student)
    with pytest.raises(
        ValueError, match=r'teacher must be \(N, C, H, W\) with N = 2, got shape \(1, 7, 6, 8\)'
    ):
        loss(student, teacher[:1])
    with pytest.raises(ValueError, match=r'student must be \(N, C, H, W\).*got shape \(2, 5\)'):
        loss(student[:, :, 0, 0], teacher)


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"distance must be one of \['cosine', 'mse'\], got 'l1'"):
        FeatureLoss(2, 3, 'l1')
    with pytest.raises(ValueError, match='give both student_channels and teacher_channels, or neither'):
        FeatureLoss(2)
    with pytest.raises(ValueError, match='give student_channels and teacher_channels, or let a SegDistiller'):
        FeatureLoss()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3))


def test_layers_may_be_made_later():
    loss = FeatureLoss()
    assert not [*loss.parameters()]
    loss.adapt(2, 3)
    assert loss.adapter.weight.shape == (3, 2, 1, 1)
    assert loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3)).isfinite()
