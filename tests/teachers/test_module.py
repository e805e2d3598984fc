"""Teachers that a Python function makes. This file is the module that their settings name."""

import copy
import logging
import random
import runpy
import sys
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, build
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmseg.apis import init_model
from mmseg.registry import MODELS
from safetensors.torch import save_file
from torch import nn

from bdd_seg.distill.taps import MapOf
from bdd_seg.errors import ConfigError
from bdd_seg.teachers import ModuleTeacher
from bdd_seg.teachers.cached.store import TeacherCache

LOADED = {'mean': None, 'std': None, 'bgr_to_rgb': False}  # images as they are loaded
IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
CLASSES = [f'class {number}' for number in range(19)]
Output = namedtuple('Output', 'logits features')
FORMS = {
    'tensor': lambda logits, features: logits,
    'out': lambda logits, features: {'logits': features, 'out': logits},
    'logits': lambda logits, features: {'hidden': features, 'logits': logits},
    'attribute': lambda logits, features: SimpleNamespace(logits=logits),
    'named tuple': lambda logits, features: Output(logits, features),
    'tuple': lambda logits, features: (logits, features),
    'list': lambda logits, features: [logits, features],
    'labels': lambda logits, features: logits.argmax(1),
    'network': lambda logits, features: {'logits': logits, 'network': features},
}


class Net(nn.Module):
    def __init__(self, classes, bands, form):
        super().__init__()
        self.stem = nn.Conv2d(bands, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.classify = nn.Conv2d(8, classes, 1)
        self.form = form

    def forward(self, images):
        features = self.norm(self.stem(images)).relu()
        return FORMS[self.form](self.classify(features), features)


def net(classes=19, bands=3, form='tensor'):
    return Net(classes, bands, form)


class Pyramid(nn.Sequential):
    """Returns maps of several scales, as backbones do; one more child would change them."""

    def forward(self, images):
        maps = []
        for layer in self:
            images = layer(images)
            maps.append(images.tanh())
        return maps


def pyramid():
    low, high = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
    return Pyramid(OrderedDict(low=low, high=high))


def of_one_size():
    return nn.Sequential(nn.Unflatten(2, (32, 1)), nn.Flatten(2, 3), nn.Conv2d(3, 19, 1))


def drawing():
    """A network that draws from every generator."""
    network = net()
    with torch.no_grad():
        network.classify.bias.fill_(random.random() + np.random.rand())
    return network


def no_network(size=3):
    return [size]


def stem_doubled(model):
    return MapOf(('stem',), lambda output: 2 * output)


@pytest.fixture
def trained(tmp_path):
    """A network whose weights are in trained.pth and trained.safetensors."""
    network = net().eval()
    nn.init.normal_(network.norm.running_mean, std=30)
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'trained.pth')
    save_file(network.state_dict(), tmp_path / 'trained.safetensors')
    return network


def built(student, taps=(None,), module='test_module:net', **settings):
    teacher = ModuleTeacher(module, **{**LOADED, **settings})
    teacher.build(student, taps)
    return teacher


@pytest.mark.parametrize('form', [form for form in FORMS if form not in ('labels', 'network')])
def test_answers_as_the_network_alone(student, inputs, images, trained, tmp_path, form):
    checkpoint = tmp_path / 'trained.pth'
    teacher = built(student, arguments={'form': form}, checkpoint=checkpoint)
    found = teacher(inputs).maps
    assert [*found] == ['logits']
    torch.testing.assert_close(found['logits'], trained(images.float()), atol=1e-3, rtol=1e-4)
    assert found['logits'].shape == (2, 19, 16, 32)
    assert not found['logits'].requires_grad
    assert str(checkpoint) in teacher.summary() and '0.00 M parameters' in teacher.summary()


def test_safetensors_and_the_stated_normalisation(student, inputs, images, trained, tmp_path):
    teacher = built(student, checkpoint=tmp_path / 'trained.safetensors', **{**IMAGENET, 'bgr_to_rgb': True})
    red_first = images.flip(1).double().numpy()
    mean, std = (np.array(IMAGENET[key]).reshape(3, 1, 1) for key in ('mean', 'std'))
    expected = trained(torch.from_numpy((red_first - mean) / std).float())
    torch.testing.assert_close(teacher(inputs).maps['logits'], expected, atol=1e-4, rtol=1e-4)


