import copy
import math
from collections.abc import Sequence

import pytest
import torch
from feature_cases import (
    CLASSES,
    EXCLUDED,
    Case,
    Vector,
    balanced,
    check_gradient,
    dot,
    make_case,
    mean,
    mean_vector,
    normalised,
    seed_of,
    vector,
)
from helpers import ROOT
from many_processes import TESTS, job, torchrun
from mmseg.registry import MODELS
from queues_of_processes import STEPS, build, images_of
from torch import Tensor, nn
from warm_python import warm_python

from bdd_seg.losses import CIRKDMemoryLoss
from bdd_seg.losses import cirkd_memory as module
from bdd_seg.losses.queues import ClassQueues

MODES = ['paper', 'code']
SHAPE = (2, 3, 4, 4, 5)
SMALL = {'pixel_memory': 25, 'region_memory': 3, 'pixel_keys': 10, 'region_keys': 4}
"""Lengths of the queues and numbers of keys, none of them a multiple of the number of classes."""

BALANCED = {'tau': 0.4, 'forward_weight': 0.7, 'reverse_weight': 1.3, 'tau_reverse': 0.9}


def make(shape=SHAPE, **settings) -> CIRKDMemoryLoss:
    torch.manual_seed(1)
    channels = {'student_channels': shape[1], 'teacher_channels': shape[2]}
    return CIRKDMemoryLoss(CLASSES, **channels, **{**SMALL, **settings}).double()


class Ring:
    """Vectors in the places where a queue has them."""

    def __init__(self, length: int) -> None:
        self.places: list[Vector] = [[]] * length
        self.written = 0

    def put(self, vectors: list[Vector]) -> None:
        for one in vectors[-len(self.places) :]:
            self.places[self.written % len(self.places)] = one
            self.written += 1


