"""Teachers in ONNX files, which the tests write themselves."""

import copy
import json
import logging
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, build
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmseg.registry import MODELS
from torch import nn

from bdd_seg.errors import ConfigError
from bdd_seg.teachers import EnsembleTeacher, OnnxTeacher
from bdd_seg.teachers.cached.store import TeacherCache

pytest.importorskip('onnxruntime', reason='onnxruntime, an extra, is not installed')
onnx = pytest.importorskip('onnx', reason='onnx, which writes the files of these tests, is not installed')
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

LOADED = {'mean': None, 'std': None, 'bgr_to_rgb': False}  # images as they are loaded
IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
POOLED, LOGITS = 'backbone.pooled', 'decode/logits:0'


def weight(classes=19, bands=3):
    return np.random.default_rng(0).normal(size=(classes, bands)).astype('float32') / 100


def write(
    path, classes=19, images=('N', 3, 'H', 'W'), kind=TensorProto.FLOAT, outputs=(LOGITS,), metadata=None
):
    """A file that averages images over 2×2 pixels, and classifies them by a 1×1 convolution."""
    bands = images[1] if isinstance(images[1], int) else 3
    filters = weight(classes, bands)[:, :, None, None].astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node('AveragePool', ['images'], [POOLED], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node('Conv', [POOLED, 'weight'], [LOGITS]),
        helper.make_node('Identity', [LOGITS], ['logits']),
        helper.make_node('ArgMax', [LOGITS], ['labels'], axis=1),
        helper.make_node('GlobalAveragePool', [LOGITS], ['global']),
        helper.make_node('Flatten', ['global'], ['flat']),
        # Its number of channels is known when it runs, no earlier.
        helper.make_node('Compress', [LOGITS, 'all'], ['open'], axis=1),
    ]
    kinds = {'labels': TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        'tiny',
        [helper.make_tensor_value_info('images', kind, images)],
        [helper.make_tensor_value_info(name, kinds.get(name, kind), None) for name in outputs],
        [
            numpy_helper.from_array(filters, 'weight'),
            numpy_helper.from_array(np.ones(classes, bool), 'all'),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def expected(images, classes=19):
    """The file's answer in numpy, (N, C, H / 2, W / 2) float64."""
    n, bands, height, width = images.shape
    pooled = np.asarray(images, dtype=float).reshape(n, bands, height // 2, 2, width // 2, 2).mean((3, 5))
    return torch.from_numpy(np.einsum('cb,nbhw->nchw', weight(classes, bands), pooled))


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / 'model.onnx')


@pytest.fixture
def messages():
    found, handler = [], logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def built(student, path, taps=(None,), **settings):
    teacher = OnnxTeacher(str(path), **{**LOADED, **settings})
    teacher.build(student, taps)
    return teacher


def assert_close(found, reference, atol=1e-4, rtol=1e-4):
    torch.testing.assert_close(found.double(), reference, atol=atol, rtol=rtol)


def test_answers_as_the_graph_in_numpy(student, file, inputs, images):
    teacher = built(student, file)
    maps = teacher(inputs).maps
    assert [*maps] == ['logits']
    assert_close(maps['logits'], expected(images))
    assert maps['logits'].dtype == torch.float32
    assert not maps['logits'].requires_grad
    assert teacher.summary() == f'{file}, 0.00 MB, CPUExecutionProvider'
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    (direct,) = session.run(None, {'images': images.float().numpy()})
    torch.testing.assert_close(maps['logits'], torch.from_numpy(direct), atol=1e-4, rtol=1e-4)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(teacher(inputs).maps['logits'], maps['logits'])
    assert_close(teacher(inputs.double()).maps['logits'], expected(images))


def test_the_stated_normalisation(student, file, inputs, images):
    red_first = images.flip(1).double().numpy()
    mean, std = (np.array(IMAGENET[key]).reshape(3, 1, 1) for key in ('mean', 'std'))
    found = built(student, file, **IMAGENET, bgr_to_rgb=True)(inputs).maps['logits']
    assert_close(found, expected((red_first - mean) / std))


def test_a_network_exported_by_torch_answers_as_itself(student, inputs, images, tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 19, 1),
        nn.Upsample(scale_factor=2, mode='bilinear'),
    ).eval()
    nn.init.normal_(network[1].running_mean, std=30)
    path = tmp_path / 'exported.onnx'
    torch.onnx.export(network, (torch.zeros(1, 3, 32, 64),), path, dynamo=False, opset_version=17)
    teacher = built(student, path)  # torch fixes the size, and a batch of 1
    with torch.no_grad():
        expected_logits = network(images.float())
    torch.testing.assert_close(teacher(inputs).maps['logits'], expected_logits, atol=1e-3, rtol=1e-4)
    smaller = torch.nn.functional.interpolate(inputs, (16, 32), mode='bilinear')
    assert teacher(smaller).maps['logits'].shape == (2, 19, 32, 64)


@pytest.mark.parametrize('shape', [(1, 3, 16, 16), (1, 3, 'H', 16), ('N', 3, 16, 16)])
def test_fixed_sizes(student, tmp_path, inputs, images, shape):
    path = write(tmp_path / 'fixed.onnx', images=shape)
    settings = {} if shape[2] == 16 else {'input_size': 16}
    resized = torch.nn.functional.interpolate(images.double(), (16, 16), mode='bilinear')
    teacher = built(student, path, **settings)
    assert_close(teacher(inputs).maps['logits'], expected(resized), atol=2e-3)
    assert 'images resized to 16×16' in teacher.summary()
    with pytest.raises(ConfigError, match=r'it takes images \[.*16\] only. Give a teacher.input_size'):
        built(student, path, input_size=32)


def test_one_fixed_length_needs_an_input_size(student, tmp_path):
    with pytest.raises(ConfigError, match='Give a teacher.input_size'):
        built(student, write(tmp_path / 'fixed.onnx', images=(1, 3, 'H', 16)))


def test_float16(student, tmp_path, inputs, images):
    found = built(student, write(tmp_path / 'model.onnx', kind=TensorProto.FLOAT16))(inputs).maps['logits']
    assert found.dtype == torch.float32
    assert_close(found, expected(images), atol=0.02)


def test_outputs_are_taps(student, tmp_path, inputs, images):
    path = write(tmp_path / 'model.onnx', outputs=['labels', POOLED, LOGITS])
    features = built(student, path, [POOLED])
    assert features.logits_tap == ''
    assert [*features(inputs).maps] == [POOLED]
    both = built(student, path, [POOLED, None], output=LOGITS)(inputs).maps
    assert_close(both['logits'], expected(images))
    assert_close(both[POOLED], torch.nn.functional.avg_pool2d(images.double(), 2))
    assert OnnxTeacher(path, output=LOGITS, **LOADED).map_channels(POOLED) == 3
    assert OnnxTeacher(path, output=LOGITS, **LOADED).map_channels(None) == 19


def test_an_only_output_may_be_features(student, tmp_path, inputs, images):
    teacher = built(student, write(tmp_path / 'model.onnx', outputs=[POOLED]), [POOLED])
    assert teacher.logits_tap == ''
    assert_close(teacher(inputs).maps[POOLED], torch.nn.functional.avg_pool2d(images.double(), 2))


def test_an_output_named_logits_has_them(student, tmp_path, inputs, images):
    path = write(tmp_path / 'model.onnx', outputs=[POOLED, 'logits'])
    assert_close(built(student, path, ['logits'])(inputs).maps['logits'], expected(images))
    teacher = built(student, path, [POOLED])  # for the accuracy
    assert [*teacher(inputs).maps] == [POOLED, 'logits']


def test_a_number_of_classes_that_the_file_does_not_tell(student, tmp_path, inputs, images):
    path = write(tmp_path / 'model.onnx', outputs=['open'])
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert not isinstance(session.get_outputs()[0].shape[1], int)
    assert OnnxTeacher(path, **LOADED).map_channels(None) == 19
    assert_close(built(student, path)(inputs).maps['logits'], expected(images))
    with pytest.raises(ConfigError, match='predicts 7 classes, the student 19'):
        built(student, write(tmp_path / 'seven.onnx', 7, outputs=['open']))


def test_channels_of_images(student, tmp_path, inputs, images):
    path = write(tmp_path / 'two.onnx', images=('N', 2, 'H', 'W'))
    found = built(student, path, channels=[2, 0])(inputs).maps['logits']
    assert_close(found, expected(images.flip(1)[:, [2, 0]]))  # the student sees red first
    with pytest.raises(ConfigError, match='takes images of 2 channels, and gets 3'):
        built(student, path)


def test_class_names_in_the_file_and_their_map(student, tmp_path, file):
    names = ['road', 'car', 'van']
    path = write(tmp_path / 'three.onnx', 3, metadata={'classes': json.dumps(names)})
    class_map = {'road': 'way', 'car': 'vehicle', 'van': 'vehicle'}
    teacher = built(student, path, class_map=class_map)
    assert teacher.class_names == ('road', 'car', 'van')
    teacher.check_classes(['way', 'sky', 'vehicle'])
    logits = torch.randn(1, 3, 2, 2)
    found = teacher.class_map.teacher_logits(logits).softmax(1)
    torch.testing.assert_close(found[:, 1], logits.softmax(1)[:, 1:].sum(1))
    stated = built(student, path, class_map=class_map, class_names=['a', 'b', 'c'])
    assert stated.class_names == ('a', 'b', 'c')
    with pytest.raises(ConfigError, match='predicts 3 classes, the student 19'):
        built(student, path)
    with pytest.raises(ConfigError, match='has 2 class names and predicts 19 classes'):
        built(student, file, class_names=['road', 'car'])
    with pytest.raises(ConfigError, match='predicts 2 classes, the student 19'):
        OnnxTeacher(file, class_names=['road', 'car'], **LOADED).check({'decode_head': {'num_classes': 19}})
    broken = write(tmp_path / 'broken.onnx', metadata={'classes': 'road, car'})
    with pytest.raises(ConfigError, match="'classes' in its metadata is no list of names in JSON"):
        built(student, broken)


@pytest.mark.parametrize(
    'content, settings, message',
    [
        ({}, {'mean': ...}, r'teacher.mean is needed: .*from 0 to 255'),
        ({}, {'mean': [1, 2]}, r'takes images of 3 channels, and its mean and std are for 2'),
        ({}, {'precision': 'bf16'}, r"precision='bf16' and compile=True are not for an ONNX file"),
        ({}, {'compile': True}, r"precision='bf16' and compile=True are not for an ONNX file"),
        (
            {},
            {'output': 'logit'},
            r"teacher.output='logit' is none of its outputs. Its outputs: decode/logits:0",
        ),
        ({}, {'taps': [POOLED]}, r"teacher_tap 'backbone.pooled' is none of its outputs"),
        ({}, {'taps': [LOGITS]}, r"teacher_tap 'decode/logits:0' is none of its outputs that can be tapped"),
        (
            {'outputs': ['labels']},
            {},
            r"'labels' is a tensor\(int64\).*export the network without its argmax",
        ),
        (
            {'outputs': [LOGITS, POOLED]},
            {},
            r'is not told: give teacher.output=.*decode/logits:0 .*backbone.pooled ',
        ),
        ({'outputs': ['flat']}, {}, r"output 'flat' is .*, no map \(N, C, h, w\)"),
        ({'images': (4, 3, 'H', 'W')}, {}, r'takes batches of 4 images only'),
        ({'images': ('N', 'H', 'W', 3)}, {}, r'its inputs are images .*Expected one, images \(N, bands'),
    ],
)
def test_refused(student, tmp_path, content, settings, message):
    path = write(tmp_path / 'model.onnx', **content)
    with pytest.raises(ConfigError, match=message):
        built(student, path, **settings)


def test_images_on_which_the_graph_fails(student, file):
    teacher = built(student, file)
    with pytest.raises(ConfigError, match=r'does not run on images \(2, 5, 4, 4\): .*input_size='):
        teacher.network(torch.zeros(2, 5, 4, 4))


def test_a_missing_file_or_package(student, file, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"absent.onnx' is no file"):
        OnnxTeacher(tmp_path / 'absent.onnx', **LOADED).check({})
    teacher = OnnxTeacher(file, **LOADED)
    teacher.check({})
    monkeypatch.setattr(onnxruntime, '__version__', '1.23.2')
    with pytest.raises(ConfigError, match=r"onnxruntime 1.23.2 .*refused: pip install 'onnxruntime>="):
        teacher.check({})
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime .*pip install 'bdd-seg\[onnx\]'"):
        teacher.check({})
    assert teacher.fingerprint()['checkpoint']  # of a cached teacher, without onnxruntime


def test_on_a_gpu_that_onnxruntime_cannot_use_a_line_says_so(student, file, messages, monkeypatch):
    monkeypatch.setattr('bdd_seg.teachers.onnx.get_device', lambda: 'cuda')
    built(student, file)
    assert [text for text in messages if 'runs on the CPU' in text and 'onnxruntime-gpu' in text]


def test_the_fingerprint_tells_teachers_apart(file, tmp_path):
    def fingerprint(**change):
        return OnnxTeacher(**{'model': file, **LOADED, **change}).fingerprint()

    changes = [{}, {'output': LOGITS}, IMAGENET, {'bgr_to_rgb': True}, {'input_size': 32}, {'channels': [0]}]
    prints = [fingerprint(**change) for change in changes]
    assert prints[0] == fingerprint()
    (tmp_path / 'model.onnx.data').write_bytes(b'weights')
    prints.append(fingerprint())
    write(file, 5)
    prints.append(fingerprint())
    assert all(one != other for i, one in enumerate(prints) for other in prints[:i])
    assert fingerprint(model=tmp_path / 'absent.onnx')['checkpoint'] is None


def same_in_torch():
    network = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 19, 1, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(weight())[:, :, None, None])
    return network


