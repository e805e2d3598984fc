"""BPKD's edges against brute force, and both its terms against their definition in Python loops."""

from itertools import product

import pytest
import torch
from mmseg.registry import MODELS
from references import BALANCES, SHAPES, balance, draw, mean, positions
from torch.autograd import gradcheck

from bdd_seg.losses import BPKDLoss
from bdd_seg.losses.bpkd import edges


def edge_places(label, mask, radius) -> set[tuple[int, int, int]]:
    """Return the positions beside which, in a square, one of another class lies."""
    places = positions(label, mask)
    return {
        (n, y, x)
        for n, y, x in places
        if any(
            image == n and abs(y - v) <= radius and abs(x - u) <= radius and label[n, v, u] != label[n, y, x]
            for image, v, u in places
        )
    }


def blobs(shape, seed, classes=3, ignored=0.1):
    """Return labels (N, H, W) in patches of 3×3, a few of them ignored, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    images, height, width = shape
    coarse = torch.randint(classes, (images, -(-height // 3), -(-width // 3)), generator=generator)
    label = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, :height, :width].contiguous()
    label[torch.rand(shape, generator=generator) < ignored] = 255
    return label, torch.rand(shape, generator=generator) < 0.85


@pytest.mark.parametrize('radius', [1, 2, 3])
@pytest.mark.parametrize('shape', [(2, 7, 9), (1, 8, 6), (3, 1, 5), (2, 1, 1)])
@pytest.mark.parametrize('masked', [False, True])
def test_edges_are_those_of_brute_force(shape, radius, masked):
    for seed in range(3):
        label, mask = blobs(shape, seed)
        counts = (label != 255) & (mask if masked else True)
        found = {tuple(place) for place in edges(label, counts, radius).nonzero().tolist()}
        assert found == edge_places(label, mask if masked else None, radius)


def test_edges_of_a_small_map():
    label = torch.tensor([[[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 255, 0, 0], [0, 0, 255, 200, 0]]])
    found = edges(label, label != 255, 1)[0].int().tolist()
    assert found == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert not edges(torch.full((1, 3, 3), 4), torch.ones(1, 3, 3, dtype=torch.bool), 5).any()


def reference(student, teacher, label, mask, radius, settings) -> tuple[float, float]:
    """Return the term of the edges and that of the bodies."""
    edge = edge_places(label, mask, radius)
    images, classes = student.shape[:2]
    at_edges = [
        balance(student[n, :, y, x].tolist(), teacher[n, :, y, x].tolist(), **settings) for n, y, x in edge
    ]
    bodies = []
    for image, k in product(range(images), range(classes)):
        body = [
            (y, x)
            for n, y, x in positions(label, mask)
            if n == image and label[n, y, x] == k and (n, y, x) not in edge
        ]
        if body:
            values = ([logits[image, k, y, x].item() for y, x in body] for logits in (student, teacher))
            bodies.append(balance(*values, **settings))
    return mean(at_edges), mean(bodies)


@pytest.mark.parametrize('settings', BALANCES)
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', [(2, 4, 7, 9), (1, 3, 8, 6), (3, 3, 5, 11)])
def test_is_the_definition(shape, masked, settings):
    student, teacher, _, _ = draw(shape, 1)
    label, mask = blobs((shape[0], *shape[2:]), 2)
    mask = mask if masked else None
    for radius in (1, 2):
        edge, body = reference(student, teacher, label, mask, radius, settings)
        assert edge > 0
        for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, 5.0)):
            loss = BPKDLoss(edge_weight=weights[0], body_weight=weights[1], edge_radius=radius, **settings)
            value = loss(student, teacher, label, mask=mask)
            assert value.item() == pytest.approx(weights[0] * edge + weights[1] * body, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_labels_without_any_order(shape, masked):
    """Nearly everything is an edge then."""
    student, teacher, label, mask = draw(shape, 3, masked)
    edge, body = reference(student, teacher, label, mask, 1, {})
    value = BPKDLoss()(student, teacher, label, mask=mask)
    assert value.item() == pytest.approx(edge + body, rel=1e-10)


def test_classes_that_the_logits_lack_have_edges_and_no_body():
    student, teacher, _, _ = draw((1, 2, 6, 6), 4)
    label = torch.zeros(1, 6, 6, dtype=torch.long)
    label[..., 3:] = 7
    edge, body = reference(student, teacher, label, None, 1, {})
    assert BPKDLoss()(student, teacher, label).item() == pytest.approx(edge + body, rel=1e-10)
    student.requires_grad_()
    BPKDLoss()(student, teacher, label).backward()
    assert student.grad[..., :4].abs().sum((0, 1, 2)).min() > 0
    assert not student.grad[..., 4:].any()  # the body of class 7
    assert not student.grad[:, 1, :, :2].any()  # class 1 in the body of class 0


@pytest.mark.parametrize('masked', [False, True])
def test_gradient_is_autograds_of_the_selected_logits(masked):
    student, teacher, _, _ = draw((2, 3, 6, 7), 5)
    label, mask = blobs((2, 6, 7), 6, ignored=0.05)
    mask = mask if masked else None
    edge = sorted(edge_places(label, mask, 1))
    bodies = {}
    for n, y, x in set(positions(label, mask)) - set(edge):
        bodies.setdefault((n, int(label[n, y, x])), []).append((y, x))
    leaf = student.clone().requires_grad_()

    def selected(logits):
        yield [logits[n, :, y, x] for n, y, x in edge]
        yield [torch.stack([logits[n, k, y, x] for y, x in body]) for (n, k), body in bodies.items()]

    total = 0
    for weight, q, p in zip((0.3, 5.0), selected(leaf), selected(teacher), strict=True):
        for tau, scale, forward in ((2.0, 0.6, True), (0.7, 1.7, False)):
            for s, t in zip(q, p, strict=True):
                a, b = ((t / tau), (s / tau)) if forward else ((s / tau), (t / tau))
                divergence = (a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))).sum()
                total = total + weight * scale * tau**2 * divergence / len(q)
    (2.5 * total).backward()
    assert len(edge) > 5 and len(bodies) > 1
    loss = BPKDLoss(2.0, 0.3, 5.0, forward_weight=0.6, reverse_weight=1.7, tau_reverse=0.7)
    (2.5 * loss(student.requires_grad_(), teacher, label, mask=mask)).backward()
    torch.testing.assert_close(student.grad, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('masked', [False, True])
def test_gradcheck(masked):
    student, teacher, _, _ = draw((2, 3, 4, 5), 7)
    label, mask = blobs((2, 4, 5), 8)
    loss = BPKDLoss(1.5, 0.3, 5.0, reverse_weight=1.0, tau_reverse=0.8)
    assert gradcheck(
        lambda s: loss(s, teacher, label, mask=mask if masked else None), student.requires_grad_()
    )


def test_a_map_of_one_class_is_a_body_alone():
    student, teacher, _, _ = draw((2, 4, 5, 6), 9)
    label = torch.full((2, 5, 6), 2)
    values = [
        balance(student[n, 2].flatten().tolist(), teacher[n, 2].flatten().tolist(), tau=2.0) for n in (0, 1)
    ]
    assert BPKDLoss(2.0)(student, teacher, label).item() == pytest.approx(mean(values), rel=1e-10)
    assert BPKDLoss(2.0, body_weight=0.0)(student, teacher, label).item() == 0


def test_settings():
    loss = MODELS.build({'type': 'BPKDLoss'})
    assert (loss.tau, loss.edge_weight, loss.body_weight, loss.edge_radius) == (1.0, 1.0, 1.0, 1)
    assert (loss.loss_weight, loss.loss_name, loss.reverse_weight) == (1.0, 'loss_bpkd', 0.0)
    for radius in (0, -1, 1.5):
        with pytest.raises(ValueError, match='edge_radius must be a whole number from 1 on'):
            BPKDLoss(edge_radius=radius)
    with pytest.raises(ValueError, match='needs labels'):
        BPKDLoss()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))


@pytest.mark.parametrize('setting', ['edge_weight', 'body_weight'])
def test_weights_are_numbers(setting):
    with pytest.raises(ValueError, match=f"{setting} must be a number, got 'a'"):
        BPKDLoss(**{setting: 'a'})