class Reference:
    """The loss, and queues of its own, one position after another in float64.

    ``rank`` is that of the process whose value it computes; all processes fill the queues.
    """

    def __init__(self, loss: CIRKDMemoryLoss, rank: int = 0) -> None:
        self.loss, self.rank, self.calls = loss, rank, 0
        self.pixels, self.regions = (
            [Ring(length) for _ in range(CLASSES)] for length in (loss.pixel_memory, loss.region_memory)
        )

    def step(self, *cases: Case, seeds: Sequence[int] = ()) -> float:
        """Return the value of the case of this process; ``cases`` and ``seeds`` are those of all."""
        generators = [
            torch.Generator().manual_seed(seed) for seed in seeds or [seed_of(self.loss, self.calls)]
        ]
        self.calls += 1
        random = [
            torch.rand(len(case.label), CLASSES, case.label[0].numel(), generator=generator).unflatten(
                2, case.label.shape[1:]
            )
            for case, generator in zip(cases, generators, strict=True)
        ]
        for k in range(CLASSES):
            found = [self.found(k, *each) for each in zip(cases, random, strict=True)]
            self.pixels[k].put([one for pixels, _ in found for one in pixels])
            self.regions[k].put([one for _, regions in found for one in regions])
        return self.value(cases[self.rank], generators[self.rank])

    def found(self, k: int, case: Case, random: Tensor) -> tuple[list[Vector], list[Vector]]:
        """Return the positions and the regions of a class in a process's images."""
        pixels, regions = [], []
        for n in range(len(case.label)):
            members = [at for at in case.positions(n) if case.label[(n, *at)] == k]
            if not members:
                continue
            features = [normalised(vector(case.teacher, n, *at)) for at in members]
            regions.append(normalised(mean_vector(features)))
            added = min(16, len(members))
            if self.loss.mode == 'code':
                members = case.positions(n)
            chosen = sorted(members, key=lambda at: random[(n, k, *at)].item(), reverse=True)[:added]
            pixels += [normalised(vector(case.teacher, n, *at)) for at in chosen]
        return pixels, regions

    def value(self, case: Case, generator: torch.Generator) -> float:
        loss = self.loss
        rows = [(n, y, x) for n in range(len(case.label)) for y, x in case.positions(n)]
        if loss.positions is not None and len(rows) > loss.positions:
            order = torch.randperm(len(rows), generator=generator).tolist()
            rows = [rows[i] for i in order[: loss.positions]]
        if len(rows) < 2:
            return 0.0
        teachers = [normalised(vector(case.teacher, *row)) for row in rows]
        students = [normalised(one) for one in self.projected([vector(case.student, *row) for row in rows])]
        total = []
        for rings, number, weight in (
            (self.pixels, loss.pixel_keys, loss.pixel_weight),
            (self.regions, loss.region_keys, loss.region_weight),
        ):
            keys = []
            random = torch.rand(CLASSES, math.ceil(number / CLASSES), generator=generator).tolist()
            for ring, numbers in zip(rings, random, strict=True):
                filled = min(ring.written, len(ring.places))
                keys += [ring.places[int(one * filled)] for one in numbers if filled]
            rows_ = [
                balanced([dot(teacher, key) for key in keys], [dot(student, key) for key in keys], loss)
                for teacher, student in zip(teachers, students, strict=True)
            ]
            total.append(weight * mean(rows_))
        return loss.loss_weight * math.fsum(total)

    def projected(self, rows: list[Vector]) -> list[Vector]:
        """Linear, BatchNorm with the statistics of these rows, ReLU, linear."""
        first, norm, _, last = self.loss.projection
        hidden = [[dot(weights, row) for weights in first.weight.tolist()] for row in rows]
        columns = []
        for column, scale, shift in zip(
            zip(*hidden, strict=True), norm.weight.tolist(), norm.bias.tolist(), strict=True
        ):
            middle = mean(column)
            deviation = math.sqrt(mean([(one - middle) ** 2 for one in column]) + 1e-5)
            columns.append([max(0.0, scale * (one - middle) / deviation + shift) for one in column])
        return [[dot(weights, row) for weights in last.weight.tolist()] for row in zip(*columns, strict=True)]

    def check_queues(self, state: dict[str, Tensor]) -> None:
        for name, rings in (('pixels', self.pixels), ('regions', self.regions)):
            assert state[f'{name}.written'].tolist() == [ring.written for ring in rings]
            for vectors, ring in zip(state[f'{name}.vectors'].tolist(), rings, strict=True):
                for one, expected in zip(vectors, ring.places, strict=True):
                    assert one == pytest.approx(expected or [0.0] * len(one), abs=1e-12)


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize(
    'shape, settings',
    [
        ((1, 3, 5, 5, 7), {'positions': None}),
        ((3, 4, 2, 4, 3), {'positions': 9, **BALANCED, 'pixel_weight': 0.3, 'region_weight': 0.7}),
        ((3, 3, 3, 1, 6), {'mode': 'code', 'pixel_keys': 1, 'region_keys': 7, 'loss_weight': 2.0}),
    ],
)
def test_is_the_divergence_of_the_similarities_to_the_keys(shape, settings, excluded):
    """In three steps, in which queues run over."""
    loss = make(shape, **settings)
    reference = Reference(loss)
    for step in range(3):
        case = make_case(shape, excluded, seed=step)
        expected = reference.step(case)
        assert expected > 1e-3 or not case.counts.any()
        value = loss(case.student, case.teacher, **case.arguments)
        assert value.item() == pytest.approx(expected, rel=1e-9)
        reference.check_queues(loss.state_dict())
    assert not case.counts.any() or max(ring.written for ring in reference.regions) >= 3


def test_in_float32():
    loss = make(**BALANCED)
    reference = Reference(copy.deepcopy(loss))
    loss.float()
    for step in range(2):
        case = make_case(SHAPE, 'both', seed=step)
        value = loss(case.student.float(), case.teacher.float(), **case.arguments)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(reference.step(case), rel=1e-4)


