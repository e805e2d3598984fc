import copy
import gc
import re
import weakref

import my_loss  # noqa: F401  registers it
import pytest
import torch
from helpers import ROOT, build
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner.checkpoint import load_state_dict
from mmseg.registry import MODELS
from torch import nn

from bdd_seg.distill import segmentor
from bdd_seg.distill.segmentor import CascadeSegDistiller, SegDistiller
from bdd_seg.errors import ConfigError
from bdd_seg.losses import BDDLoss
from bdd_seg.losses.pair import align

OPTIMIZER = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1, 'momentum': 0.9}}
FEATURES = {
    'type': 'FeatureLoss',
    'student_channels': 32,
    'teacher_channels': 128,
    'student_tap': 'backbone.layer4',
    'teacher_tap': 'backbone.layer4',
}


@pytest.fixture
def pair(tiny_configs):
    """The plain student and the distilled one, initialised from the same seed."""
    models = []
    for kind in ('student', 'distilled'):
        torch.manual_seed(0)
        models.append(build(tiny_configs[kind]))
    return models


def step(model, batch, optim_wrapper=None):
    """One training step on normalised images; returns the logged values."""
    torch.manual_seed(1)  # dropout
    model.train()
    inputs, samples = batch
    losses, log_vars = model.parse_losses(model.loss(inputs, samples))
    (optim_wrapper or build_optim_wrapper(model, copy.deepcopy(OPTIMIZER))).update_params(losses)
    return log_vars


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_is_the_plain_student_to_everything_else(pair, tiny_configs):
    student, distilled = pair
    assert isinstance(distilled, SegDistiller)
    assert distilled.teacher.is_built
    assert same_weights(student, distilled)  # the same keys, and initialised alike
    assert list(dict(student.named_parameters())) == list(dict(distilled.named_parameters()))
    assert student.load_state_dict(distilled.state_dict(), strict=True)
    groups = [build_optim_wrapper(m, copy.deepcopy(OPTIMIZER)).param_groups for m in pair]
    assert [len(g['params']) for g in groups[0]] == [len(g['params']) for g in groups[1]]
    teachers = {id(p) for p in distilled.teacher.model.parameters()}
    for model in (distilled, copy.deepcopy(distilled), ExponentialMovingAverage(distilled).module):
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in student.parameters())
        assert not teachers & {id(p) for p in model.parameters()}
    assert not copy.deepcopy(distilled).teacher.is_built


def test_no_teacher_is_built_for_testing(tiny_configs, batch):
    model = MODELS.build(Config.fromfile(tiny_configs['distilled']).model).eval()
    inputs, samples = batch
    model.predict(inputs, samples)
    model(inputs, mode='tensor')
    assert not model.teacher.is_built


def test_predicts_what_the_student_predicts(pair, batch):
    student, distilled = (model.eval() for model in pair)
    assert torch.equal(student(batch[0], mode='tensor'), distilled(batch[0], mode='tensor'))


@pytest.mark.parametrize(
    'loss',
    [
        {'type': 'BDDLoss', 'loss_weight': 0.0},
        {'type': 'BDDLoss', 'forward_weight': 0.0, 'reverse_weight': 0.0},
        {**FEATURES, 'loss_weight': 0.0},
    ],
)
def test_zero_weights_give_a_bit_equal_step(tiny_configs, batch, loss):
    weights, logs = [], []
    for kind in ('student', 'distilled'):
        torch.manual_seed(0)
        changes = {'distill_losses': [loss]} if kind == 'distilled' else {}
        model = build(tiny_configs[kind], **changes)
        optim_wrapper = build_optim_wrapper(model, copy.deepcopy(OPTIMIZER))
        for _ in range(3):
            log = step(model, batch, optim_wrapper)
        weights.append(model.state_dict())
        logs.append(log)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert all(torch.equal(logs[0][key], logs[1][key]) for key in logs[0])


