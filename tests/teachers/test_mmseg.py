import copy
import http.server
import logging
import pickle
import threading

import pytest
import torch
from helpers import build
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmseg.models import SegDataPreProcessor
from mmseg.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdd_seg.deploy.load import build_plain
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers.frozen import FrozenModule
from bdd_seg.teachers.mmseg import MMSegTeacher
from bdd_seg.teachers.normalise import Normalisation, renormalise

LOGITS = 'decode_head.conv_seg'


@pytest.fixture
def student(tiny_configs):
    return build(tiny_configs['student'])


@pytest.fixture
def teacher(tiny_configs, student):
    teacher = MMSegTeacher(str(tiny_configs['teacher']), str(tiny_configs['checkpoint']))
    teacher.build(student, [None])
    return teacher


@pytest.fixture
def rebuilt(tiny_configs, tmp_path, student):
    """Build a teacher from a checkpoint whose content a function has changed."""

    def rebuild(change, **kwargs):
        content = change(torch.load(tiny_configs['checkpoint'], weights_only=True))
        torch.save(content, tmp_path / 'changed.pth')
        teacher = MMSegTeacher(str(tiny_configs['teacher']), str(tmp_path / 'changed.pth'), **kwargs)
        teacher.build(student, [None])
        return teacher

    return rebuild


def test_answers_as_the_trained_network_does_in_eval_mode(teacher, tiny_configs, batch):
    network = build(tiny_configs['teacher'])
    network.load_state_dict(torch.load(tiny_configs['checkpoint'], weights_only=True)['state_dict'])
    network.eval()
    inputs, _ = batch
    logits = teacher(inputs).maps[LOGITS]
    expected = network(inputs, mode='tensor')
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    assert logits.is_contiguous()
    assert torch.equal(logits, teacher(inputs).maps[LOGITS])
    assert logits.requires_grad is False
    network.train()
    assert not torch.allclose(logits, network(inputs, mode='tensor'))  # so eval mode does matter here


def test_is_frozen(teacher, batch):
    teacher(batch[0])
    before = copy.deepcopy(teacher.model.state_dict())
    for _ in range(3):
        teacher(batch[0])
    after = teacher.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in teacher.model.modules())
    assert not teacher.model.with_auxiliary_head


def test_other_taps(tiny_configs, student, batch):
    teacher = MMSegTeacher(str(tiny_configs['teacher']), str(tiny_configs['checkpoint']))
    teacher.build(student, ['backbone.layer4'])
    outputs = teacher(batch[0]).maps
    torch.testing.assert_close(outputs['backbone.layer4'], teacher.model.extract_feat(batch[0])[3])
    assert set(outputs) == {'backbone.layer4', LOGITS}
    with pytest.raises(
        ConfigError, match=r"^teacher \(.*\): tap 'backbone.layer5' names no module.*backbone\.layer4"
    ):
        teacher.build(student, ['backbone.layer5'])


def test_building_draws_no_random_number(tiny_configs, student):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    MMSegTeacher(str(tiny_configs['teacher']), str(tiny_configs['checkpoint'])).build(student, [None])
    assert torch.equal(torch.rand(4), expected)


def test_copies_and_pickles_carry_no_network(teacher):
    for twin in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        assert not twin.is_built
        assert (twin.config, twin.checkpoint) == (teacher.config, teacher.checkpoint)
    assert teacher.is_built


def test_config_as_a_dict(tiny_configs, student, batch, teacher):
    whole = Config.fromfile(tiny_configs['teacher'])
    for config in (whole.to_dict(), whole.model.to_dict()):
        other = MMSegTeacher(config, str(tiny_configs['checkpoint']))
        other.build(student, [None])
        assert torch.equal(other(batch[0]).maps[LOGITS], teacher(batch[0]).maps[LOGITS])