def test_settings_of_a_config():
    loss = MODELS.build({'type': 'CIRKDMemoryLoss', 'num_classes': 19})
    assert (loss.loss_weight, loss.loss_name, loss.mode) == (1.0, 'loss_cirkd_memory', 'paper')
    assert (loss.pixel_weight, loss.region_weight) == (0.1, 0.1)
    assert (loss.pixel_keys, loss.region_keys, loss.positions) == (4096, 1024, 2048)
    assert (loss.tau, loss.tau_reverse, loss.reverse_weight) == (0.1, None, 0.0)
    loss.adapt(4, 2)
    assert {name: tuple(value.shape) for name, value in loss.state_dict().items()} == {
        'draws.seed': (),
        'draws.count': (),
        'projection.0.weight': (2, 4),
        'projection.1.weight': (2,),
        'projection.1.bias': (2,),
        'projection.3.weight': (2, 2),
        'pixels.vectors': (19, 20_000, 2),
        'pixels.written': (19,),
        'regions.vectors': (19, 2_000, 2),
        'regions.written': (19,),
    }
    assert {name for name, _ in loss.named_parameters()} == {
        'projection.0.weight',
        'projection.1.weight',
        'projection.1.bias',
        'projection.3.weight',
    }


@pytest.mark.parametrize('excluded', EXCLUDED)
@pytest.mark.parametrize('positions', [None, 7])
def test_gradient(positions, excluded):
    case = make_case((2, 2, 3, 3, 3), excluded)
    loss = make(case.student.shape[:2] + case.teacher.shape[1:2], positions=positions, **BALANCED)
    start = copy.deepcopy({name: value for name, value in loss.named_buffers()})

    def back_to_the_start() -> None:
        for name, value in loss.named_buffers():
            value.copy_(start[name])

    check_gradient(loss, case, back_to_the_start)


@pytest.mark.parametrize('excluded', EXCLUDED)
def test_is_least_where_the_projection_has_the_teachers_directions(excluded):
    case = make_case((2, 3, 3, 4, 5), excluded)
    loss = make(case.student.shape[:2] + case.teacher.shape[1:2], **BALANCED)
    loss.projection = nn.Identity()
    student = case.student.requires_grad_()
    value = loss(student, 3 * case.student, **case.arguments)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-12)
    assert loss(student, case.teacher, **case.arguments).item() > 1e-3 or excluded == 'everything'


@pytest.mark.parametrize('sizes', [[3], [3, 1], [5], [5, 5], [4, 4, 4], [7], [2, 12], [0, 2, 0, 6]])
def test_a_queue_overwrites_the_oldest(sizes):
    queues, rings, value = ClassQueues(3, 5, 1), [Ring(5) for _ in range(3)], 0
    for size in sizes:
        vectors, valid = torch.zeros(2, 3, 2 * size, 1), torch.zeros(2, 3, 2 * size, dtype=torch.bool)
        for n in range(2):  # to class 1 from the first image, to class 2 from both, to class 0 from none
            for k in (1, 2) if n == 0 else (2,):
                for m in range(0, 2 * size, 2):
                    value += 1
                    vectors[n, k, m], valid[n, k, m] = value, True
        for k in range(3):
            rings[k].put([[one.item()] for one in vectors[:, k][valid[:, k]]])
        queues.put(vectors, valid)
        assert queues.written.tolist() == [ring.written for ring in rings]
        assert queues.vectors.tolist() == [[one or [0.0] for one in ring.places] for ring in rings]
    assert queues.written[0] == 0


def test_keys_are_drawn_equally_often_from_all_that_is_in_a_queue():
    queues = ClassQueues(3, 4, 1)
    queues.vectors[:] = torch.arange(12.0).view(3, 4, 1)
    queues.written[:] = torch.tensor([3, 0, 9])
    keys, valid = queues.draw(1000, torch.Generator().manual_seed(0))
    assert keys.shape == (3000, 1) and valid.tolist() == [True] * 1000 + [False] * 1000 + [True] * 1000
    numbers = keys.flatten().int().tolist()
    counts = {number: numbers[:1000].count(number) for number in {*numbers[:1000]}}
    assert counts == {i: pytest.approx(1000 / 3, abs=60) for i in range(3)}
    counts = {number: numbers[2000:].count(number) for number in {*numbers[2000:]}}
    assert counts == {i: pytest.approx(1000 / 4, abs=60) for i in range(8, 12)}