def test_one_step_of_training(tiny_configs, file, batch):
    """Losses and gradients are those of the same network in torch."""
    inputs, samples = batch
    teacher = {'type': 'OnnxTeacher', 'model': str(file), **LOADED}
    torchs = {'type': 'ModuleTeacher', 'module': 'test_onnx:same_in_torch', **LOADED}
    losses, gradients = [], []
    for settings in (torchs, teacher):
        config = Config.fromfile(tiny_configs['distilled'])
        del config.model['teacher']  # or mmengine merges the two
        torch.manual_seed(0)
        model = build(config, teacher=settings, distill_losses=[{'type': 'KDLoss'}])
        torch.manual_seed(1)
        found = model.loss(inputs, copy.deepcopy(samples))
        model.parse_losses(found)[0].backward()
        gradients.append(model.backbone.stem[0].weight.grad)
        losses.append([found[key].item() for key in ('distill.loss_kd', 'distill.teacher_acc')])
    assert losses[0][0] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-3)


def test_an_ensemble_with_another_kind(tiny_configs, student, file, inputs):
    mmseg = {
        'type': 'MMSegTeacher',
        'config': str(tiny_configs['teacher']),
        'checkpoint': str(tiny_configs['checkpoint']),
    }
    ensemble = EnsembleTeacher([{'type': 'OnnxTeacher', 'model': str(file), **LOADED}, mmseg])
    ensemble.build(student, [None])
    maps = ensemble(inputs, []).maps
    first = maps['0.logits'].softmax(1)
    second = torch.nn.functional.interpolate(
        maps['1.decode_head.conv_seg'].softmax(1), first.shape[2:], mode='bilinear'
    )
    torch.testing.assert_close(maps['logits'].softmax(1), (first + second) / 2, atol=1e-4, rtol=1e-3)


def test_cached_by_the_tool(tiny_configs, tmp_path, scenes, file, student, monkeypatch):
    config, cache = tmp_path / 'onnx.py', tmp_path / 'cache'
    teacher = {'_delete_': True, 'type': 'OnnxTeacher', 'model': str(file), **LOADED}
    config.write_text(f'_base_ = {str(tiny_configs["distilled"])!r}\nmodel = dict(teacher={teacher!r})')
    tool = ROOT / 'tools/cache_teacher.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(config), '--out', str(cache), '--workers', '0'])
    runpy.run_path(str(tool), run_name='__main__')
    path = next((scenes / 'leftImg8bit/train').rglob('*.png'))
    found = TeacherCache(cache).read(str(path)).outputs['logits']
    assert_close(found, expected(cv2.imread(str(path)).transpose(2, 0, 1)[None])[0], atol=2e-3, rtol=2e-3)
    replayed = MODELS.build({'type': 'CachedTeacher', 'model': str(file), 'cache': str(cache), **LOADED})
    replayed.build(student, [None])  # compares it with the live teacher, which the config still names
    assert replayed.logits_tap == 'logits'