@pytest.mark.parametrize(
    'change',
    [
        lambda c: c['state_dict'],
        lambda c: {'state_dict': {f'module.{k}': v for k, v in c['state_dict'].items()}},
        lambda c: {f'module.{k}': v for k, v in c['state_dict'].items()},
        lambda c: {'state_dict': {k: v for k, v in c['state_dict'].items() if 'auxiliary' not in k}},
        lambda c: {'state_dict': {**c['state_dict'], 'auxiliary_head.extra': torch.zeros(1)}},
    ],
    ids=['plain', 'module prefix', 'plain with prefix', 'without the unused head', 'more in the unused head'],
)
def test_forms_of_checkpoint(rebuilt, teacher, batch, change):
    assert torch.equal(rebuilt(change)(batch[0]).maps[LOGITS], teacher(batch[0]).maps[LOGITS])


def test_weights_that_do_not_fit_are_listed(rebuilt):
    def change(content):
        weights = content['state_dict']
        del weights['decode_head.conv_seg.bias']
        weights['backbone.stem.0.weight'] = torch.zeros(1, 2, 3)
        weights['neck.weight'] = torch.zeros(1)
        return content

    with pytest.raises(ConfigError) as error:
        rebuilt(change)
    message = str(error.value)
    assert '1 missing: decode_head.conv_seg.bias' in message
    assert '1 unexpected: neck.weight' in message
    assert '1 of another shape: backbone.stem.0.weight (1, 2, 3) instead of (2, 3, 3, 3)' in message