def labelled_by_columns() -> Case:
    """Images in which class k has the columns k, k + 3, …, and with class 2 in the first image alone."""
    case = make_case((2, 3, 4, 12, 9))
    case.label = (torch.arange(9) % 3).expand(2, 12, 9).contiguous()
    case.label[1] %= 2
    case.label[:, 0] = 255
    return case


@pytest.mark.parametrize('mode', MODES)
def test_the_vectors_of_a_class(mode):
    case, loss = labelled_by_columns(), make(mode=mode, pixel_memory=50)
    loss(case.student, case.teacher, case.label)
    assert loss.pixels.written.tolist() == [32, 32, 16]  # 16 of each image with the class
    assert loss.regions.written.tolist() == [2, 2, 1]
    features = case.teacher / case.teacher.norm(dim=1, keepdim=True)
    for k, (vectors, count) in enumerate(zip(loss.pixels.vectors, loss.pixels.written.tolist(), strict=True)):
        assert not vectors[count:].any()
        distances = (features[..., None] - vectors[:count].T[:, None, None]).norm(dim=1)
        n, y, x, _ = (distances < 1e-12).nonzero(as_tuple=True)
        assert len({*zip(n.tolist(), y.tolist(), x.tolist(), strict=True)}) == len(n) == count
        labels = case.label[n, y, x].tolist()
        assert labels == [k] * count if mode == 'paper' else 0 < labels.count(k) < count
        assert 255 not in labels
        assert sorted(n.tolist()) == [0] * 16 + [1] * (count - 16)


def test_keys_of_a_class_that_was_never_seen_do_not_count():
    case, loss = make_case(SHAPE), make(pixel_keys=6, region_keys=3)
    case.label = case.label.clamp(max=1)
    reference = Reference(loss)
    expected = reference.step(case)
    assert [ring.written > 0 for ring in reference.pixels] == [True, True, False]
    loss.pixels.vectors[2] = 100.0  # in which no similarity may take part
    assert loss(case.student, case.teacher, case.label).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('similarities', [1, 40, 10**6])
def test_blocks_change_nothing(monkeypatch, similarities):
    case = make_case(SHAPE, 'both')

    def result() -> tuple[Tensor, ...]:
        loss, student = make(**BALANCED), case.student.clone().requires_grad_()
        value = loss(student, case.teacher, **case.arguments)
        value.backward()
        return value, student.grad, *(weight.grad for weight in loss.parameters())

    expected = result()
    monkeypatch.setattr(module, '_SIMILARITIES', similarities)
    # Each block's share of the mean is rounded by itself.
    torch.testing.assert_close(result(), expected, rtol=1e-6, atol=1e-12)


def test_passes_back_twice_and_works_without_a_graph():
    case, loss = make_case(SHAPE, 'both'), make(**BALANCED)
    state = copy.deepcopy(loss.state_dict())
    student = case.student.requires_grad_()
    value = loss(student, case.teacher, **case.arguments)
    value.backward(retain_graph=True)
    once = student.grad.clone()
    (2 * value).backward()
    torch.testing.assert_close(student.grad, 3 * once)
    loss.load_state_dict(state)
    with torch.no_grad():
        without = loss(student, case.teacher, **case.arguments)
    assert torch.equal(without, value) and not without.requires_grad


@pytest.mark.parametrize('mode', MODES)
def test_goes_on_where_it_was_saved(mode):
    def steps(loss, numbers) -> list[Tensor]:
        found = []
        for number in numbers:
            case = make_case(SHAPE, 'both', seed=number)
            student = case.student.float().requires_grad_()
            loss.zero_grad()
            value = loss(student, case.teacher.float(), **case.arguments)
            value.backward()
            found += [value, student.grad, *(weight.grad.clone() for weight in loss.parameters())]
        return [*found, *map(torch.clone, loss.state_dict().values())]

    loss = make(mode=mode, positions=12).float()
    steps(loss, range(2))
    state = copy.deepcopy(loss.state_dict())
    expected = steps(loss, range(2, 5))
    torch.manual_seed(5)
    loaded = CIRKDMemoryLoss(
        CLASSES, student_channels=3, teacher_channels=4, positions=12, mode=mode, **SMALL
    )
    loaded.load_state_dict(state)
    assert loaded.draws.count.item() == 2
    assert all(map(torch.equal, steps(loaded, range(2, 5)), expected))
    fresh = make(mode=mode, positions=12).float()
    assert fresh.load_state_dict({**state, 'draws.count': torch.tensor(0)})
    assert not torch.equal(steps(fresh, range(2, 3))[0], expected[0])