def test_a_step_adds_the_named_loss_and_moves_the_student_alone(pair, batch):
    student, distilled = pair
    distilled.teacher(batch[0])
    before = copy.deepcopy(distilled.teacher.model.state_dict())
    plain, log = step(student, batch), step(distilled, batch)
    assert set(log) - set(plain) == {'distill.loss_bdd', 'distill.teacher_acc'}
    assert [*log][:3] == ['loss', 'distill.loss_bdd', 'distill.teacher_acc']  # before those of many heads
    assert log['loss'].item() == pytest.approx((plain['loss'] + log['distill.loss_bdd']).item(), rel=1e-6)
    assert log['decode.loss_ce'] == plain['decode.loss_ce']
    assert not same_weights(student, distilled)
    after = distilled.teacher.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_maps_of_a_batch_are_freed_with_its_losses(tiny_configs, batch):
    model = build(tiny_configs['distilled'], distill_losses=[{'type': 'BDDLoss'}, {'type': 'KDLoss'}])
    model.teacher(batch[0])
    gc.collect()
    gc.disable()
    try:
        kept = [weakref.ref(one) for one in kept_by(model, batch)]
        assert [one() for one in kept] == [None, None]
    finally:
        gc.enable()


def kept_by(model, batch):
    """The teacher's maps and the labels of a step, which is over when this returns."""
    seen = []
    model.teacher.accuracy = lambda logits, label, ignore_index: seen.extend([logits, label]) or label.sum()
    model.loss(*batch)
    found = list(seen)
    seen.clear()
    return found


def test_losses_on_the_same_maps_share_their_alignment(tiny_configs, batch, monkeypatch):
    calls = []
    monkeypatch.setattr(segmentor, 'align', lambda *args: calls.append(args) or align(*args))
    losses = [{'type': 'BDDLoss'}, {'type': 'KDLoss'}, {**FEATURES}]
    log = step(build(tiny_configs['distilled'], distill_losses=losses), batch)
    assert len(calls) == 2
    assert {'distill.loss_bdd', 'distill.loss_kd', 'distill.loss_feature'} <= log.keys()


def test_the_loss_is_that_of_both_networks_logits(pair, batch):
    _, distilled = pair
    distilled.train()
    torch.manual_seed(1)
    losses = distilled.loss(*batch)
    torch.manual_seed(1)
    student_logits = distilled(batch[0], mode='tensor')  # dropout as before
    teacher_logits = distilled.teacher.model(batch[0], mode='tensor')
    expected = BDDLoss(tau_forward=1.0, tau_reverse=1.0)(student_logits, teacher_logits)
    assert losses['distill.loss_bdd'].item() == pytest.approx(expected.item(), rel=1e-6)
    label = torch.stack([s.gt_sem_seg.data for s in batch[1]])[:, 0, ::8, ::8]
    right = (teacher_logits.argmax(1) == label)[label != 255].float().mean() * 100
    assert losses['distill.teacher_acc'].item() == pytest.approx(right.item())


def test_several_losses_on_other_layers(tiny_configs, batch):
    stem = {'student_tap': 'backbone.stem', 'teacher_tap': 'backbone.stem'}  # as wide in both
    losses = [
        {'type': 'BDDLoss', 'mask_ignored': True},
        {'type': 'BDDLoss', 'loss_name': 'loss_stem', **stem},
    ]
    model = build(tiny_configs['distilled'], distill_losses=losses)
    log = step(model, batch)
    assert log['distill.loss_stem'].item() > 0
    assert log['distill.loss_bdd'].item() > 0


def test_maps_that_do_not_fit_are_named(tiny_configs, batch):
    unlike = {'student_tap': 'decode_head.bottleneck', 'teacher_tap': 'decode_head.bottleneck'}
    loss = {'type': 'BDDLoss', 'student_channels': 8, 'teacher_channels': 12, **unlike}
    model = build(tiny_configs['distilled'], distill_losses=[loss])
    message = r"student 'decode_head.bottleneck' \(2, 8, .*teacher_channels=12, got \(2, 16, "
    with pytest.raises(ConfigError, match=message):
        step(model, batch)


@pytest.fixture
def by_features(tiny_configs):
    """The student distilled by its features, with a loss that holds weights; the seed is that of ``pair``."""
    torch.manual_seed(0)
    return build(tiny_configs['distilled'], distill_losses=[FEATURES])


