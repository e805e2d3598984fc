"""What all teachers that run a network share: sizes and channels of their images, maps, first look."""

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import build, train
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.structures import PixelData
from mmseg.models import BaseSegmentor
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from torch import nn

from bdd_seg.distill.taps import MapOf, check_map
from bdd_seg.errors import ConfigError
from bdd_seg.teachers import Answer, MMSegTeacher
from bdd_seg.teachers.first_look import _areas
from bdd_seg.teachers.metafile import published

LOGITS = 'decode_head.conv_seg'


def teacher_of(tiny_configs, student, taps=(None,), **options):
    teacher = MMSegTeacher(str(tiny_configs['teacher']), str(tiny_configs['checkpoint']), **options)
    teacher.build(student, taps)
    return teacher


def plain_student(tiny_configs):
    """A student that gets images as they are loaded."""
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.model.data_preprocessor = {'type': 'SegDataPreProcessor', 'size': (32, 64)}
    return build(cfg)


@pytest.mark.parametrize('size, expected', [(64, (64, 64)), ([48, 96], (48, 96))])
def test_images_are_resized_to_the_input_size(tiny_configs, batch, size, expected):
    student = build(tiny_configs['student'])
    inputs, _ = batch
    found = teacher_of(tiny_configs, student, input_size=size)(inputs).maps[LOGITS]
    resized = F.interpolate(inputs, expected, mode='bilinear', align_corners=False)
    assert torch.equal(found, teacher_of(tiny_configs, student)(resized).maps[LOGITS])
    assert found.shape[2:] == (expected[0] // 8, expected[1] // 8)


def test_a_network_that_takes_one_size_tells_it(tiny_configs, batch, tmp_path):
    """A BEiT's positions are relative to a fixed grid."""
    norm = {'type': 'BN'}
    config = {
        'type': 'EncoderDecoder',
        'backbone': {
            'type': 'BEiT',
            'img_size': (48, 80),
            'patch_size': 16,
            'embed_dims': 16,
            'num_layers': 2,
            'num_heads': 2,
            'mlp_ratio': 2,
            'out_indices': (1,),
            'qv_bias': True,
            'init_values': 0.1,
        },
        'decode_head': {
            'type': 'FCNHead',
            'in_channels': 16,
            'channels': 8,
            'num_classes': 19,
            'norm_cfg': norm,
            'num_convs': 1,
        },
        'data_preprocessor': {'type': 'SegDataPreProcessor'},
        'train_cfg': {},
        'test_cfg': {'mode': 'whole'},
    }
    network = MODELS.build(config).eval()
    torch.save(network.state_dict(), tmp_path / 'beit.pth')
    student = plain_student(tiny_configs)
    teacher = MMSegTeacher(config, tmp_path / 'beit.pth')
    teacher.build(student, [None])
    images = F.interpolate(batch[0], (48, 80), mode='bilinear', align_corners=False)
    expected = network(images, mode='tensor')
    torch.testing.assert_close(teacher(batch[0]).maps[LOGITS], expected, atol=1e-5, rtol=1e-4)
    assert 'images resized to 48×80' in teacher.summary()


@pytest.fixture
def five_bands(tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.model.backbone.in_channels = 5
    cfg.model.data_preprocessor = {'type': 'SegDataPreProcessor', 'size': (32, 64)}
    return build(cfg)


def test_channels_chooses_bands_in_the_order_of_the_network(tiny_configs, five_bands):
    images = torch.rand(2, 5, 32, 64) * 255
    found = teacher_of(tiny_configs, five_bands, channels=[4, 0, 2])(images).maps[LOGITS]
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    by_hand = (images.numpy()[:, [4, 0, 2]] - mean[:, None, None]) / std[:, None, None]
    three = build(tiny_configs['student'])
    expected = teacher_of(tiny_configs, three)(torch.tensor(by_hand, dtype=torch.float32)).maps[LOGITS]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    'options, message',
    [
        ({}, r'takes images of 3 channels, and gets 5. Choose 3 of them with teacher.channels=\[0, 1, 2\]'),
        ({'channels': [0, 1]}, 'takes images of 3 channels, and gets 2'),
        ({'channels': [0, 1, 5]}, 'have 5 channels, numbered from 0 to 4'),
        ({'channels': []}, 'list of channel numbers'),
        ({'channels': ['r', 'g', 'b']}, 'list of channel numbers'),
        ({'input_size': 0}, 'number of pixels or'),
        ({'input_size': 'large'}, 'number of pixels or'),
        ({'precision': 'fp16'}, "None or 'bf16'"),
    ],
)
def test_wrong_sizes_and_channels(tiny_configs, five_bands, options, message):
    with pytest.raises(ConfigError, match=message):
        teacher_of(tiny_configs, five_bands, **options)


class Foreign(BaseSegmentor):
    """A network of the user's own: no decode head, and its output is the logits."""

    def __init__(self, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 19, 1))
        self.out_channels = 19

    def _forward(self, inputs, data_samples=None):
        return self.net(inputs)

    def extract_feat(self, inputs):
        return self.net[0](inputs)

    def encode_decode(self, inputs, batch_data_samples):
        return self.net(inputs)

    def loss(self, inputs, data_samples):
        raise NotImplementedError

    def predict(self, inputs, data_samples=None):
        raise NotImplementedError