def test_from_a_url(tiny_configs, student, teacher, batch, tmp_path, monkeypatch):
    """Downloaded once from a server on this machine, then read from the cache."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tiny_configs['checkpoint'].parent))

        def log_message(self, _format, *args):
            requests.append(str(args[0]))

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/teacher.pth'
        for _ in range(2):
            downloaded = MMSegTeacher(str(tiny_configs['teacher']), url)
            downloaded.build(student, [None])
            assert torch.equal(downloaded(batch[0]).maps[LOGITS], teacher(batch[0]).maps[LOGITS])
        missing = MMSegTeacher(str(tiny_configs['teacher']), url.replace('teacher', 'absent'))
        with pytest.raises(
            ConfigError, match=r'absent.pth.* cannot be downloaded \(HTTP Error 404.*put the file'
        ):
            missing.build(student, [None])
        server.shutdown()
    assert requests[0].startswith('GET /teacher.pth')
    assert sum('teacher.pth' in request for request in requests) == 1


@pytest.mark.parametrize(
    'change, message',
    [
        ({'config': 'nowhere.py'}, "config 'nowhere.py' does not exist"),
        ({'checkpoint': 'nowhere.pth'}, "checkpoint 'nowhere.pth' does not exist"),
        ({'config': {'data_root': 'x'}}, 'has no model'),
        (
            {'config': 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1025.py'},
            'Did you mean pspnet_r18-d8',
        ),
    ],
)
def test_what_is_missing(tiny_configs, student, change, message):
    arguments = {
        'config': str(tiny_configs['teacher']),
        'checkpoint': str(tiny_configs['checkpoint']),
        **change,
    }
    with pytest.raises(ConfigError, match=message):
        MMSegTeacher(**arguments).build(student, [None])


def test_numbers_of_classes_must_agree(tiny_configs, student):
    config = Config.fromfile(tiny_configs['teacher'])
    config.model.decode_head.num_classes = 150
    with pytest.raises(ConfigError, match='predicts 150 classes, the student 19'):
        MMSegTeacher(config.to_dict(), str(tiny_configs['checkpoint'])).build(student, [None])


@pytest.fixture
def training_data():
    """Tell, as a Runner does, what classes the training data has."""
    hub = MessageHub.get_current_instance()
    yield lambda *names: hub.update_info('dataset_meta', {'classes': names})
    hub.pop_info('dataset_meta')


def test_class_names_must_agree(rebuilt, training_data):
    def named(meta, **kwargs):
        return rebuilt(lambda content: {**content, 'meta': meta}, **kwargs)

    new, old = {'dataset_meta': {'classes': ('road', 'car', 'sky')}}, {'CLASSES': ['road', 'car', 'sky']}
    training_data('road', 'car', 'sky')
    for meta in (new, old):
        named(meta).check_data()
    training_data('road', 'sky', 'car')
    for meta in (new, old):
        with pytest.raises(
            ConfigError, match="first differences 1: 'car' against 'sky'; 2: 'sky' against 'car'"
        ):
            named(meta).check_data()
    named(new, check_class_names=False).check_data()
    with pytest.raises(ConfigError, match=r"19 against 3.*class_map=\{'road': 'road', 'sidewalk': None"):
        named({}).check_data()  # where the checkpoint does not tell, the config's data set does


def preprocess(images, **settings):
    preprocessor = SegDataPreProcessor(**settings)
    return preprocessor, preprocessor({'inputs': list(images)})['inputs']


IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'bgr_to_rgb': True}
CAFFE = {'mean': [103.53, 116.28, 123.675], 'std': [1.0, 1.0, 1.0], 'bgr_to_rgb': False}
UNIT = {'mean': [0.0, 0.0, 0.0], 'std': [255.0, 255.0, 255.0], 'bgr_to_rgb': True}
RAW: dict = {}


@pytest.mark.parametrize('source', [IMAGENET, CAFFE, UNIT, RAW])
@pytest.mark.parametrize('target', [IMAGENET, CAFFE, UNIT, RAW])
def test_renormalise_gives_what_the_teachers_preprocessor_would(source, target):
    images = torch.randint(0, 256, (2, 3, 5, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    source_module, normalised = preprocess(images, **source)
    target_module, expected = preprocess(images, **target)
    found = renormalise(normalised, Normalisation.of(source_module), Normalisation.of(target_module))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_a_teacher_with_its_own_normalisation_gets_it(tiny_configs, student, batch, teacher):
    config = Config.fromfile(tiny_configs['teacher'])
    config.model.data_preprocessor.update(CAFFE)
    other = MMSegTeacher(config.to_dict(), str(tiny_configs['checkpoint']))
    other.build(student, [None])
    inputs, _ = batch
    ours, its = (Normalisation.of(one.data_preprocessor) for one in (student, other.model))
    as_it_was_trained = renormalise(inputs, ours, its)
    assert torch.equal(other(inputs).maps[LOGITS], teacher(as_it_was_trained).maps[LOGITS])
    assert not torch.allclose(other(inputs).maps[LOGITS], teacher(inputs).maps[LOGITS])


def test_a_data_preprocessor_beside_the_model_is_the_models(tiny_configs, tmp_path, student):
    """A Runner gives it to the model, so such a config trains with it."""
    cfg = Config.fromfile(tiny_configs['teacher'])
    cfg.data_preprocessor = {**cfg.model.pop('data_preprocessor'), **CAFFE}
    cfg.dump(tmp_path / 'beside.py')
    for config in (cfg.to_dict(), str(tmp_path / 'beside.py')):
        teacher = MMSegTeacher(config, str(tiny_configs['checkpoint']))
        teacher.build(student, [None])
        assert teacher.facts.normalisation.mean == pytest.approx(CAFFE['mean'])
    plain = build_plain(load_config(tmp_path / 'beside.py'))
    assert plain.data_preprocessor.mean.flatten().tolist() == pytest.approx(CAFFE['mean'])


@pytest.fixture
def messages():
    """The messages logged during a test."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    'wrong, percent, warned', [((0, 0), 100, False), ((3, 3), 75, False), ((4, 3), 70.8, True)]
)
def test_accuracy_and_the_warning_when_guessing(teacher, messages, wrong, percent, warned):
    """Of three rows of labels that count, two are of the commonest class."""
    label = torch.zeros(2, 16, 16, dtype=torch.long)
    label[:, :4] = 255
    label[:, 12:] = 1
    predicted = label[:, ::4, ::4] % 255
    for image, positions in enumerate(wrong):
        predicted[image, 1, :positions] = 2
    logits = torch.nn.functional.one_hot(predicted, 300).permute(0, 3, 1, 2).float()
    for _ in range(12):
        assert teacher.accuracy(logits, label, ignore_index=255).item() == pytest.approx(percent, abs=0.1)
    warnings = [message for message in messages if 'hardly better than guessing' in message]
    assert len(warnings) == warned
    if warned:
        assert '70.8% of the pixels of the first 5 batches' in warnings[0]
        assert 'commonest class 66.7%' in warnings[0]


