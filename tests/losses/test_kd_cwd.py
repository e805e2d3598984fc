"""KD and CWD are forward-only settings of the balanced divergence, with their authors' defaults."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS

from bdd_seg.losses import BDDLoss, CWDLoss, KDLoss


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(2, 5, 6, 8), torch.randn(2, 5, 6, 8)


def test_kd_is_the_kl_of_the_classes_of_each_pixel(logits):
    student, teacher = ((one / 2).permute(0, 2, 3, 1).reshape(-1, 5) for one in logits)
    expected = 4 * F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction='batchmean')
    loss = MODELS.build({'type': 'KDLoss', 'tau': 2.0})
    assert loss(*logits).item() == pytest.approx(expected.item(), rel=1e-5)
    assert (loss.loss_name, loss.loss_weight, KDLoss().tau_forward) == ('loss_kd', 1.0, 1.0)


def test_cwd_is_the_kl_of_the_positions_of_each_class(logits):
    student, teacher = ((one / 4).reshape(2 * 5, -1) for one in logits)
    expected = 3 * 16 * F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction='batchmean')
    loss = MODELS.build({'type': 'CWDLoss'})
    assert loss(*logits).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.loss_name == 'loss_cwd'


@pytest.mark.parametrize('method, domain', [(KDLoss, 'pixel'), (CWDLoss, 'channel')])
def test_the_balanced_divergence_drops_in(logits, method, domain):
    loss = method(tau=2.0, forward_weight=0.5, reverse_weight=7.0, tau_reverse=1.5, loss_weight=2.0)
    expected = BDDLoss(domain, 2.0, 1.5, 0.5, 7.0, loss_weight=2.0)
    assert torch.equal(loss(*logits), expected(*logits))
    assert method(tau=2.0).temperatures == (2.0, 2.0)
    label = torch.full((2, 6, 8), 255)
    assert method(mask_ignored=True)(*logits, label).item() == 0
    with pytest.raises(TypeError, match='tau_forward'):
        method(tau_forward=2.0)