class Pooling(Foreign):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.net.append(nn.AvgPool2d(5000))


@pytest.mark.parametrize('tap', [None, 'logits', 'net.0'])
def test_a_segmentor_of_ones_own_teaches_by_its_output(tiny_configs, batch, tmp_path, tap):
    network = Foreign().eval()
    torch.save(network.state_dict(), tmp_path / 'own.pth')
    student = plain_student(tiny_configs)
    config = {'type': Foreign, 'data_preprocessor': {'type': 'SegDataPreProcessor'}}
    teacher = MMSegTeacher(config, tmp_path / 'own.pth')
    teacher.build(student, [tap])
    maps = teacher(batch[0]).maps
    torch.testing.assert_close(maps['logits'], network(batch[0], mode='tensor'))
    assert set(maps) == {'logits', tap or 'logits'}


@pytest.fixture
def functions(monkeypatch):
    module = types.ModuleType('own_taps')
    module.last_two = lambda model: MapOf(
        ('backbone.layer3', 'backbone.layer4'), lambda third, fourth: torch.cat([third, fourth], 1)
    )
    module.auxiliary = lambda model: MapOf(('auxiliary_head.conv_seg',), lambda output: output)
    module.nothing = lambda model: None
    module.number = 3
    monkeypatch.setitem(sys.modules, 'own_taps', module)


def test_a_function_makes_a_map_of_several_modules(functions, tiny_configs, batch):
    losses = [{'type': 'FeatureLoss', 'student_tap': 'own_taps:last_two', 'teacher_tap': 'own_taps:last_two'}]
    cfg = Config.fromfile(tiny_configs['distilled'])
    model = build(cfg, distill_losses=losses)
    found = model.loss(*batch)
    found['distill.loss_feature'].backward()
    assert model.backbone.stem[0].weight.grad.abs().sum() > 0
    assert model.distill_losses[0].adapter.weight.shape[:2] == (64 + 128, 16 + 32)
    features = model.teacher.model.extract_feat(batch[0])
    maps = model.teacher(*batch).maps
    torch.testing.assert_close(maps['own_taps:last_two'], torch.cat([features[2], features[3]], 1))


@pytest.mark.parametrize(
    'tap, message',
    [
        ('own_taps:absent', 'cannot be imported'),
        ('no_such_package:tap', 'cannot be imported.*PYTHONPATH'),
        ('own_taps:number', 'is no function'),
        ('own_taps:nothing', 'must return MapOf'),
    ],
)
def test_functions_that_cannot_be_taps(functions, tiny_configs, tap, message):
    with pytest.raises(ConfigError, match=message):
        teacher_of(tiny_configs, build(tiny_configs['student']), [tap])


@pytest.mark.parametrize(
    'image, found, fits',
    [
        ((64, 128), (8, 16), True),
        ((65, 129), (9, 17), True),
        ((64, 128), (64, 128), True),
        ((30, 60), (2, 4), True),  # rounded down
        ((64, 64), (1, 1), True),
        ((64, 64), (1, 16), False),
        ((64, 128), (16, 16), False),
        ((64, 128), (16, 8), False),
        ((512, 1024), (6, 6), False),  # pooled
        ((360, 480), (45, 60), True),
    ],
)
def test_a_map_has_the_shape_of_the_images(image, found, fits):
    network, inputs = BaseModule(), torch.empty(2, 3, *image)
    if fits:
        check_map(torch.empty(2, 7, *found), inputs, network, 'tap', 'teacher')
    else:
        with pytest.raises(ConfigError, match=r"teacher: tap 'tap' puts out \(2, 7, .*no map \(N, C, h, w\)"):
            check_map(torch.empty(2, 7, *found), inputs, network, 'tap', 'teacher')