def test_features_of_a_list_by_number_and_by_module(student, inputs, images):
    teacher = built(student, ['0', '1', 'high'], module='test_module:pyramid')
    assert teacher.logits_tap == ''
    network = teacher.model.network
    expected = network(images.float())
    maps = teacher(inputs).maps
    assert {tap: tuple(output.shape) for tap, output in maps.items()} == {
        '0': (2, 8, 16, 32),
        '1': (2, 16, 8, 16),
        'high': (2, 16, 8, 16),
    }
    for tap, output in zip('01', expected, strict=True):
        torch.testing.assert_close(maps[tap], output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps['high'].tanh(), expected[1], atol=1e-5, rtol=1e-4)
    by_module = built(student, ['low'], module='test_module:pyramid')
    assert [*by_module(inputs).maps] == ['low']
    with pytest.raises(ConfigError, match=r"'2' names no module .*Names nearby: .*0, 1"):
        built(student, ['2'], module='test_module:pyramid')


def test_features_beside_logits(student, inputs):
    teacher = built(student, [None, 'hidden', 'stem'], arguments={'form': 'logits'})
    maps = teacher(inputs).maps
    assert [*maps] == ['hidden', 'stem', 'logits']
    torch.testing.assert_close(teacher.model.network.classify(maps['hidden']), maps['logits'])
    named_alike = built(student, ['network', 'norm'], arguments={'form': 'network'})(inputs).maps
    torch.testing.assert_close(named_alike['network'], named_alike['norm'].relu())


def test_a_function_finds_a_map(student, inputs):
    teacher = built(student, ['test_module:stem_doubled', 'stem'])
    maps = teacher(inputs).maps
    torch.testing.assert_close(maps['test_module:stem_doubled'], 2 * maps['stem'])


def test_channels_of_maps_before_it_is_built():
    def channels(tap, **settings):
        return ModuleTeacher(**{'module': 'test_module:net', **LOADED, **settings}).map_channels(tap)

    assert channels(None, arguments={'classes': 5}, checkpoint='absent.pth') == 5
    assert channels('stem') == 8
    assert channels('1', module='test_module:pyramid') == 16
    assert channels('high', module='test_module:pyramid') == 16
    for tap in ('stem', 'hidden'):  # as they are spelled when it is built
        assert channels(tap, arguments={'form': 'logits'}) == 8
    with pytest.raises(ConfigError, match="'stern' names no module.*stem"):
        channels('stern')


def test_it_draws_no_random_number_and_is_made_alike(student, inputs):
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    def seed(number):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)

    seed(3)
    expected = draw()
    seed(3)
    one = built(student, module='test_module:drawing')
    assert draw() == expected
    other = built(student, module='test_module:drawing')  # in another process, say
    assert torch.equal(one(inputs).maps['logits'], other(inputs).maps['logits'])


def test_input_size(student, inputs, images):
    teacher = built(student, module='test_module:of_one_size', input_size=(32, 32))
    resized = torch.nn.functional.interpolate(images.float(), (32, 32), mode='bilinear')
    expected = copy.deepcopy(teacher.model)(resized)
    torch.testing.assert_close(teacher(inputs).maps['logits'], expected, atol=1e-3, rtol=1e-4)
    assert 'images resized to 32×32' in teacher.summary()


def test_channels_of_images(student, inputs, images):
    teacher = built(student, channels=[2, 0], arguments={'bands': 2})
    expected = copy.deepcopy(teacher.model)(images.flip(1).float()[:, [2, 0]])  # the student sees red first
    torch.testing.assert_close(teacher(inputs).maps['logits'], expected, atol=1e-3, rtol=1e-4)
    with pytest.raises(ConfigError, match='takes images of 2 channels, and gets 3'):
        built(student, arguments={'bands': 2})