def test_a_losss_weights_train_and_are_no_part_of_the_student(pair, by_features, batch):
    student, _ = pair
    assert same_weights(student, by_features)  # the same keys, and initialised alike
    own = {f'distill_losses.0.adapter.{name}' for name in ('weight', 'bias')}
    assert dict(by_features.named_parameters()).keys() - dict(student.named_parameters()).keys() == own
    before = copy.deepcopy(by_features.distill_losses[0].state_dict())
    teacher = by_features.teacher(batch[0]).maps['backbone.layer4']
    with torch.no_grad():
        features = by_features.train().backbone(batch[0])[-1]  # in train mode, as in the step
        expected = by_features.distill_losses[0](features, teacher)
    plain, log = step(student, batch), step(by_features, batch)
    assert log['distill.loss_feature'].item() == pytest.approx(expected.item(), rel=1e-6)
    assert log['decode.loss_ce'] == plain['decode.loss_ce']
    after = by_features.distill_losses[0].state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in ('adapter.weight', 'adapter.bias'))


def test_checkpoints_pass_between_the_student_and_losses_with_weights(pair, by_features):
    student, _ = pair
    with torch.no_grad():
        for parameter in by_features.parameters():
            parameter.add_(1)
    projection = copy.deepcopy(by_features.distill_losses[0].state_dict())
    parameters = list(by_features.distill_losses.parameters())
    assert student.load_state_dict(by_features.state_dict(), strict=True)
    assert same_weights(student, by_features)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(2)
    state = student.state_dict()
    assert by_features.load_state_dict(state, strict=True)
    assert same_weights(student, by_features)
    load_state_dict(by_features, state, strict=True)  # mmengine has a loader of its own
    assert state.keys() == student.state_dict().keys()
    assert all(
        torch.equal(projection[key], value)
        for key, value in by_features.distill_losses[0].state_dict().items()
    )
    assert all(a is b for a, b in zip(parameters, by_features.distill_losses.parameters(), strict=True))
    with pytest.raises(RuntimeError, match='Missing key.*backbone'):
        by_features.load_state_dict({}, strict=True)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averages_of_a_student_with_a_losss_weights(pair, by_features, batch, update_buffers):
    student, _ = pair
    averages = [
        ExponentialMovingAverage(model, momentum=0.5, update_buffers=update_buffers)
        for model in (student, by_features)
    ]
    by_features.distill_losses[0].loss_weight = 0.0  # so that both students train alike
    for _ in range(3):
        for model, average in zip((student, by_features), averages, strict=True):
            step(model, batch)
            average.update_parameters(model)
    assert same_weights(*averages)
    assert not same_weights(averages[0].module, student)
    restored = ExponentialMovingAverage(by_features, update_buffers=update_buffers)
    assert restored.load_state_dict(averages[0].state_dict(), strict=True)
    copied = copy.deepcopy(by_features)
    assert same_weights(copied, student)
    with torch.no_grad():
        copied.distill_losses[0].adapter.weight.zero_()
    assert by_features.distill_losses[0].adapter.weight.abs().sum() > 0


def test_a_models_own_init_cfg_leaves_losses_alone(tiny_configs):
    models = []
    for kind, changes in (('student', {}), ('distilled', {'distill_losses': [FEATURES]})):
        torch.manual_seed(0)
        init_cfg = {'type': 'Normal', 'layer': 'Conv2d', 'std': 0.1, 'bias': 7.0}
        models.append(build(tiny_configs[kind], init_cfg=init_cfg, **changes))
    assert same_weights(*models)
    assert models[0].auxiliary_head.convs[0].conv.weight.std().item() == pytest.approx(0.1, rel=0.1)
    assert models[1].distill_losses[0].adapter.bias.abs().max() < 1


def test_losses_start_with_different_weights(tiny_configs):
    losses = [{**FEATURES, 'loss_name': name} for name in ('loss_a', 'loss_b')]
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = build(tiny_configs['distilled'], distill_losses=losses)
        weights.append([loss.adapter.weight for loss in model.distill_losses])
    assert torch.equal(weights[0][0], weights[1][0])  # the seed decides
    assert not torch.equal(weights[0][0], weights[2][0])
    assert not torch.equal(weights[0][0], weights[0][1])


def test_wrong_channels_are_named_with_both_taps(tiny_configs, batch):
    model = build(tiny_configs['distilled'], distill_losses=[{**FEATURES, 'student_channels': 64}])
    expected = r"loss_feature: student 'backbone.layer4' \(2, 32, .*student_channels=64, got \(2, 32"
    with pytest.raises(ConfigError, match=expected):
        step(model, batch)


