import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS

from bdd_seg.losses import FeatureMSELoss


def reference(loss, student, teacher, mask=None) -> float:
    """The definition, position by position in float64, at one resolution."""
    weight, bias = (p.detach().double().numpy() for p in loss.projection.parameters())
    student, teacher = student.detach().double().numpy(), teacher.double().numpy()
    images, _, height, width = student.shape
    errors = [
        np.mean((weight[:, :, 0, 0] @ student[n, :, y, x] + bias - teacher[n, :, y, x]) ** 2)
        for n in range(images)
        for y in range(height)
        for x in range(width)
        if mask is None or mask[n, y, x]
    ]
    return loss.loss_weight * float(np.mean(errors)) if errors else 0.0


@pytest.fixture
def case():
    """A loss, features of 5 and 7 channels, and which positions are known."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 6, 8), torch.randn(2, 7, 6, 8)
    return FeatureMSELoss(5, 7, loss_weight=3.0), student, teacher, torch.rand(2, 6, 8) < 0.4


def test_is_the_mean_over_channels_and_known_positions(case):
    loss, student, teacher, mask = case
    assert loss(student, teacher).item() == pytest.approx(reference(loss, student, teacher), rel=1e-6)
    masked = reference(loss, student, teacher, mask)
    assert loss(student, teacher, mask=mask).item() == pytest.approx(masked, rel=1e-6)
    assert masked != pytest.approx(reference(loss, student, teacher), rel=1e-3)
    everywhere = torch.ones_like(mask)
    assert loss(student, teacher, mask=everywhere).item() == pytest.approx(loss(student, teacher).item())
    assert loss(student, teacher, seg_label=torch.zeros(2, 48, 64)) == loss(student, teacher)


def test_memory_layout_does_not_matter(case):
    loss, student, teacher, mask = case
    wide = torch.randn(2, 5, 6, 16)
    wide[..., ::2] = student
    channels_last = teacher.to(memory_format=torch.channels_last)
    expected = loss(student, teacher, mask=mask).item()
    assert loss(wide[..., ::2], channels_last, mask=mask).item() == pytest.approx(expected, rel=1e-6)


def test_is_built_from_a_config():
    loss = MODELS.build({'type': 'FeatureMSELoss', 'student_channels': 2, 'teacher_channels': 3})
    assert (loss.loss_weight, loss.loss_name) == (1.0, 'loss_feature')
    assert {name: tuple(p.shape) for name, p in loss.named_parameters()} == {
        'projection.weight': (3, 2, 1, 1),
        'projection.bias': (3,),
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
        state = {'projection.weight': weight, 'projection.bias': bias}
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
    assert loss.projection.weight.grad.dtype == torch.float32


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