def test_the_global_generator_is_left_alone():
    case, loss = make_case(SHAPE), make()
    before = torch.get_rng_state()
    loss(case.student, case.teacher, case.label)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('labelled', [0, 1])
def test_less_than_two_labelled_positions_give_zero_and_gradients_of_zeros(labelled):
    case, loss = make_case(SHAPE), make()
    case.label[:] = 255
    case.label[0, 0, :labelled] = 2
    student = case.student.requires_grad_()
    value = loss(student, case.teacher, case.label)
    value.backward()  # DDP waits for the gradients of all its parameters
    assert value.item() == 0
    for tensor in (student, *loss.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))
    assert loss.pixels.written.tolist() == [0, 0, labelled]
    assert loss.draws.count.item() == 1
    case.label = make_case(SHAPE).label
    assert loss(student, case.teacher, case.label).item() > 1e-4


def test_labels_that_are_no_classes():
    case, loss = make_case(SHAPE), make()
    case.label[1, 2, 3] = 3
    with pytest.raises(ValueError, match='label 3 is none of num_classes=3 classes'):
        loss(case.student, case.teacher, case.label)
    case.mask = torch.ones_like(case.label, dtype=torch.bool)
    case.mask[1, 2, 3] = False
    assert loss(case.student, case.teacher, **case.arguments).isfinite()
    case.label[1, 2, 3] = 255
    assert loss(case.student, case.teacher, case.label).isfinite()


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"mode must be one of \('paper', 'code'\), got 'both'"):
        make(mode='both')
    with pytest.raises(ValueError, match='must be a positive number, got -1'):
        make(tau=-1)
    with pytest.raises(ValueError, match=r'this loss needs labels, and the batch has none \(seg_label\)'):
        make()(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2))


def test_needs_the_numbers_of_channels():
    case, loss = make_case(SHAPE), CIRKDMemoryLoss(CLASSES, **SMALL)
    with pytest.raises(ValueError, match='give student_channels and teacher_channels, or let a SegDistiller'):
        loss(case.student, case.teacher, case.label)
    loss.adapt(3, 4)
    assert loss(case.student.float(), case.teacher.float(), case.label).item() > 1e-4
    with pytest.raises(ValueError, match='teacher must be .*teacher_channels=4, got'):
        loss(case.student, case.student, case.label)


@pytest.mark.parametrize('given', ['student_channels', 'teacher_channels'])
def test_one_number_of_channels_is_refused(given):
    with pytest.raises(ValueError, match='give both student_channels and teacher_channels, or neither'):
        CIRKDMemoryLoss(CLASSES, **{given: 3})


def test_the_queues_of_two_processes_hold_the_images_of_both(tmp_path):
    command = [*torchrun(2, python=warm_python()), TESTS / 'losses/queues_of_processes.py', tmp_path]
    with job(command, tmp_path / 'log.txt', ROOT) as started:
        assert started.wait(120) == 0, started.output[-3000:]
    results = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    references = [Reference(build(), rank) for rank in range(2)]
    for step in range(STEPS):
        cases = [images_of(rank, step) for rank in range(2)]
        seeds = [steps[step]['seed'] for steps in results]
        assert seeds[0] != seeds[1]
        for reference, steps in zip(references, results, strict=True):
            expected = reference.step(*cases, seeds=seeds)
            assert steps[step]['value'] == pytest.approx(expected, rel=1e-9)
            reference.check_queues(steps[step]['state'])
            without_labels = (reference.rank, step) == (1, 1)
            assert without_labels is (expected == 0)
            assert without_labels is not any(gradient.any() for gradient in steps[step]['gradients'])
        states = [steps[step]['state'] for steps in results]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for rings in (references[0].pixels, references[0].regions):
        assert all(ring.written > len(ring.places) for ring in rings)
