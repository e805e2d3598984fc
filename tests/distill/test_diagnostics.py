"""Diagnostics of a student's logits against its teacher's: their values, and that they change nothing."""

import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import build, logged, same, train
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub
from mmengine.runner import LogProcessor

from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.distill import DiagnosticsHook, hooks
from bdd_seg.distill.diagnostics import DIAGNOSTICS, logit_diagnostics
from bdd_seg.losses.pair import Pair
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.teachers.base import Answer

FEATURES = {
    'type': 'FeatureLoss',
    'student_channels': 32,
    'teacher_channels': 128,
    'student_tap': 'backbone.layer4',
    'teacher_tap': 'backbone.layer4',
}


def reference(student, teacher, counts) -> dict[str, float]:
    """The three means by a loop over positions, in float64."""
    values = []
    for n, y, x in counts.nonzero().tolist():
        z_s, z_t = student[n, :, y, x].double(), teacher[n, :, y, x].double()
        p, q = (z.exp() / z.exp().sum() for z in (z_t, z_s))
        forward, reverse = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
        values.append([100.0 * (z_s.argmax() == z_t.argmax()), forward, reverse])
    means = torch.tensor(values, dtype=torch.float64).mean(0).tolist()
    return dict(zip(DIAGNOSTICS, means, strict=True))


def both_logits(model, inputs, samples, seed=1):
    """What the student, with the dropout of that seed, and the teacher put out."""
    torch.manual_seed(seed)
    student = model(inputs, mode='tensor')
    return student.detach(), model.teacher(inputs, samples).maps[model.teacher.logits_tap]


def diagnosed(model, inputs, samples, seed=1):
    model.train().diagnose = True
    torch.manual_seed(seed)
    return model.loss(inputs, samples)


def agree(losses, expected):
    assert {key: losses[key].item() for key in DIAGNOSTICS} == pytest.approx(expected, rel=1e-5)
    assert not any(losses[key].requires_grad for key in DIAGNOSTICS)


class Masked:
    """A teacher that does not know its answer in the left half of the images, where it gives NaN."""

    def __init__(self, teacher):
        self.teacher = teacher

    def __getattr__(self, name):
        return getattr(self.teacher, name)

    def __call__(self, inputs, samples):
        maps = {tap: values.clone() for tap, values in self.teacher(inputs, samples).maps.items()}
        known = {}
        for tap, values in maps.items():
            half = values.shape[3] // 2
            values[..., :half] = math.nan
            known[tap] = torch.ones(len(values), *values.shape[2:], dtype=torch.bool)
            known[tap][..., :half] = False
        return Answer(maps, known)


@pytest.fixture(scope='module')
def distilled(tiny_configs):
    """A distiller whose student is as sure of its classes as one that has learnt."""
    torch.manual_seed(0)
    model = build(tiny_configs['distilled'])
    with torch.no_grad():
        model.decode_head.conv_seg.weight.mul_(100)
    return model


@pytest.mark.parametrize('case', ['all', 'padded', 'unlabelled', 'partly known', 'nowhere known'])
def test_values_of_a_distiller(distilled, batch, case, monkeypatch):
    inputs, samples = batch
    student, teacher = both_logits(distilled.train(), inputs, samples)
    counts = torch.ones(2, 4, 8, dtype=torch.bool)
    if case == 'padded':  # by 8 pixels on the right and 16 below, 1 and 2 positions
        samples[1].set_metainfo({'padding_size': (0, 8, 0, 16)})
        counts[1, 2:] = counts[1, :, 7:] = False
    elif case == 'unlabelled':
        del samples[0].gt_sem_seg
    elif 'known' in case:
        monkeypatch.setattr(distilled, 'teacher', Masked(distilled.teacher))
        counts[..., :4] = False
        if case == 'nowhere known':
            for sample in samples:
                sample.set_metainfo({'padding_size': (0, 32, 0, 0)})
    losses = diagnosed(distilled, inputs, samples)
    assert [*losses][:5] == ['distill.loss_bdd', 'distill.teacher_acc', *DIAGNOSTICS]
    if case == 'nowhere known':
        assert all(losses[key].isnan() for key in DIAGNOSTICS)
    else:
        expected = reference(student, teacher, counts)
        assert expected['distill.forward_kl'] > 0.01 and expected['distill.reverse_kl'] > 0.01
        agree(losses, expected)


