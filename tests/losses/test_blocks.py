import copy
import weakref

import pytest
import torch

from bdd_seg.losses import FeatureLoss, IFVDLoss, MGDLoss
from bdd_seg.losses.blocks import image_by_image, sum_over_blocks


def cubes(x: torch.Tensor, block: slice) -> torch.Tensor:
    return x[block].pow(3).sum()


@pytest.fixture
def x():
    return torch.arange(1.0, 8.0, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('size', [1, 2, 3, 7, 100])
def test_is_the_sum_with_its_gradient(x, size):
    value = sum_over_blocks(cubes, x, [slice(i, i + size) for i in range(0, 7, size)])
    assert value.item() == 784 and value.dtype == torch.float64
    (2.5 * value).backward()
    assert x.grad.tolist() == [7.5 * i**2 for i in range(1, 8)]


def test_blocks_may_overlap_and_be_an_iterator(x):
    value = sum_over_blocks(cubes, x, iter([slice(0, 3), slice(2, 4), slice(2, 3)]))
    assert value.item() == 1 + 8 + 3 * 27 + 64
    value.backward()
    assert x.grad.tolist() == [3, 12, 81, 48, 0, 0, 0]


def test_x_may_come_out_of_a_graph(x):
    sum_over_blocks(cubes, 2 * x, [slice(0, 1), slice(6, 7)]).backward()
    assert x.grad.tolist() == [24, 0, 0, 0, 0, 0, 24 * 49]


def test_without_blocks_it_is_zero_with_a_gradient(x):
    value = sum_over_blocks(cubes, x, [])
    value.backward()
    assert value.item() == 0
    assert x.grad.tolist() == [0] * 7


def test_passes_back_twice(x):
    value = sum_over_blocks(cubes, x, [slice(0, 7)])
    for times in (1, 2):
        value.backward(retain_graph=True)
        assert x.grad.tolist() == [times * 3 * i**2 for i in range(1, 8)]


def test_does_not_give_a_wrong_second_derivative(x):
    value = sum_over_blocks(cubes, x, [slice(0, 7)])
    (gradient,) = torch.autograd.grad(value.square(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable|does not require grad'):
        gradient.sum().backward()


@pytest.mark.parametrize('wanted', [True, False])
def test_makes_no_graph_that_nobody_wants(x, wanted):
    graphs = []

    def function(x, block):
        graphs.append(torch.is_grad_enabled())
        return cubes(x, block)

    blocks = [slice(0, 4), slice(4, 7)]
    with torch.set_grad_enabled(wanted):
        value = sum_over_blocks(function, x, blocks)
    constant = sum_over_blocks(function, x.detach(), blocks)
    assert value.item() == constant.item() == 784
    assert value.requires_grad is wanted and not constant.requires_grad
    assert graphs == [wanted, wanted, False, False]


def test_the_gradient_goes_to_the_first_argument_alone(x):
    other = torch.ones(7, dtype=torch.float64, requires_grad=True)
    value = sum_over_blocks(lambda x, i: x[i] * other[i], x, range(7))
    value.backward()
    assert x.grad.tolist() == [1] * 7
    assert other.grad is None


def test_keeps_the_intermediates_of_one_block(x):
    alive = []

    def function(x, block):
        assert not [one for one in alive if one() is not None]
        intermediate = x[block].exp()
        alive.append(weakref.ref(intermediate))
        return intermediate.square().sum()  # whose backward pass needs it

    value = sum_over_blocks(function, x, [slice(i, i + 2) for i in range(0, 7, 2)])
    assert len(alive) == 4 and alive[-1]() is None
    value.backward()
    torch.testing.assert_close(x.grad, 2 * (2 * x.detach()).exp())


def test_large_maps_are_taken_image_by_image(monkeypatch):
    seen = []

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return (x.square() * y).sum(dim=1)

    x, y = torch.randn(3, 2, 4, 5, requires_grad=True), torch.randn(3, 2, 4, 5)
    whole = image_by_image(function, x, y)
    (expected,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr('bdd_seg.losses.blocks._LARGE', 1)
    parts = image_by_image(function, x, y)
    (gradient,) = torch.autograd.grad(parts.square().sum(), x)
    assert seen == [3, 1, 1, 1, 1, 1, 1]  # and each image anew for the gradient
    assert torch.equal(parts, whole)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize('build', [lambda: FeatureLoss(3, 4), lambda: MGDLoss(3, 4), IFVDLoss])
def test_losses_of_large_maps_are_the_same(build, monkeypatch):
    torch.manual_seed(0)
    loss, student, teacher = build(), torch.randn(3, 3, 5, 4), torch.randn(3, 4, 5, 4)
    label = torch.randint(0, 3, (3, 5, 4)).masked_fill(torch.rand(3, 5, 4) < 0.2, 255)
    state, results = copy.deepcopy(loss.state_dict()), []
    for large in (2**24, 1):
        monkeypatch.setattr('bdd_seg.losses.blocks._LARGE', large)
        loss.load_state_dict(state)
        loss.zero_grad()
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, label)
        value.backward()
        results.append((value.detach(), leaf.grad, *(weight.grad.clone() for weight in loss.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert results[0][0] > 0