@MODELS.register_module()
class RecordingLoss(nn.Module):
    """Keeps what it is called with."""

    def __init__(self, name: str | None = 'loss_recorded') -> None:
        super().__init__()
        self.loss_name = name

    def forward(self, student, teacher, seg_label, align_corners):
        self.seen = (student, teacher, seg_label, align_corners)
        return student.sum() * 0 + 5


@pytest.mark.parametrize('align_corners', [False, True])
def test_a_loss_of_the_users_own(tiny_configs, batch, align_corners):
    config = Config.fromfile(tiny_configs['distilled'])
    config.model.decode_head.align_corners = align_corners
    config.model.distill_losses = [{'type': 'RecordingLoss'}]
    model = build(config)
    log = step(model, batch)
    student, teacher, seg_label, align = model.distill_losses[0].seen
    assert student.requires_grad and not teacher.requires_grad
    assert torch.equal(seg_label, torch.stack([s.gt_sem_seg.data[0] for s in batch[1]]))
    assert align is align_corners
    assert log['loss'].item() == pytest.approx((log['decode.loss_ce'] + log['aux.loss_ce'] + 5).item())


def test_the_guides_own_losses(tiny_configs, batch):
    guide = (ROOT / 'docs/write_a_loss.md').read_text()
    exec(re.search(r'```python\n(# my_module_loss.py.*?)```', guide, re.DOTALL)[1], {})
    settings = {'type': 'LogitsL1', 'loss_name': 'loss_l1', 'loss_weight': 2.0}
    model = build(tiny_configs['distilled'], distill_losses=[settings])
    assert step(model, batch)['distill.loss_l1'].item() > 0
    student, teacher = torch.ones(1, 2, 4, 6), torch.full((1, 2, 2, 3), 3.0)
    assert MODELS.build(settings)(student, teacher).item() == pytest.approx(4)
    model = build(tiny_configs['distilled'], distill_losses=[{'type': 'LogitsMSE'}])
    assert step(model, batch)['distill.loss_mse'].item() > 0
    resized = MODELS.build({'type': 'LogitsMSE'})(
        torch.ones(1, 2, 4, 6), torch.full((1, 2, 2, 3), 3.0), None, False
    )
    assert resized.item() == pytest.approx(4)


def test_the_guides_several_losses(tiny_configs, batch):
    guide = (ROOT / 'docs/own_pair.md').read_text()
    text = re.search(r'```python\n(model = dict\(distill_losses=\[\n.*?)```', guide, re.DOTALL)[1]
    settings: dict = {}
    exec(text, settings)
    model = build(tiny_configs['distilled'], **settings['model'])
    log = step(model, batch)
    assert log['distill.loss_bdd'].item() > 0 and log['distill.loss_cwd_features'].item() > 0
    assert model.distill_losses[1].adapter.weight.shape == (16, 8, 1, 1)