def test_values_over_the_classes_that_both_know(tiny_configs, batch):
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.decode_head.num_classes = cfg.model.auxiliary_head.num_classes = 11
    cfg.model.teacher.class_map = 'cityscapes_to_camvid'
    inputs, samples = batch
    for sample in samples:
        sample.gt_sem_seg.data = sample.gt_sem_seg.data % 11
    hub = MessageHub.get_current_instance()
    hub.update_info('dataset_meta', {'classes': CamVidDataset.METAINFO['classes']})
    try:
        model = build(cfg)
        losses = diagnosed(model, inputs, samples)
        student, teacher = both_logits(model, inputs, samples)
    finally:
        hub.pop_info('dataset_meta')
    mapped = model.teacher.class_map
    cut = mapped.student_logits(student), mapped.teacher_logits(teacher)
    assert cut[0].shape == cut[1].shape
    agree(losses, reference(*cut, torch.ones(2, 4, 8, dtype=torch.bool)))


def test_under_autocast_values_are_those_of_the_logits_in_float32(distilled, batch):
    with torch.autocast('cpu', torch.bfloat16):
        losses = diagnosed(distilled, *batch)
        student, teacher = both_logits(distilled, *batch)
    assert student.dtype == torch.bfloat16
    assert all(losses[key].dtype == torch.float32 for key in DIAGNOSTICS)
    agree(losses, reference(student, teacher, torch.ones(2, 4, 8, dtype=torch.bool)))


def test_one_channel_stands_for_two_classes():
    student, teacher = torch.randn(2, 2, 1, 3, 4, dtype=torch.float64)
    found = logit_diagnostics(Pair(student, teacher))
    two = [torch.cat([torch.zeros_like(z), z], dim=1) for z in (student, teacher)]
    agree(found, reference(*two, torch.ones(2, 3, 4, dtype=torch.bool)))


def test_equal_logits():
    logits = torch.randn(1, 19, 8, 8) * 20
    found = logit_diagnostics(Pair(logits, logits.clone()))
    assert [found[key].item() for key in DIAGNOSTICS] == [100, 0, 0]


@pytest.mark.parametrize(
    'losses, is_compared',
    [
        ([FEATURES], False),
        ([FEATURES, {'type': 'KDLoss'}], True),
        ([{'type': 'KDLoss', 'student_tap': 'decode_head.conv_seg', 'teacher_tap': 'logits'}], True),
    ],
)
def test_only_where_a_loss_compares_class_logits(tiny_configs, batch, losses, is_compared):
    found = diagnosed(build(tiny_configs['distilled'], distill_losses=losses), *batch)
    assert ({*DIAGNOSTICS} & found.keys() == {*DIAGNOSTICS}) == is_compared
    assert ({*DIAGNOSTICS} & found.keys() == set()) != is_compared


# The same divergences as losses, whose logged values are those of the last iteration with this window.
AS_LOSSES = """
_base_ = {base!r}
model = dict(distill_losses=[
    dict(type='KDLoss', tau=1.0, loss_weight=1.0, loss_name='loss_forward'),
    dict(type='BDDLoss', domain='pixel', tau_reverse=1.0, forward_weight=0.0, loss_weight=1.0,
         loss_name='loss_reverse')])
log_processor = dict(window_size=1)
"""
BY_FEATURES = """
_base_ = {base!r}
model = dict(distill_losses=[
    dict(type='AttentionLoss', student_tap='backbone.layer4', teacher_tap='backbone.layer4')])
"""


OPTIONS = ['--cfg-options', 'train_cfg.val_begin=9', 'default_hooks.logger.interval=2']


