import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import build
from mmengine.config import Config
from mmengine.logging import MessageHub

from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.errors import ConfigError
from bdd_seg.teachers import EnsembleTeacher, MMSegTeacher

LOGITS = 'decode_head.conv_seg'


@pytest.fixture
def settings(tiny_configs, tmp_path):
    """Two teachers of one config with different weights."""
    content = torch.load(tiny_configs['checkpoint'], weights_only=True)
    other = copy.deepcopy(content)
    other['state_dict']['decode_head.conv_seg.bias'].normal_(generator=torch.Generator().manual_seed(0))
    torch.save(other, tmp_path / 'other.pth')
    config = str(tiny_configs['teacher'])
    return [
        {'config': config, 'checkpoint': str(path)}
        for path in (tiny_configs['checkpoint'], tmp_path / 'other.pth')
    ]


def answers(settings, student, inputs, taps=(None,)):
    maps = []
    for one in settings:
        teacher = MMSegTeacher(**one)
        teacher.build(student, taps)
        maps.append(teacher(inputs).maps)
    return maps


@pytest.mark.parametrize('weights, share', [(None, 0.5), ([3, 1], 0.75)])
def test_the_mean_of_the_probabilities(settings, tiny_configs, batch, weights, share):
    student = build(tiny_configs['student'])
    teacher = EnsembleTeacher(settings, weights)
    teacher.build(student, [None, '1.backbone.layer4'])
    answer = teacher(*batch)
    one, two = answers(settings, student, batch[0], [None, 'backbone.layer4'])
    expected = share * one[LOGITS].softmax(1) + (1 - share) * two[LOGITS].softmax(1)
    torch.testing.assert_close(answer.maps[teacher.logits_tap].softmax(1), expected)
    assert torch.equal(answer.maps['1.backbone.layer4'], two['backbone.layer4'])
    assert not answer.known


def test_a_teacher_averaged_with_itself_stays_the_same(settings, tiny_configs, batch):
    """Its logits, too: over the positions they are compared as they are."""
    student = build(tiny_configs['student'])
    teacher = EnsembleTeacher([settings[0], settings[0]])
    teacher.build(student, [None])
    (expected,) = answers(settings[:1], student, batch[0])
    found = teacher(*batch).maps[teacher.logits_tap]
    torch.testing.assert_close(found, expected[LOGITS], atol=1e-3, rtol=1e-4)


def test_a_sure_teacher_averaged_with_itself_stays_the_same(settings, tiny_configs, tmp_path, batch):
    """Over the positions a class that is nowhere likely is compared as any other."""
    content = torch.load(tiny_configs['checkpoint'], weights_only=True)
    content['state_dict']['decode_head.conv_seg.weight'] *= 40
    torch.save(content, tmp_path / 'sure.pth')
    settings[0]['checkpoint'] = str(tmp_path / 'sure.pth')
    student = build(tiny_configs['student'])
    teacher = EnsembleTeacher([settings[0], settings[0]])
    teacher.build(student, [None])
    (expected,) = answers(settings[:1], student, batch[0])
    assert expected[LOGITS].softmax(1).min() < 1e-8
    found = teacher(*batch).maps[teacher.logits_tap]
    torch.testing.assert_close(found, expected[LOGITS], atol=1e-2, rtol=1e-4)


def test_binary_heads_average_their_sigmoids(tiny_configs, tmp_path, batch):
    """For logits 10 and −2 everywhere: the mean of the sigmoids, not the sigmoid of the mean."""
    cfg = Config.fromfile(tiny_configs['teacher'])
    del cfg.model.auxiliary_head
    cfg.model.decode_head.update(num_classes=2, out_channels=1)
    network, teachers = build(cfg), []
    for i, bias in enumerate((10.0, -2.0)):
        torch.nn.init.zeros_(network.decode_head.conv_seg.weight)
        torch.nn.init.constant_(network.decode_head.conv_seg.bias, bias)
        torch.save(network.state_dict(), tmp_path / f'{i}.pth')
        teachers.append({'config': cfg.model.to_dict(), 'checkpoint': str(tmp_path / f'{i}.pth')})
    teacher = EnsembleTeacher(teachers)
    teacher.build(network, [None])
    found = teacher(*batch).maps['logits'].sigmoid()
    expected = (1 / (1 + math.exp(-10)) + 1 / (1 + math.exp(2))) / 2
    torch.testing.assert_close(found, torch.full((2, 1, 4, 8), expected))