def test_follows_the_students_dtype(teacher, batch):
    logits = teacher(batch[0].double()).maps[LOGITS]
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), teacher(batch[0]).maps[LOGITS], atol=1e-5, rtol=1e-4)


def batch_norms(teacher: MMSegTeacher) -> list[str]:
    return [name for name, module in teacher.model.named_modules() if isinstance(module, _BatchNorm)]


def test_batch_norm_is_folded_into_the_convolutions(teacher, batch):
    before = batch_norms(teacher)
    teacher(batch[0])
    assert len(before) > 50
    assert batch_norms(teacher) == []


def test_a_tap_before_its_batch_norm_is_not_folded(tiny_configs, student, batch, messages):
    teacher = MMSegTeacher(str(tiny_configs['teacher']), str(tiny_configs['checkpoint']))
    teacher.build(student, ['backbone.layer1.0.conv1'])
    network, seen = copy.deepcopy(teacher.model), []
    network.backbone.layer1[0].conv1.register_forward_hook(lambda *args: seen.append(args[2]))
    network(batch[0], mode='tensor')
    outputs = teacher(batch[0]).maps
    torch.testing.assert_close(outputs['backbone.layer1.0.conv1'], seen[0])
    assert any('not folded' in text and 'backbone.layer1.0.conv1' in text for text in messages)


