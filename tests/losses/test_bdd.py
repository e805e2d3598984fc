import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS

from bdd_seg.losses import BDDLoss, balance_divergence


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(2, 5, 6, 8), torch.randn(2, 5, 6, 8)


def test_is_the_weighted_divergence(logits):
    loss = MODELS.build(
        {
            'type': 'BDDLoss',
            'domain': 'pixel',
            'tau_forward': 2.0,
            'tau_reverse': 3.0,
            'forward_weight': 0.5,
            'reverse_weight': 0.25,
            'loss_weight': 7.0,
        }
    )
    expected = 7 * balance_divergence(
        *logits, domain='pixel', tau_forward=2.0, tau_reverse=3.0, forward_weight=0.5, reverse_weight=0.25
    )
    assert torch.equal(loss(*logits), expected)
    assert torch.equal(BDDLoss()(*logits), 3 * balance_divergence(*logits))


@pytest.mark.parametrize('align_corners', [False, True])
def test_teacher_is_resized_to_the_student(logits, align_corners):
    student, _ = logits
    teacher = torch.randn(2, 5, 11, 3)
    resized = F.interpolate(teacher, (6, 8), mode='bilinear', align_corners=align_corners)
    assert torch.equal(BDDLoss()(student, teacher, align_corners=align_corners), BDDLoss()(student, resized))


def test_ignored_labels_are_left_out(logits):
    student, teacher = logits
    seg_label = torch.randint(0, 5, (2, 24, 32))
    seg_label[0, :12] = 255
    seg_label[1, :, 16:] = 255
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0, :3] = False
    mask[1, :, 4:] = False
    masked = BDDLoss(mask_ignored=True)
    assert torch.equal(
        masked(student, teacher, seg_label), 3 * balance_divergence(student, teacher, mask=mask)
    )
    assert torch.equal(BDDLoss()(student, teacher, seg_label), 3 * balance_divergence(student, teacher))
    other = BDDLoss(mask_ignored=True, ignore_index=9)
    assert torch.equal(other(student, teacher, seg_label), BDDLoss()(student, teacher))
    assert masked(student, teacher, torch.full((2, 24, 32), 255)).item() == 0


def test_unknown_answers_are_left_out(logits):
    student, _ = logits
    teacher = torch.randn(2, 5, 12, 16)
    known = torch.ones(2, 12, 16, dtype=torch.bool)
    known[0, 6:] = False
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0, 3:] = False
    resized = F.interpolate(teacher, (6, 8), mode='bilinear')
    expected = 3 * balance_divergence(student, resized, mask=mask)
    assert torch.equal(BDDLoss()(student, teacher, mask=known), expected)
    assert not torch.equal(BDDLoss()(student, teacher), expected)
    seg_label = torch.zeros(2, 6, 8, dtype=torch.long)
    seg_label[1, :, 4:] = 255
    mask[1, :, 4:] = False
    both = BDDLoss(mask_ignored=True)(student, teacher, seg_label, mask=known)
    assert torch.equal(both, 3 * balance_divergence(student, resized, mask=mask))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize('autocast', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('domain', ['pixel', 'channel'])
@pytest.mark.parametrize('tau', [0.1, 1.0, 20.0])
def test_nothing_overflows_at_the_largest_logits(dtype, autocast, domain, tau):
    """Student and teacher contradict each other as much as float16 allows; the closed form is known."""
    large = torch.tensor(6e4).to(dtype)  # 59904 in bfloat16
    teacher = torch.stack([large, -large]).view((1, 2, 1, 1) if domain == 'pixel' else (1, 1, 1, 2))
    teacher = teacher.repeat((1, 1, 1, 4) if domain == 'pixel' else (1, 4, 1, 1))  # 4 distributions
    student, undecided = (-teacher).requires_grad_(), torch.zeros_like(teacher).requires_grad_()
    loss = BDDLoss(domain, tau_forward=tau, tau_reverse=tau)
    with torch.autocast('cpu', autocast):
        opposite, uniform = loss(student, teacher), loss(undecided, teacher)
    assert opposite.item() == pytest.approx(3 * 2 * tau * 2 * large.item(), rel=1e-6)
    assert uniform.item() == pytest.approx(3 * tau * large.item(), rel=1e-6)
    opposite.backward()
    uniform.backward()
    slope = 3 * (-tau * teacher.float().sign()) / 4
    torch.testing.assert_close(student.grad, slope.to(dtype))
    slope = 3 * (-tau / 2 * teacher.float().sign() - teacher.float() / 2) / 4
    torch.testing.assert_close(undecided.grad, slope.to(dtype))


def test_wrong_settings():
    with pytest.raises(ValueError, match='domain must be one of'):
        BDDLoss(domain='space')
    with pytest.raises(ValueError, match='tau_reverse must be a positive number'):
        BDDLoss(tau_reverse=0)
    with pytest.raises(ValueError, match='needs labels'):
        BDDLoss(mask_ignored=True)(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))
    with pytest.raises(ValueError, match='same channels, which for logits are the classes; got 2 and 3'):
        BDDLoss()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 6, 6))


@pytest.mark.parametrize(
    'settings',
    [
        {'type': 'BDDLoss', 'domain': 'pixel'},
        {'type': 'KDLoss'},
        {'type': 'DKDLoss'},
        {'type': 'BPKDLoss'},
        {'type': 'DISTLoss'},
        {'type': 'AlphaBetaLoss'},
    ],
)
def test_one_channel_is_a_distribution_over_two_classes(settings):
    """A binary head with a sigmoid: p = (1 − sigmoid(z), sigmoid(z)), as from a softmax of (0, z)."""
    maps, label = torch.randn(2, 1, 4, 5, dtype=torch.float64), torch.randint(0, 2, (2, 4, 5))
    student, teacher = maps.clone().requires_grad_(), maps.flip(0) * 2
    value = MODELS.build(settings)(student, teacher, label)
    twice = [torch.cat([torch.zeros_like(z), z], 1) for z in (maps, teacher)]
    torch.testing.assert_close(value, MODELS.build(settings)(*twice, label))
    value.backward()
    assert value > 0.01 and student.grad.abs().max() > 0
    assert MODELS.build({'type': 'BDDLoss'})(maps, -maps, label) > 0  # over the positions it is one channel


def test_binary_kd_is_the_divergence_of_two_sigmoids():
    student, teacher = torch.randn(2, 3, 1, 4, 5, dtype=torch.float64)
    p, q = teacher.sigmoid(), student.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(MODELS.build({'type': 'KDLoss'})(student, teacher), expected)
