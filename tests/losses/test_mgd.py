import copy
import math

import pytest
import torch
from feature_cases import EXCLUDED, Case, check_gradient, check_value, make_case, seed_of
from mmseg.registry import MODELS
from torch import Tensor, nn

from bdd_seg.losses import MGDLoss

SHAPES = [(1, 3, 5, 5, 4), (3, 4, 2, 3, 4), (2, 3, 3, 1, 6)]


def build(students: int, teachers: int, **settings) -> MGDLoss:
    torch.manual_seed(1)
    return MGDLoss(students, teachers, **settings)


def kept_positions(loss: MGDLoss, shape: tuple[int, ...], call: int) -> Tensor:
    """(N, H, W) bool, drawn as in this call of the loss, counted from 0."""
    generator = torch.Generator().manual_seed(seed_of(loss, call))
    images, _, height, width = shape
    return torch.rand(images, 1, height, width, generator=generator)[:, 0] >= loss.mask_ratio


def convolved(features: list, layer: nn.Conv2d) -> list:
    """A convolution of lists [c][y][x], one product at a time, with zeros around them."""
    weight, bias = layer.weight.double().tolist(), layer.bias.double().tolist()
    height, width = len(features[0]), len(features[0][0])
    reach = len(weight[0][0]) // 2

    def at(k: int, y: int, x: int) -> float:
        products = [bias[k]]
        for c, kernel in enumerate(weight[k]):
            for i, row in enumerate(kernel):
                for j, factor in enumerate(row):
                    v, u = y + i - reach, x + j - reach
                    if 0 <= v < height and 0 <= u < width:
                        products.append(factor * features[c][v][u])
        return math.fsum(products)

    return [[[at(k, y, x) for x in range(width)] for y in range(height)] for k in range(len(weight))]


def reference(loss: MGDLoss, case: Case, call: int) -> float:
    kept = kept_positions(loss, case.student.shape, call)
    errors = []
    for n, image in enumerate(case.student.tolist()):
        features = convolved(image, loss.adapter) if isinstance(loss.adapter, nn.Conv2d) else image
        used = (kept[n] & case.counts[n]).tolist()
        features = [
            [
                [value * one for value, one in zip(*rows, strict=True)]
                for rows in zip(plane, used, strict=True)
            ]
            for plane in features
        ]
        hidden = convolved(features, loss.generation[0])
        hidden = [[[max(0.0, value) for value in row] for row in plane] for plane in hidden]
        generated = convolved(hidden, loss.generation[2])
        for y, x in case.positions(n):
            errors += [
                (generated[k][y][x] - case.teacher[n, k, y, x].item()) ** 2 for k in range(len(generated))
            ]
    return math.fsum(errors) / len(case.student)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('shape', SHAPES)
def test_is_the_squared_error_of_the_generated_features(shape, excluded):
    case = make_case(shape, excluded)
    loss = build(*shape[1:3], mask_ratio=0.4, loss_weight=0.5, **case.settings)
    for call in (0, 2):  # of which check_value makes two
        expected = 0.5 * reference(loss, case, call)
        loss.draws.count.fill_(call)
        value = loss.double()(case.student, case.teacher, **case.arguments)
        assert value.item() == pytest.approx(expected, rel=1e-9)
    unmasked = build(*shape[1:3], mask_ratio=0.0, loss_weight=0.5, **case.settings)
    check_value(unmasked, case, 0.5 * reference(unmasked, case, 0))


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('channels', [(2, 3), (2, 2)])
def test_gradient(channels, excluded):
    case = make_case((2, *channels, 3, 2), excluded)
    loss = build(*channels, mask_ratio=0.3, **case.settings)
    check_gradient(loss, case, prepare=loss.draws.count.zero_)


def test_is_least_where_the_teacher_is_generated():
    case = make_case((2, 3, 3, 4, 5))
    loss = build(3, 3, loss_weight=1.0).double()
    student = case.student.requires_grad_()
    kept = kept_positions(loss, student.shape, 0)
    target = loss.generation((student * kept[:, None]).detach())
    value = loss(student, target)
    value.backward()
    assert value.item() == 0
    assert not student.grad.any() and not any(weight.grad.any() for weight in loss.parameters())