def test_ignored_labels_are_those_of_the_students_head(tiny_configs):
    config = Config.fromfile(tiny_configs['distilled'])
    config.model.decode_head.ignore_index = 3
    losses = [{'type': 'BDDLoss'}, {'type': 'KDLoss', 'ignore_index': 7}, {'type': 'DKDLoss'}]
    model = build(config, distill_losses=losses)
    assert [loss.ignore_index for loss in model.distill_losses] == [3, 7, 3]


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'type': 'CWDLoss', 'domain': 'pixel'}, r"0 \(CWDLoss\) takes no argument 'domain'; it takes tau, "),
        (
            {'type': 'KDLoss', 'foo': 2},
            r"model.distill_losses.0 \(KDLoss\) takes no argument 'foo'; it takes tau",
        ),
        ({'type': 'KDLoss', 'tau': 0}, r'model.distill_losses.0 \(KDLoss\): tau_forward must be a positive'),
        (
            {'type': 'DKDLoss', 'beta': '8'},
            r"model.distill_losses.0 \(DKDLoss\): beta must be a number, got '8'",
        ),
    ],
)
def test_arguments_that_a_loss_refuses_are_named(tiny_configs, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(tiny_configs['distilled'], distill_losses=[settings])


def test_the_teachers_accuracy_leaves_out_what_the_students_head_ignores(tiny_configs, batch):
    config = Config.fromfile(tiny_configs['distilled'])
    config.model.decode_head.ignore_index = 3
    model = build(config)
    inputs, samples = batch
    for sample in samples:
        sample.gt_sem_seg.data[sample.gt_sem_seg.data == 255] = 3
    accuracy = model.loss(inputs, samples)['distill.teacher_acc']
    predicted = model.teacher(inputs).maps['decode_head.conv_seg'].argmax(1)
    label = torch.stack([s.gt_sem_seg.data for s in samples])[:, 0, ::8, ::8]
    assert accuracy.item() == pytest.approx((predicted == label)[label != 3].float().mean().item() * 100)


def test_without_a_runner_the_first_loss_builds_the_teacher(tiny_configs, batch):
    model = MODELS.build(Config.fromfile(tiny_configs['student']).model)  # the teacher needs no init_weights
    config = Config.fromfile(tiny_configs['distilled']).model
    config.backbone.norm_cfg = config.decode_head.norm_cfg = config.auxiliary_head.norm_cfg = {'type': 'BN'}
    model = MODELS.build(config)
    assert model.loss(*batch)['distill.loss_bdd'].item() > 0


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'distill_losses': []}, 'distill_losses is empty'),
        ({'teacher': None}, 'the model has no teacher'),
        (
            {'distill_losses': [{'type': 'BDDLoss'}] * 2},
            "a loss_name of its own, got .'loss_bdd', 'loss_bdd'",
        ),
        ({'distill_losses': [{'type': 'BDDLoss', 'loss_name': 'bdd'}]}, "contains 'loss'.*got 'bdd'"),
        ({'distill_losses': [{'type': 'RecordingLoss', 'name': None}]}, 'RecordingLoss needs a loss_name'),
        (
            {'distill_losses': {'type': 'BDDLoss'}},
            'model.distill_losses must be a list of dicts, got {.type.: .BDDLoss.}',
        ),
        ({'distill_losses': ['BDDLoss']}, "model.distill_losses.0 must be a dict of settings, got 'BDDLoss'"),
        (
            {'distill_losses': [{'type': 'BDDLoss', 'loss_weight': 'abc'}]},
            r"model.distill_losses.0 \(BDDLoss\): loss_weight must be a number, got 'abc'",
        ),
        (
            {'distill_losses': [{'type': 'BDDLoss', 'student_tap': 3}]},
            'model.distill_losses.0.student_tap must be the dotted name of a module or .*, got 3',
        ),
        ({'distill_losses': [{'type': 'BDDLoss', 'loss_name': 3}]}, "contains 'loss'.*got 3"),
        ({'distill_losses': [{'type': 'BDDLoss', 'tau_forward': 0}]}, 'tau_forward must be a positive'),
        (
            {'distill_losses': [{'type': 'BDDLoss', 'student_tap': 'decode_head.conv'}]},
            r'decode_head\.conv_seg',
        ),
        ({'distill_losses': [{'type': 'BDDLoss', 'teacher_tap': 'backbone.layer9'}]}, r'backbone\.layer4'),
        ({'teacher': 'a.pth'}, "model.teacher must be a dict of settings, got 'a.pth'"),
        ({'teacher': {'cache': 'caches/r101'}}, 'cannot be built.*A cache needs type="CachedTeacher"'),
        (
            {
                'teacher': {'type': 'CachedTeacher', 'cache': 'cache'},
                'distill_losses': [{'type': 'RecordingLoss'}],
            },
            r'RecordingLoss.forward takes no mask.*CachedTeacher',
        ),
    ],
)
def test_wrong_settings_are_named(tiny_configs, changes, message):
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.update(changes)
    with pytest.raises(ConfigError, match=message):
        build(cfg)