def test_classes_and_their_map(student):
    names = ['road', 'car', 'van']
    settings = {'arguments': {'classes': 3}, 'class_names': names}
    teacher = built(student, class_map={'road': 'way', 'car': 'vehicle', 'van': 'vehicle'}, **settings)
    teacher.check_classes(['way', 'sky', 'vehicle'])
    logits = torch.randn(1, 3, 2, 2)
    probabilities = logits.softmax(1)
    found = teacher.class_map.teacher_logits(logits).softmax(1)
    torch.testing.assert_close(found[:, 1], probabilities[:, 1] + probabilities[:, 2])
    with pytest.raises(ConfigError, match='predicts 3 classes, the student 19'):
        built(student, **settings)
    with pytest.raises(ConfigError, match='predicts 3 classes, the student 19'):
        ModuleTeacher('test_module:net', **LOADED, **settings).check({'decode_head': {'num_classes': 19}})
    with pytest.raises(ConfigError, match='first differences 1: .car. against .sky.'):
        ModuleTeacher('test_module:net', **LOADED, **settings).check({}, ['road', 'sky', 'van'])


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'mean': ...}, r'teacher.mean is needed: .*values from 0 to 255.*mean=None'),
        ({'std': ...}, r'teacher.std is needed'),
        ({'std': [1, 0, 1]}, r'teacher.std must be a number for each channel'),
        ({'mean': 'imagenet'}, r"teacher.mean must be .*got 'imagenet'"),
        ({'std': float('nan')}, r'teacher.std must be .*got nan'),
        ({'mean': [1, 2, 3], 'std': [1, 2]}, r'teacher.mean and teacher.std must be for as many channels'),
        ({'module': 'test_module:nett'}, r"teacher.module: 'test_module:nett' cannot be imported"),
        ({'module': 'absent_package:net'}, r"teacher.module: 'absent_package:net' cannot be imported"),
        ({'module': net}, r"teacher.module must be 'package.module:factory'"),
        ({'module': 'test_module:no_network'}, r'must return an nn.Module, returned a list'),
        ({'arguments': {'clases': 19}}, r"teacher.arguments do not fit test_module:net: .*'clases'"),
        ({'arguments': [19]}, r'teacher.arguments must be a dict'),
        ({'arguments': {'form': 'labels'}}, r"returns no class logits. Expected .*'out' or 'logits'"),
        ({'arguments': {'classes': 5}}, r'predicts 5 classes, the student 19'),
        ({'class_names': ['road', 'car']}, r'has 2 class names and predicts 19 classes'),
        ({'class_names': 'road'}, r'teacher.class_names must be a list of names'),
        ({'module': 'test_module:of_one_size'}, r'does not run on images \(1, 3, 224, 224\).*input_size='),
        (
            {'checkpoint': 'absent.pth'},
            r"teacher \(test_module:net\): checkpoint 'absent.pth' does not exist",
        ),
        ({'checkpoint': 'absent.safetensors'}, r"checkpoint 'absent.safetensors' cannot be read"),
    ],
)
def test_refused(student, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(student, **settings)


def test_weights_are_loaded_strictly(student, trained, tmp_path):
    content = trained.state_dict()
    del content['classify.bias']
    for name, save in (('less.pth', torch.save), ('less.safetensors', save_file)):
        save(content, tmp_path / name)
        with pytest.raises(ConfigError, match=f"{name}' does not fit: 1 missing: classify.bias"):
            built(student, checkpoint=tmp_path / name)
    damaged = tmp_path / 'damaged.safetensors'
    damaged.write_bytes((tmp_path / 'trained.safetensors').read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r'damaged.safetensors. cannot be read'):
        built(student, checkpoint=damaged)


def test_a_normalisation_for_images_from_0_to_1_is_told(student):
    found, handler = [], logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        built(student, **IMAGENET)
        assert not found
        built(student, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        assert 'multiply mean and std by 255' in found[0]
    finally:
        logger.removeHandler(handler)


def test_the_fingerprint_tells_teachers_apart(trained, tmp_path):
    settings = {'module': 'test_module:net', **LOADED, 'checkpoint': tmp_path / 'trained.pth'}
    first = ModuleTeacher(**settings).fingerprint()
    assert first == ModuleTeacher(**settings).fingerprint()
    changes = [
        {'module': 'test_module:drawing'},
        {'arguments': {'form': 'out'}},
        {'checkpoint': tmp_path / 'trained.safetensors'},
        {'checkpoint': None},
        IMAGENET,
        {'bgr_to_rgb': True},
        {'input_size': 32},
        {'channels': [0, 1, 2]},
    ]
    prints = [first, *(ModuleTeacher(**{**settings, **change}).fingerprint() for change in changes)]
    assert all(one != other for i, one in enumerate(prints) for other in prints[:i])


def from_init_model(tiny_configs) -> dict:
    """The settings of tiny_configs' own teacher as a function makes it, which mmseg has."""
    return {
        'type': 'ModuleTeacher',
        'module': 'mmseg.apis:init_model',
        'arguments': {'config': str(tiny_configs['teacher']), 'device': 'cpu'},
        'checkpoint': str(tiny_configs['checkpoint']),
        **IMAGENET,
    }


def distiller(tiny_configs, teacher, **changes):
    config = Config.fromfile(tiny_configs['distilled'])
    del config.model['teacher']  # or mmengine merges the two
    return build(config, teacher=teacher, **changes)


def test_teaches_as_the_same_network_of_mmseg(tiny_configs, batch):
    """One step of training: same losses and gradients."""
    inputs, samples = batch
    other = {'config': str(tiny_configs['teacher']), 'checkpoint': str(tiny_configs['checkpoint'])}
    module, gradients, losses = from_init_model(tiny_configs), [], []
    for teacher in (module, other):
        torch.manual_seed(0)
        model = distiller(tiny_configs, teacher, distill_losses=[{'type': 'KDLoss'}])
        torch.manual_seed(1)
        found = model.loss(inputs, copy.deepcopy(samples))
        model.parse_losses(found)[0].backward()
        gradients.append(model.backbone.stem[0].weight.grad)
        losses.append((found['distill.loss_kd'].item(), found['distill.teacher_acc'].item()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][0] > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_features_teach(tiny_configs, batch):
    taps = {'loss_entry': '1', 'loss_module': 'low'}
    losses = [
        {'type': 'FeatureLoss', 'student_tap': 'backbone.layer1', 'teacher_tap': tap, 'loss_name': name}
        for name, tap in taps.items()
    ]
    teacher = {'type': 'ModuleTeacher', 'module': 'test_module:pyramid', **LOADED}
    model = distiller(tiny_configs, teacher, distill_losses=losses)
    found = model.loss(*batch)
    model.parse_losses(found)[0].backward()
    assert all(found[f'distill.{name}'] > 0 for name in taps)
    assert 'distill.teacher_acc' not in found
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.distill_losses.parameters())


def test_cached_by_the_tool(tiny_configs, tmp_path, scenes, student, monkeypatch):
    config, cache = tmp_path / 'module.py', tmp_path / 'cache'
    teacher = {'_delete_': True, **from_init_model(tiny_configs)}
    config.write_text(f'_base_ = {str(tiny_configs["distilled"])!r}\nmodel = dict(teacher={teacher!r})')
    tool = ROOT / 'tools/cache_teacher.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(config), '--out', str(cache), '--workers', '0'])
    runpy.run_path(str(tool), run_name='__main__')
    path = next((scenes / 'leftImg8bit/train').rglob('*.png'))
    network = init_model(str(tiny_configs['teacher']), device='cpu')
    network.load_state_dict(torch.load(tiny_configs['checkpoint'])['state_dict'])
    pixels = torch.from_numpy(cv2.imread(str(path))).permute(2, 0, 1)
    with torch.no_grad():
        logits = network(network.data_preprocessor({'inputs': [pixels]})['inputs'])[0]
    found = TeacherCache(cache).read(str(path)).outputs['logits'].float()
    torch.testing.assert_close(found, logits, atol=2e-3, rtol=2e-3)
    replayed = MODELS.build({**from_init_model(tiny_configs), 'type': 'CachedTeacher', 'cache': str(cache)})
    replayed.build(student, [None])  # compares it with the live teacher, which the config still names
    assert replayed.logits_tap == 'logits'