def test_is_built_from_a_config():
    loss = MODELS.build({'type': 'MGDLoss', 'student_channels': 2, 'teacher_channels': 3})
    assert (loss.loss_weight, loss.loss_name, loss.mask_ratio) == (2e-5, 'loss_mgd', 0.75)
    assert {name: tuple(value.shape) for name, value in loss.state_dict().items()} == {
        'adapter.weight': (3, 2, 1, 1),
        'adapter.bias': (3,),
        'draws.seed': (),
        'draws.count': (),
        'generation.0.weight': (3, 3, 3, 3),
        'generation.0.bias': (3,),
        'generation.2.weight': (3, 3, 3, 3),
        'generation.2.bias': (3,),
    }
    assert 'adapter.weight' not in MGDLoss(3, 3).state_dict()


@pytest.mark.parametrize('ratio', [0.0, 0.25, 0.75, 0.99])
def test_the_share_of_kept_positions(ratio):
    """Without a generation block, ones against zeros count the positions that are kept."""
    loss = MGDLoss(3, 3, ratio, loss_weight=1.0)
    loss.generation = nn.Identity()
    ones, zeros = torch.ones(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)
    counts = [loss(ones, zeros).item() * 2 / 3 for _ in range(3)]
    assert all(count == round(count) for count in counts)  # whole positions, of all channels
    deviation = math.sqrt(2 * 64 * 64 * ratio * (1 - ratio))
    assert counts == [pytest.approx(2 * 64 * 64 * (1 - ratio), abs=5 * deviation)] * 3
    assert (len({*counts}) > 1) is (ratio > 0)


def test_images_are_masked_apart():
    loss = MGDLoss(1, 1, loss_weight=1.0)
    inputs = []
    loss.generation = nn.Identity()
    loss.generation.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    loss(torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))
    assert {*inputs[0].flatten().tolist()} == {0.0, 1.0}
    assert not torch.equal(inputs[0][0], inputs[0][1])


def test_goes_on_where_it_was_saved():
    case = make_case((2, 3, 5, 4, 5))
    student, teacher = case.student.float(), case.teacher.float()
    loss = build(3, 5)
    first, second = (loss(student, teacher) for _ in range(2))
    state = copy.deepcopy(loss.state_dict())
    third = loss(student, teacher)
    assert len({first.item(), second.item(), third.item()}) == 3
    torch.manual_seed(2)
    loaded = MGDLoss(3, 5)
    loaded.load_state_dict(state)
    assert torch.equal(loaded(student, teacher), third)


def test_the_global_generator_is_left_alone():
    case = make_case((2, 3, 5, 4, 5))
    loss = build(3, 5).double()
    before = torch.get_rng_state()
    loss(case.student, case.teacher)
    assert torch.equal(torch.get_rng_state(), before)


def test_positions_that_do_not_count_change_nothing():
    case = make_case((2, 3, 5, 4, 5), 'mask')
    loss = build(3, 5, mask_ratio=0.2, loss_weight=1.0).double()
    out = ~case.mask[:, None]

    def result(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        loss.draws.count.zero_()
        loss.zero_grad()
        student = student.clone().requires_grad_()
        value = loss(student, teacher, mask=case.mask)
        value.backward()
        return value, student.grad, *(weight.grad for weight in loss.parameters())

    expected = result(case.student, case.teacher)
    changed = result(case.student.masked_fill(out, 7.0), case.teacher.masked_fill(out, math.nan))
    assert all(map(torch.equal, changed, expected))
    unmasked = loss(case.student, case.teacher)
    assert unmasked.item() != pytest.approx(expected[0].item(), rel=0.05)


def test_where_nothing_counts_all_gradients_are_zero():
    case = make_case((2, 3, 5, 4, 5), 'everything')
    loss = build(3, 5, mask_ignored=True).double()
    student = case.student.requires_grad_()
    value = loss(student, case.teacher, **case.arguments)
    value.backward()  # DDP waits for the gradients of all its parameters
    assert value.item() == 0
    for tensor in (student, *loss.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


@pytest.mark.parametrize('ratio', [-0.1, 1, 1.5, '0.75', None])
def test_wrong_settings(ratio):
    with pytest.raises(ValueError, match=rf'mask_ratio must be a number in \[0, 1\), got {ratio!r}'):
        MGDLoss(3, 3, ratio)


def test_needs_the_numbers_of_channels():
    maps = torch.zeros(1, 3, 2, 2), torch.zeros(1, 5, 2, 2)
    loss = MGDLoss()
    with pytest.raises(ValueError, match='give student_channels and teacher_channels, or let a SegDistiller'):
        loss(*maps)
    loss.adapt(3, 5)
    assert loss(*maps).isfinite()
    with pytest.raises(ValueError, match='give both student_channels and teacher_channels, or neither'):
        MGDLoss(student_channels=3)
    with pytest.raises(ValueError, match='student must be .*student_channels=3, got'):
        loss(maps[1], maps[1])
