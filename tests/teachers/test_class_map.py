import pytest
import torch
from helpers import build
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmseg.datasets import ADE20KDataset, CityscapesDataset

from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.errors import ConfigError
from bdd_seg.losses.pair import resize_nearest
from bdd_seg.teachers.class_map import CLASS_MAPS, ClassMap, draft, fitting_map

CITYSCAPES, ADE20K, CAMVID = (
    kind.METAINFO['classes'] for kind in (CityscapesDataset, ADE20KDataset, CamVidDataset)
)
TEACHER, STUDENT = ('cat', 'dog', 'road', 'path', 'sky'), ('sky', 'ground', 'boat', 'animal')
NAMES = {'cat': 'animal', 'dog': 'animal', 'road': 'ground', 'path': 'ground', 'sky': None}


def test_probabilities_of_classes_that_stand_for_one_add_up():
    """Against a loop over pixels: sums of the softmax, scaled to a sum of 1 over the known classes."""
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    found = ClassMap(NAMES, TEACHER, STUDENT)
    assert found.known == [1, 3]
    mapped = found.teacher_logits(logits).softmax(1)
    for n in range(2):
        for y in range(3):
            for x in range(4):
                weight = [value.exp().item() for value in logits[n, :, y, x]]
                ground, animal = weight[2] + weight[3], weight[0] + weight[1]
                expected = [ground / (ground + animal), animal / (ground + animal)]
                assert mapped[n, :, y, x].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_student_keeps_the_known_classes_and_their_labels():
    found = ClassMap(NAMES, TEACHER, STUDENT)
    logits = torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert found.student_logits(logits)[0, :, 0, 0].tolist() == [1, 3]
    label = torch.tensor([[[0, 1, 2, 3, 255, 7]]])
    assert found.labels(label, 255).tolist() == [[[255, 0, 255, 1, 255, 255]]]
    # Class 3 is the one to ignore: it is no class, though its number is one.
    assert found.labels(label, 3).tolist() == [[[3, 0, 3, 3, 3, 3]]]
    assert found.describe() == "4 of the teacher's 5 classes stand for 2 of 4; unknown to it: sky, boat"


def test_the_same_classes_in_another_order():
    order = torch.randperm(19, generator=torch.Generator().manual_seed(0))
    shuffled = tuple(CITYSCAPES[i] for i in order)
    found = ClassMap({name: name for name in CITYSCAPES}, shuffled, CITYSCAPES)
    logits = torch.randn(1, 19, 2, 3)
    torch.testing.assert_close(found.teacher_logits(logits[:, order]), logits)
    assert found.student_logits(logits) is logits


@pytest.mark.parametrize(
    'name, teacher, student, unknown, samples',
    [
        (
            'cityscapes_to_camvid',
            CITYSCAPES,
            CAMVID,
            set(),
            {'wall': 'building', 'bus': 'car', 'rider': 'bicyclist'},
        ),
        (
            'ade20k_to_cityscapes',
            ADE20K,
            CITYSCAPES,
            {'rider', 'train'},
            {'van': 'car', 'signboard': 'traffic sign'},
        ),
        (
            'ade20k_to_camvid',
            ADE20K,
            CAMVID,
            set(),
            {'streetlight': 'pole', 'grass': None, 'person': 'pedestrian'},
        ),
    ],
)
def test_shipped_maps(name, teacher, student, unknown, samples):
    found = ClassMap(name, teacher, student)
    assert {student[i] for i in range(len(student)) if i not in found.known} == unknown
    assert {key: CLASS_MAPS[name][key] for key in samples} == samples
    assert fitting_map(teacher, student) == name
    # One certain class of the teacher is one certain class of the student.
    for source, target in samples.items():
        if target is None:
            continue
        logits = torch.full((1, len(teacher), 1, 1), -20.0)
        logits[0, teacher.index(source)] = 20
        (winner,) = found.teacher_logits(logits).argmax(1).flatten().tolist()
        assert student[found.known[winner]] == target


def test_a_map_to_start_from():
    assert draft(('Traffic_Light', 'lion'), CITYSCAPES) == {'Traffic_Light': 'traffic light', 'lion': None}
    assert fitting_map(CITYSCAPES, ADE20K) is None


@pytest.mark.parametrize(
    'names, message',
    [
        ({'cat': 'animal', 'dogs': 'ground'}, "'dogs' is no class of the teacher.*Did you mean dog"),
        ({'cat': 'animal', 'dog': 'grund'}, "'grund' is no class of the student.*Did you mean ground"),
        ({'cat': 'animal', 'dog': 'animal'}, 'leaves 1 of the 4 classes'),
        ('cityscapes_to_kamvid', 'no map is called.*Did you mean cityscapes_to_camvid'),
        ([1], 'must be a dict'),
    ],
)
def test_maps_that_cannot_be(names, message):
    with pytest.raises(ConfigError, match=message):
        ClassMap(names, TEACHER, STUDENT)