def cascade(teacher: dict | None) -> Config:
    """An OCRNet on a small ResNet: two decode heads, the second fed by the first."""
    norm = {'type': 'BN'}
    head = {
        'num_classes': 19,
        'norm_cfg': norm,
        'in_index': 3,
        'in_channels': 32,
        'channels': 8,
        'loss_decode': {'type': 'CrossEntropyLoss', 'loss_weight': 1.0},
    }
    model = {
        'type': 'CascadeEncoderDecoder',
        'num_stages': 2,
        'data_preprocessor': {'type': 'SegDataPreProcessor'},
        'backbone': {
            'type': 'ResNetV1c',
            'depth': 18,
            'base_channels': 4,
            'stem_channels': 4,
            'norm_cfg': norm,
        },
        'decode_head': [
            {'type': 'FCNHead', 'num_convs': 1, 'concat_input': False, **head},
            {'type': 'OCRHead', 'ocr_channels': 8, **head},
        ],
        'test_cfg': {'mode': 'whole'},
    }
    if teacher is not None:
        model.update(type='CascadeSegDistiller', teacher=teacher, distill_losses=[{'type': 'BDDLoss'}])
    return Config({'model': model})


def test_cascades_teach_and_learn(tiny_configs, batch, tmp_path):
    teacher = {'config': str(tiny_configs['teacher']), 'checkpoint': str(tiny_configs['checkpoint'])}
    plain, model = build(cascade(None)), build(cascade(teacher))
    assert isinstance(model, CascadeSegDistiller)
    assert plain.load_state_dict(model.state_dict(), strict=True)
    torch.manual_seed(1)
    losses = model.train().loss(*batch)
    assert losses['distill.loss_bdd'].item() > 0
    assert 'decode_1.loss_ce' in losses

    torch.save(plain.state_dict(), tmp_path / 'cascade.pth')
    config = {'config': cascade(None).to_dict(), 'checkpoint': str(tmp_path / 'cascade.pth')}
    pupil = build(tiny_configs['distilled'], teacher=config)
    assert pupil.teacher.logits_tap == 'decode_head.1.conv_seg'
    assert step(pupil, batch)['distill.loss_bdd'].item() > 0


def test_a_cascade_student_needs_the_cascade_distiller(tiny_configs):
    config = cascade({'config': 'x', 'checkpoint': 'y'})
    config.model.type = 'SegDistiller'
    with pytest.raises(ConfigError, match='CascadeSegDistiller'):
        build(config)


@pytest.mark.parametrize('frozen', [True, False])
def test_a_student_map_without_gradient_is_refused_while_the_student_trains(tiny_configs, batch, frozen):
    """Otherwise the loss is logged, and the student does not learn from the teacher."""
    losses = [{'type': 'FeatureLoss', 'student_tap': 'backbone.layer1', 'teacher_tap': 'backbone.layer1'}]
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.backbone.frozen_stages = 1 if frozen else -1
    model = build(cfg, distill_losses=losses).train()
    if not frozen:
        assert model.loss(*batch)['distill.loss_feature'].requires_grad
        return
    with pytest.raises(ConfigError, match="output of tap 'backbone.layer1' carries no gradient"):
        model.loss(*batch)
    with torch.no_grad():  # nobody learns
        assert model.loss(*batch)['distill.loss_feature'].isfinite()


def test_a_student_of_which_all_is_frozen_may_be_compared(tiny_configs, batch):
    model = build(Config.fromfile(tiny_configs['distilled'])).requires_grad_(False)
    assert model.loss(*batch)['distill.loss_bdd'].isfinite()


@pytest.mark.parametrize('unlabelled', [(1,), (0, 1)])
def test_images_without_a_label_map_are_learnt_from_the_teacher(tiny_configs, batch, unlabelled):
    """As if their every label were ignored: the teacher's part stays, the labels' is that of the others."""
    inputs, samples = batch
    torch.manual_seed(0)
    expected = build(Config.fromfile(tiny_configs['distilled'])).eval()
    model = copy.deepcopy(expected)
    ignored, bare = copy.deepcopy(samples), copy.deepcopy(samples)
    for i in unlabelled:
        ignored[i].gt_sem_seg.data = torch.full_like(ignored[i].gt_sem_seg.data, 255)
        del bare[i].gt_sem_seg
    expected, found = expected.loss(inputs, ignored), model.loss(inputs, bare)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found if 'acc' not in key)
    assert found['distill.teacher_acc'].isnan() == (len(unlabelled) == 2)
    complete = model.loss(inputs, copy.deepcopy(samples))
    assert torch.equal(found['distill.loss_bdd'], complete['distill.loss_bdd'])
    if len(unlabelled) == 2:
        assert found['decode.loss_ce'] == 0