def test_members_of_other_sizes_are_brought_to_the_grid_of_the_first(settings, tiny_configs, batch):
    student = build(tiny_configs['student'])
    settings[1]['input_size'] = [64, 128]  # twice the size of the images
    teacher = EnsembleTeacher(settings)
    teacher.build(student, [None])
    found = teacher(*batch).maps[teacher.logits_tap].softmax(1)
    one, two = (maps[LOGITS].softmax(1) for maps in answers(settings, student, batch[0]))
    assert two.shape[2] == 2 * one.shape[2]
    second = F.interpolate(two, one.shape[2:], mode='bilinear', align_corners=False)
    torch.testing.assert_close(found, (one + second) / 2)


def test_a_list_of_teachers_is_an_ensemble_and_trains(settings, tiny_configs, batch):
    losses = [
        {'type': 'BDDLoss'},
        {'type': 'FeatureLoss', 'student_tap': 'backbone.layer4', 'teacher_tap': '0.backbone.layer4'},
    ]
    cfg = Config.fromfile(tiny_configs['distilled'])
    del cfg.model.teacher
    model = build(cfg, teacher=settings, distill_losses=losses)
    assert isinstance(model.teacher, EnsembleTeacher)
    assert model.distill_losses[1].adapter.weight.shape[:2] == (128, 32)  # channels found without a teacher
    found = model.loss(*batch)
    sum(found[f'distill.loss_{name}'] for name in ('bdd', 'feature')).backward()
    assert model.backbone.stem[0].weight.grad.abs().sum() > 0
    assert 0 <= found['distill.teacher_acc'].item() <= 100


def test_one_map_of_classes_for_all(settings, tiny_configs, batch):
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 11
    ensemble = {'type': 'EnsembleTeacher', 'teachers': settings, 'class_map': 'cityscapes_to_camvid'}
    cfg.model.teacher = ensemble
    hub = MessageHub.get_current_instance()
    hub.update_info('dataset_meta', CamVidDataset.METAINFO)
    for sample in batch[1]:
        sample.gt_sem_seg.data = sample.gt_sem_seg.data % 11
    assert build(cfg).loss(*batch)['distill.loss_bdd'].isfinite()
    hub.pop_info('dataset_meta')


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda s: {'teachers': s[:1]}, 'two or more teachers'),
        (
            lambda s: {'teachers': [*s, {'type': 'CachedTeacher', 'cache': 'c'}]},
            'cannot be part of an ensemble',
        ),
        (
            lambda s: {'teachers': [{**s[0], 'class_map': 'cityscapes_to_camvid'}, s[1]]},
            'a class_map is one of the ensemble',
        ),
        (lambda s: {'teachers': s, 'weights': [1]}, '2 positive numbers'),
        (lambda s: {'teachers': s, 'weights': [1, -1]}, '2 positive numbers'),
    ],
)
def test_wrong_settings(settings, change, message):
    with pytest.raises(ConfigError, match=message):
        EnsembleTeacher(**change(settings))


def test_what_the_ensemble_admits_its_members_admit(settings, tiny_configs):
    names = [f'class {i}' for i in range(19)]
    student = Config.fromfile(tiny_configs['student']).model
    with pytest.raises(ConfigError, match='trained for other classes'):
        EnsembleTeacher(settings).check(student, names)
    EnsembleTeacher(settings, check_class_names=False).check(student, names)


@pytest.mark.parametrize('tap', ['backbone.layer4', '2.backbone.layer4', '1'])
def test_a_tap_without_the_number_of_a_teacher(settings, tiny_configs, tap):
    with pytest.raises(ConfigError, match='begin with the number of one of the 2 teachers'):
        EnsembleTeacher(settings).build(build(tiny_configs['student']), [tap])