@pytest.fixture
def mapped(tiny_configs, batch):
    """A student of CamVid's classes under a teacher of Cityscapes'."""

    def make(*losses, **teacher):
        cfg = Config.fromfile(tiny_configs['distilled'])
        cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 11
        cfg.model.teacher.update({'class_map': 'cityscapes_to_camvid', **teacher})
        losses = [{'type': loss} if isinstance(loss, str) else loss for loss in losses]
        return build(cfg, distill_losses=losses)

    for sample in batch[1]:
        sample.gt_sem_seg.data = sample.gt_sem_seg.data % 11
    hub = MessageHub.get_current_instance()
    hub.update_info('dataset_meta', {'classes': CAMVID})
    yield make
    hub.pop_info('dataset_meta')


def test_a_step_under_a_teacher_of_other_classes(mapped, batch):
    model = mapped('BDDLoss', 'DKDLoss', 'BPKDLoss', 'DISTLoss').train()
    inputs, samples = batch
    losses = model.loss(inputs, samples)
    value = sum(losses[f'distill.loss_{name}'] for name in ('bdd', 'dkd', 'bpkd', 'dist'))
    value.backward()
    assert value.isfinite() and model.decode_head.conv_seg.weight.grad.abs().sum() > 0
    # The teacher's accuracy counts in the student's classes.
    raw = model.teacher(inputs, samples).maps['decode_head.conv_seg']
    predicted = model.teacher.class_map.teacher_logits(raw).argmax(1)
    label = torch.stack([resize_nearest(s.gt_sem_seg.data, predicted.shape[1:])[0] for s in samples])
    expected = 100 * (predicted == label)[label != 255].float().mean().item()
    assert losses['distill.teacher_acc'].item() == pytest.approx(expected, abs=1e-3)


def test_classes_that_nothing_stands_for_get_no_gradient_from_the_teacher(mapped, batch):
    names = {'road': 'road', 'sky': 'sky', 'car': 'car'}
    model = mapped('BDDLoss', class_map=names).train()
    losses = model.loss(*batch)
    losses['distill.loss_bdd'].backward()
    touched = model.decode_head.conv_seg.weight.grad.flatten(1).abs().sum(1) > 0
    assert {CAMVID[i] for i in range(11) if touched[i]} == set(names)


def test_without_names_there_is_no_map(mapped, batch):
    model = mapped('BDDLoss')
    MessageHub.get_current_instance().update_info('dataset_meta', {})
    with pytest.raises(
        ConfigError, match="needs the names of the classes, and the student's data set has none"
    ):
        model.loss(*batch)


CITYSCAPES_TAPS = [
    {'teacher_tap': 'decode_head.conv_seg'},
    {'teacher_tap': 'logits'},
    {'student_tap': 'decode_head.conv_seg'},
    {'student_tap': 'logits', 'teacher_tap': 'logits'},
]


@pytest.mark.parametrize('taps', CITYSCAPES_TAPS)
def test_class_logits_are_mapped_however_they_are_named(mapped, batch, taps):
    names = {'road': 'road', 'sky': 'sky', 'car': 'car'}
    torch.manual_seed(0)
    expected = mapped('KDLoss', class_map=names).eval().loss(*batch)['distill.loss_kd']
    torch.manual_seed(0)
    model = mapped({'type': 'KDLoss', **taps}, class_map=names).eval()
    assert not [*model.distill_losses.parameters()]  # no adapter between classes
    assert torch.equal(model.loss(*batch)['distill.loss_kd'], expected)


def test_auxiliary_class_logits_are_mapped_too(mapped, batch):
    taps = {'student_tap': 'auxiliary_head.conv_seg', 'teacher_tap': 'auxiliary_head.conv_seg'}
    names = {'road': 'road', 'sky': 'sky', 'car': 'car'}
    model = mapped({'type': 'KDLoss', **taps}, class_map=names).train()
    model.loss(*batch)['distill.loss_kd'].backward()
    touched = model.auxiliary_head.conv_seg.weight.grad.flatten(1).abs().sum(1) > 0
    assert {CAMVID[i] for i in range(11) if touched[i]} == set(names)


def test_a_loss_with_layers_between_the_numbers_of_channels_takes_the_maps_as_they_are(mapped, batch):
    model = mapped({'type': 'FeatureLoss'}, class_map={'road': 'road', 'sky': 'sky'}).train()
    assert model.distill_losses[0].adapter.weight.shape[:2] == (19, 11)
    assert model.loss(*batch)['distill.loss_feature'].isfinite()


def test_a_label_to_ignore_that_is_the_number_of_a_known_class():
    found = ClassMap({'cat': 'animal', 'road': 'ground', 'sky': 'sky'}, TEACHER, STUDENT)
    assert found.known == [0, 1, 3]
    label = torch.arange(4).view(1, 2, 2)
    with pytest.raises(ConfigError, match='leaves 3 classes.*the ignored label is 2'):
        found.labels(label, 2)
    assert found.labels(label, 0).tolist() == [[[0, 1], [0, 2]]]  # class 0 keeps its number
    with pytest.raises(ConfigError, match="names the class 'CAT' of the teacher twice"):
        ClassMap({'cat': 'animal', 'CAT': 'animal', 'road': 'ground'}, TEACHER, STUDENT)