@pytest.fixture(scope='module')
def config(tiny_configs, tmp_path_factory):
    path = tmp_path_factory.mktemp('diagnostics') / 'as_losses.py'
    path.write_text(AS_LOSSES.format(base=str(tiny_configs['distilled'])))
    return path


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
    """The work dir of a training of which every second iteration is logged."""
    work_dir = tmp_path_factory.mktemp('trained')
    train(config, work_dir, *OPTIONS)
    return work_dir


def untimed(records):
    return [{k: v for k, v in record.items() if k not in ('time', 'data_time')} for record in records]


def test_the_log_has_the_divergences_of_its_iteration(trained):
    records = logged(trained)
    assert [record['step'] for record in records] == [2, 4, 6]
    for record in records:
        assert record['distill.forward_kl'] == pytest.approx(record['distill.loss_forward'], rel=1e-4)
        assert record['distill.reverse_kl'] == pytest.approx(record['distill.loss_reverse'], rel=1e-4)
        assert 0 <= record['distill.agreement'] <= 100
        keys = [key for key in record if 'distill' in key or 'decode' in key]  # in the order of the console
        assert keys[2:7] == ['distill.teacher_acc', *DIAGNOSTICS, 'decode.loss_ce']
    assert len({record['distill.forward_kl'] for record in records}) == 3


def test_a_training_is_bit_equal_with_and_without(config, trained, tmp_path):
    train(config, tmp_path, *OPTIONS, 'default_hooks.diagnostics=None')
    found, without = untimed(logged(trained)), untimed(logged(tmp_path))
    assert [{k: v for k, v in record.items() if k not in DIAGNOSTICS} for record in found] == without
    checkpoints = [load_checkpoint(folder / 'iter_6.pth') for folder in (trained, tmp_path)]
    assert all(same(*(one[key] for one in checkpoints)) for key in ('state_dict', 'optimizer'))


def half_trained(trained, folder):
    shutil.copy(trained / 'iter_3.pth', folder)
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_3.pth'))


def test_a_resumed_run_logs_the_same(config, trained, tmp_path):
    half_trained(trained, tmp_path)
    train(config, tmp_path, '--resume', *OPTIONS)
    assert untimed(logged(tmp_path)) == untimed(logged(trained))[1:]


def test_a_run_resumed_with_other_losses_does_not_repeat_old_values(tiny_configs, trained, tmp_path):
    half_trained(trained, tmp_path)
    other = tmp_path / 'by_features.py'
    other.write_text(BY_FEATURES.format(base=str(tiny_configs['distilled'])))
    train(other, tmp_path, '--resume', *OPTIONS, 'train_cfg.max_iters=4')
    (record,) = logged(tmp_path)
    assert record['step'] == 4 and 'distill.teacher_acc' in record
    assert not {*DIAGNOSTICS} & record.keys()


@pytest.mark.parametrize('interval', [1, 3, 10])
@pytest.mark.parametrize('ignore_last', [True, False])
def test_the_iterations_are_those_that_the_logger_writes(interval, ignore_last):
    """Of epochs of 4 iterations, whose last one may be logged beside each third."""
    written = []
    processor = SimpleNamespace(
        get_log_after_iter=lambda runner, index, mode: written.append(index) or ({}, '')
    )
    logger = LoggerHook(interval=interval, ignore_last=ignore_last)
    logger.json_log_path = 'log.json'
    runner = SimpleNamespace(
        hooks=[DiagnosticsHook(), logger],
        train_dataloader=range(4),
        log_processor=processor,
        logger=SimpleNamespace(info=lambda text: None),
        visualizer=SimpleNamespace(add_scalars=lambda *args, **kwargs: None),
        experiment_name='',
        iter=0,
    )
    for index in range(4):
        logger.after_train_iter(runner, index)
    assert [index for index in range(4) if hooks._is_logged(runner, index)] == written
    assert written


def test_no_key_counts_as_a_loss_or_is_averaged():
    pattern = LogProcessor().mean_pattern
    assert not any('loss' in key or re.search(pattern, key) for key in DIAGNOSTICS)