class Misleading(nn.Module):
    """Names a convolution right before a BatchNorm that does not follow it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, inputs):
        return self.conv(self.norm(inputs))


@pytest.mark.parametrize('channels', [3, 8])
def test_a_network_whose_names_mislead_is_left_as_it_is(channels, messages):
    network = Misleading(channels).eval()
    if channels == 8:  # fits, and would give something else
        network.conv = nn.Conv2d(8, 8, 1)
    nn.init.normal_(network.norm.running_mean)
    frozen = FrozenModule(network, ['conv'])
    image = torch.randn(1, channels, 8, 8)
    torch.testing.assert_close(frozen(image)['conv'], network(image))
    assert any('BatchNorm is not folded' in text for text in messages)


def test_batch_norm_that_mmcv_cannot_fold_is_left(tiny_configs, student, batch, tmp_path, messages):
    norm = {'type': 'BN', 'affine': False}
    config = Config.fromfile(tiny_configs['teacher']).model
    config.backbone.norm_cfg = config.decode_head.norm_cfg = norm
    config.pop('auxiliary_head')
    torch.save(MODELS.build(config).state_dict(), tmp_path / 'plain.pth')
    teacher = MMSegTeacher(dict(config), str(tmp_path / 'plain.pth'))
    teacher.build(student, [None])
    expected = copy.deepcopy(teacher.model)(batch[0], mode='tensor')
    torch.testing.assert_close(teacher(batch[0]).maps[LOGITS], expected)
    assert any('not folded into its convolutions: TypeError' in text for text in messages)


def test_normalisation_given_as_tuples_is_the_same(tiny_configs):
    config = Config.fromfile(tiny_configs['teacher']).model.to_dict()
    listed = MMSegTeacher(copy.deepcopy(config), 'absent.pth').fingerprint()
    config['data_preprocessor']['mean'] = tuple(config['data_preprocessor']['mean'])
    assert MMSegTeacher(config, 'absent.pth').fingerprint() == listed
    assert listed['normalisation']['mean'] == [123.675, 116.28, 103.53]
    assert listed['checkpoint'] is None


def test_bf16_changes_the_answers_slightly(tiny_configs, student, batch, teacher):
    arguments = str(tiny_configs['teacher']), str(tiny_configs['checkpoint'])
    coarse = MMSegTeacher(*arguments, precision='bf16')
    coarse.build(student, [None])
    exact, rounded = teacher(batch[0]).maps[LOGITS], coarse(batch[0]).maps[LOGITS]
    assert rounded.dtype == torch.float32
    assert 1e-4 < ((rounded - exact).norm() / exact.norm()).item() < 0.03
    with pytest.raises(ConfigError, match="precision must be None or 'bf16', got 'int8'"):
        MMSegTeacher(*arguments, precision='int8')


def test_runs_in_the_students_autocast(teacher, batch):
    exact = teacher(batch[0]).maps[LOGITS]
    with torch.autocast('cpu', torch.bfloat16):
        rounded = teacher(batch[0]).maps[LOGITS]
    assert rounded.dtype == torch.float32
    assert 1e-4 < ((rounded - exact).norm() / exact.norm()).item() < 0.03


@pytest.fixture
def compiled(tiny_configs, student):
    teacher = MMSegTeacher(str(tiny_configs['teacher']), str(tiny_configs['checkpoint']), compile=True)
    teacher.build(student, [None])
    return teacher


def test_runs_through_torch_compile(compiled, batch, monkeypatch):
    """tests/stress/test_compile.py has the real one, which takes half a minute."""
    monkeypatch.setattr(torch, 'compile', lambda run: lambda inputs: {LOGITS: 2 * run(inputs)[LOGITS]})
    doubled = compiled(batch[0]).maps[LOGITS]
    assert compiled.network.is_compiled
    compiled.network._run = compiled.network._tapped
    assert torch.equal(doubled, 2 * compiled(batch[0]).maps[LOGITS])


def test_where_it_cannot_compile_it_runs_without(compiled, teacher, batch, messages, monkeypatch):
    def fail(_):
        raise RuntimeError('no compiler found\nmuch more')

    monkeypatch.setattr(torch, 'compile', lambda _: fail)
    for _ in range(2):
        assert torch.equal(compiled(batch[0]).maps[LOGITS], teacher(batch[0]).maps[LOGITS])
    assert [m for m in messages if 'compile' in m] == [
        'The teacher runs without torch.compile, which failed: RuntimeError: no compiler found'
    ]


def test_a_head_that_draws_random_numbers_answers_alike(tiny_configs, tmp_path, batch):
    """SegNeXt's head initialises its matrix factorisation at random, in eval mode too."""
    head = {
        'type': 'LightHamHead',
        'in_channels': [8, 16],
        'in_index': [0, 1],
        'channels': 8,
        'ham_channels': 8,
    }
    norm = {'type': 'BN'}
    config = Config.fromfile(tiny_configs['student'])
    config.model.backbone.update(norm_cfg=norm)
    config.model.decode_head = {
        **head,
        'num_classes': 19,
        'norm_cfg': norm,
        'ham_kwargs': {'MD_R': 4},
        'loss_decode': {'type': 'CrossEntropyLoss'},
    }
    config.model.backbone.base_channels, config.model.backbone.stem_channels = 8, 8
    config.model.pop('auxiliary_head')
    torch.save(build(config).state_dict(), tmp_path / 'ham.pth')
    teacher = MMSegTeacher(config.to_dict(), str(tmp_path / 'ham.pth'))
    teacher.build(build(tiny_configs['student']), [None])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = teacher(batch[0]).maps[LOGITS]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(teacher(batch[0]).maps[LOGITS], first)


@pytest.mark.parametrize('content', [{'state_dict': None}, {'epoch': 3}, {1: torch.zeros(1)}])
def test_dicts_that_are_no_weights(rebuilt, content):
    with pytest.raises(ConfigError, match='holds no dict of named tensors'):
        rebuilt(lambda _: content)


def test_each_machine_downloads_for_itself(tmp_path, monkeypatch):
    """The first process of a machine downloads, whatever its global rank; the others wait for it."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    fetched = []

    def fetch(url, path):
        fetched.append(url)
        torch.save({'weight': torch.zeros(1)}, path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    monkeypatch.setenv('RANK', '5')
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(ConfigError, match='the first process of this machine says why'):
        load_checkpoint('http://127.0.0.1/a.pth')
    assert fetched == []
    monkeypatch.setenv('RANK', '4')
    monkeypatch.setenv('LOCAL_RANK', '0')
    assert load_checkpoint('http://127.0.0.1/a.pth') == {'weight': torch.zeros(1)}
    assert fetched == ['http://127.0.0.1/a.pth']