@pytest.mark.parametrize('shape', [(2, 7), (2, 7, 8), (3, 7, 8, 16), (2, 1, 7, 8, 16)])
def test_what_is_no_map(shape):
    with pytest.raises(ConfigError, match='no map'):
        check_map(torch.empty(shape), torch.empty(2, 3, 64, 128), BaseModule(), 'tap', 'student')


def test_the_first_line_tells_how_good_the_teacher_is(tiny_configs, tmp_path):
    """Its mIoU is that of mmseg's own test of the teacher on the same images."""
    work_dir = tmp_path / 'run'
    output = train(tiny_configs['distilled'], work_dir, '--cfg-options', 'train_cfg.max_iters=1')
    (line,) = [line for line in output.splitlines() if 'teacher on 4 of 4 validation images' in line]
    model = build(tiny_configs['distilled'])
    cfg = Config.fromfile(tiny_configs['distilled'])
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    hits, union = np.zeros(19), np.zeros(19)
    for data in dataset:
        batch = model.data_preprocessor(
            {'inputs': [data['inputs']], 'data_samples': [data['data_samples']]}, False
        )
        result = model.teacher.model.predict(batch['inputs'], batch['data_samples'])[0]
        predicted, label = result.pred_sem_seg.data.numpy(), data['data_samples'].gt_sem_seg.data.numpy()
        for c in range(19):
            counted = label != 255
            hits[c] += ((predicted == c) & (label == c)).sum()
            union[c] += (((predicted == c) & counted) | (label == c)).sum()
    expected = 100 * (hits / np.maximum(union, 1))[union > 0].mean()
    assert f'mIoU {expected:.1f}' in line
    assert _areas(model, dataset[0])[0].shape == (2, 19)


def test_the_first_look_counts_no_padding(tiny_configs):
    """A teacher that is always right has an IoU of 1, though images are padded for it."""
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=64)
    model = build(cfg)
    label = torch.zeros(1, 40, 40, dtype=torch.long)
    label[:, :20], label[:, 20:30, :20], label[:, 30:] = 0, 1, 2
    sample = SegDataSample(metainfo={'ori_shape': (40, 40), 'img_shape': (40, 40)})
    sample.gt_sem_seg = PixelData(data=label)
    right = F.one_hot(F.pad(label, (0, 24, 0, 24), value=5), 19).permute(0, 3, 1, 2).float()

    class Right:
        logits_tap, class_map = 'logits', None

        def __call__(self, inputs, data_samples):
            assert inputs.shape[2:] == (64, 64)
            return Answer({'logits': right})

    model.teacher = Right()
    ((hits, union),) = _areas(model, {'inputs': torch.zeros(3, 40, 40).byte(), 'data_samples': sample})
    assert torch.equal(hits, union) and union.sum() == 1600


def test_a_network_that_fails_on_its_first_images_names_the_size(tiny_configs, batch, tmp_path):
    network = Pooling()
    torch.save(network.state_dict(), tmp_path / 'own.pth')
    config = {'type': Pooling, 'data_preprocessor': {'type': 'SegDataPreProcessor'}}
    teacher = MMSegTeacher(config, tmp_path / 'own.pth')
    teacher.build(plain_student(tiny_configs), [None])
    with pytest.raises(ConfigError, match=r'it fails on images \(2, 3, 32, 64\) \(.*set teacher.input_size'):
        teacher(batch[0])


def test_a_function_may_read_an_auxiliary_head(functions, tiny_configs, batch):
    student = build(tiny_configs['student'])
    maps = teacher_of(tiny_configs, student, ['own_taps:auxiliary'])(batch[0]).maps
    expected = teacher_of(tiny_configs, student, ['auxiliary_head.conv_seg'])(batch[0]).maps
    assert torch.equal(maps['own_taps:auxiliary'], expected['auxiliary_head.conv_seg'])


def test_the_metafiles_figure_is_found_by_the_configs_name():
    entry = published('mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py')
    assert (entry.dataset, entry.miou) == ('Cityscapes', 79.76)
    assert entry.weights.endswith('pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth')
    assert published('configs/own/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py') == entry
    assert published('configs/own/mine.py') is None
