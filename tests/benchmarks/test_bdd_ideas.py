"""benchmarks/studies/bdd_ideas: balances of BDD by class, against loops in float64."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from bdd_seg.losses import BDDLoss
from benchmarks.studies.bdd_ideas.balances import AdaptiveBDDLoss, PresentBDDLoss


def maps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (2, 3, 2, 4) of a student and a teacher."""
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(2, 3, 2, 4)), 3 * rng.normal(size=(2, 3, 2, 4))


def terms(student: np.ndarray, teacher: np.ndarray, tau_f: float, tau_r: float) -> list[tuple]:
    """Return P, Q, FKL and RKL of every image and class, in their order."""
    found = []
    for z_s, z_t in zip(student.reshape(6, 8), teacher.reshape(6, 8), strict=True):
        p, q = softmax(z_t / tau_f), softmax(z_s / tau_f)
        p_r, q_r = softmax(z_t / tau_r), softmax(z_s / tau_r)
        forward = tau_f**2 * sum(p * np.log(p / q))
        found.append((p, q, forward, tau_r**2 * sum(q_r * np.log(q_r / p_r))))
    return found


def test_adaptive_factors_are_the_gaps_of_head_and_tail():
    student, teacher = maps()
    expected = 0.0
    for p, q, forward, reverse in terms(student, teacher, 2.0, 1.0):
        head, total = set(), 0.0
        for place in np.argsort(-p):
            if total < 0.5:
                head.add(int(place))
            total += p[place]
        gap_head = sum(abs(p[i] - q[i]) for i in head)
        gap_tail = sum(abs(p[i] - q[i]) for i in range(8) if i not in head)
        share = gap_head / (gap_head + gap_tail)
        expected += 2 * share * 0.7 * forward + 2 * (1 - share) * 1.5 * reverse
    loss = AdaptiveBDDLoss(tau_forward=2.0, tau_reverse=1.0, forward_weight=0.7, reverse_weight=1.5)
    value = loss(torch.tensor(student), torch.tensor(teacher), align_corners=False)
    assert value.item() == pytest.approx(loss.loss_weight * expected / 6, rel=1e-9)


def test_a_class_counts_as_much_as_the_teacher_is_sure_of_it():
    student, teacher = maps(1)
    sure = []
    for image in teacher:
        of_pixels = [softmax(image[:, y, x]) for y in range(2) for x in range(4)]
        sure += [max(pixel[c] for pixel in of_pixels) for c in range(3)]
    divergences = [forward + reverse for *_, forward, reverse in terms(student, teacher, 1.0, 1.0)]
    expected = sum(s * d for s, d in zip(sure, divergences, strict=True)) / sum(sure)
    loss = PresentBDDLoss(loss_weight=1.0)
    value = loss(torch.tensor(student), torch.tensor(teacher), align_corners=False)
    assert value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('kind', [AdaptiveBDDLoss, PresentBDDLoss])
def test_equal_maps_have_no_loss_and_no_gradient(kind):
    teacher = torch.tensor(maps()[1])
    student = teacher.clone().requires_grad_()
    value = kind()(student, teacher, align_corners=False)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12) and student.grad.abs().max() < 1e-12


def test_equal_factors_are_bdd():
    class Equal(PresentBDDLoss):
        def weights(self, pair):
            return 1.0, 1.0

    student, teacher = (torch.tensor(side) for side in maps(2))
    settings = {'tau_forward': 2.0, 'tau_reverse': 4.0, 'reverse_weight': 0.3}
    found = Equal(**settings)(student, teacher, align_corners=False)
    expected = BDDLoss(**settings)(student, teacher, align_corners=False)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
