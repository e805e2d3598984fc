"""The configs of runs, and the check that runs may be compared."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from helpers import ROOT, study_file
from mmengine.config import Config

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.study import configs
from bdd_seg.study.configs import (
    check_comparable,
    class_iou_evaluator,
    iterations_of,
    make_run,
    reference_runs,
    set_length,
)
from bdd_seg.study.results import RunResult
from bdd_seg.study.settings import load_study


@pytest.fixture
def study(tiny_configs, tmp_path):
    return lambda **changes: load_study(study_file(tiny_configs, tmp_path, **changes))


def test_overrides_reach_the_config_the_nearer_the_later(study):
    made = study(
        kd={'loss.tau_forward': 2, 'loss.loss_weight': 5, 'train_dataloader.batch_size': 3},
        options={'train_dataloader.batch_size': 7, 'train_dataloader.num_workers': 0},
        distilled_options={'model.teacher.precision': 'bf16'},
    )
    run = make_run(made, 'kd', 'final', 11, {'loss.loss_weight': 6})
    loss = run.cfg.model.distill_losses[0]
    assert (loss.tau_forward, loss.loss_weight) == (2, 6)
    assert (run.cfg.train_dataloader.batch_size, run.cfg.train_dataloader.num_workers) == (3, 0)
    assert run.cfg.model.teacher.precision == 'bf16'
    assert run.cfg.randomness.seed == 11
    alone = make_run(made, 'alone', 'final', 11, {})
    assert alone.cfg.train_dataloader.batch_size == 7
    assert 'teacher' not in alone.cfg.model


def test_the_length_takes_the_schedule_along(study, tiny_configs):
    made = study(options={'param_scheduler.0.end': 6})
    assert iterations_of(made) == load_config(tiny_configs['student']).train_cfg.max_iters == 6
    cfg = make_run(made, 'alone', 'final', 0, {}, iterations=40).cfg
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[0].end == 40
    assert cfg.train_cfg.val_begin > 40
    assert cfg.default_hooks.checkpoint.interval == 10
    made = study(iterations=9, search_iterations=5)
    lengths = {
        stage: make_run(made, 'alone', stage, 0, {}).cfg.train_cfg.max_iters for stage in ('final', 'search')
    }
    assert lengths == {'final': iterations_of(made), 'search': 5} == {'final': 9, 'search': 5}
    other = study(options={'param_scheduler.0.end': 3})  # ends before the training does, and still shall
    assert make_run(other, 'alone', 'final', 0, {}, iterations=40).cfg.param_scheduler[0].end == 3


def test_one_config_one_digest_wherever_the_project_lies(study, monkeypatch, tmp_path):
    made = study()
    run = make_run(made, 'alone', 'final', 1, {})
    assert run.sha256 == make_run(made, 'alone', 'search', 1, {}).sha256
    assert run.sha256 != make_run(made, 'alone', 'final', 2, {}).sha256
    assert run.sha256 != make_run(made, 'alone', 'final', 1, {}, iterations=7).sha256
    digests = set()
    for place in ('here', 'there/else'):
        monkeypatch.setattr(configs, 'PROJECT', tmp_path / place)
        run.cfg.model.pretrained = str(tmp_path / place / 'weights.pth')
        digests.add(dataclasses.replace(run).sha256)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('train_dataloader.batch_size', 3),
        ('train_dataloader.dataset.pipeline.3.crop_size', [16, 32]),
        ('optim_wrapper.optimizer.lr', 0.7),
        ('param_scheduler.0.power', 2),
        ('model.backbone.depth', 34),
    ],
)
def test_runs_that_differ_otherwise_are_not_compared(study, option, value):
    with pytest.raises(ConfigError, match=f"'alone' and 'kd' cannot be compared: their .*{option}"):
        check_comparable(study(kd={option: value}))
    check_comparable(study(kd={option: value}, may_differ=[option]))
    check_comparable(study(kd={option: value}, may_differ=[option.rpartition('.')[0]]))


def test_methods_that_differ_in_distillation_are_compared(study):
    check_comparable(study(kd={'loss.tau_forward': 9, 'model.teacher.precision': 'bf16'}))


@pytest.mark.parametrize('lines', ["load_from = 'student.pth'", "custom_hooks = [dict(type='EMAHook')]"])
def test_a_head_start_is_no_distillation(study, tiny_configs, tmp_path, lines):
    config = tmp_path / 'other.py'
    config.write_text(f'_base_ = {str(tiny_configs["distilled"])!r}\n{lines}\n')
    methods = {
        'alone': {'label': 'a', 'config': str(tiny_configs['student'])},
        'kd': {'label': 'b', 'config': str(config)},
    }
    with pytest.raises(ConfigError, match=f'cannot be compared: their {lines.split()[0]}'):
        check_comparable(study(methods=methods))
    check_comparable(study(kd={'custom_hooks': [{'type': 'LossStateHook'}]}))


def test_schedules_of_other_kinds(study):
    cosine = {'type': 'CosineAnnealingLR', 'T_max': 4, 'begin': 2, 'end': 6}
    warm_up = {'type': 'LinearLR', 'begin': 0, 'end': 2}
    longer = {**cosine, 'T_max': 38, 'end': 40}
    for given, expected in ((cosine, longer), ([warm_up, cosine], [warm_up, longer]), (None, None)):
        cfg = Config({'train_cfg': {'max_iters': 6}, 'param_scheduler': given})
        set_length(cfg, 40)
        assert cfg.to_dict()['param_scheduler'] == expected
        assert cfg.to_dict()['default_hooks'] == {
            'checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 10, 'max_keep_ckpts': 2},
            'logger': {'type': 'LoggerHook', 'interval': 4},
        }
    assert iterations_of(study(options={'train_cfg.max_iters': 8})) == 8
    with pytest.raises(ConfigError, match='student.py. has no train_cfg.max_iters'):
        check_comparable(study(options={'train_cfg.max_iters': None}))


@pytest.mark.parametrize(
    'given',
    [
        [{'type': 'CityscapesMetric', 'output_dir': 'x'}, {'type': 'IoUMetric', 'ignore_index': 7}],
        {'type': 'IoUMetric', 'iou_metrics': ['mDice'], 'ignore_index': 7},
    ],
)
def test_every_run_is_measured_alike(given):
    expected = {'type': 'ClassIoUMetric', 'iou_metrics': ['mIoU'], 'ignore_index': 7}
    assert class_iou_evaluator(Config({'test_evaluator': given})) == expected


def test_an_override_that_does_not_fit(study):
    with pytest.raises(ConfigError, match="distilled.py: {'train_dataloader.batch_size.x': 1} does not fit"):
        check_comparable(study(kd={'train_dataloader.batch_size.x': 1}))


@pytest.mark.parametrize(
    'file',
    [*sorted((ROOT / 'benchmarks/studies').glob('*.yaml')), ROOT / 'bdd_seg/study/demo.yaml'],
    ids=lambda file: file.stem,
)
def test_what_is_shipped_can_be_compared(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_comparable(load_study(file))


@pytest.mark.parametrize('key', ['milestones', 'step_size', 'total_steps'])
def test_a_schedule_that_cannot_follow_the_length(study, key):
    made = study(options={f'param_scheduler.0.{key}': 3})
    with pytest.raises(
        ConfigError, match='PolyLR does not say how it follows a training of another length, 7'
    ):
        make_run(made, 'alone', 'final', 0, {}, iterations=7)
    make_run(made, 'alone', 'final', 0, {})


def test_configs_of_mmseg_and_of_the_current_folder(study, tiny_configs, monkeypatch):
    monkeypatch.chdir(tiny_configs['student'].parent)
    for name, lr in (
        ('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', 0.01),
        ('student.py', 0.1),
    ):
        made = study(methods={'alone': {'label': 'a', 'config': name}})
        assert make_run(made, 'alone', 'final', 0, {}).cfg.optim_wrapper.optimizer.lr == lr


def test_a_shipped_config_is_found_from_anywhere(study, monkeypatch, tmp_path):
    name = 'configs/pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
    made = study(methods={'alone': {'label': 'a', 'config': name}})
    monkeypatch.chdir(tmp_path)
    assert make_run(made, 'alone', 'final', 0, {}).cfg.train_cfg.max_iters == 300
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(f'_base_ = {str(ROOT / name)!r}\ntrain_cfg = dict(max_iters=7)')
    assert make_run(made, 'alone', 'final', 0, {}).cfg.train_cfg.max_iters == 7


def test_a_record_has_the_place_of_the_run_and_its_result(study):
    run = make_run(study(), 'kd', 'final', 1, {'loss.loss_weight': 3}, 'wall_clock', 9)
    result = RunResult(iterations=9, seconds=1.5, scores={}, teacher=None)
    assert run.to_record(result).to_json() == {
        'method': 'kd',
        'stage': 'final',
        'equal': 'wall_clock',
        'seed': 1,
        'setting': {'loss.loss_weight': 3},
        'config_sha256': run.sha256,
        'iterations': 9,
        'seconds': 1.5,
        'scores': {},
        'teacher': None,
    }


def test_a_study_without_a_teacher_has_no_reference(study, tiny_configs, tmp_path):
    assert reference_runs(study()) == []
    weights = tmp_path / 'teacher.pth'
    torch.save({'state_dict': {'b': torch.ones(2), 'a': torch.zeros(1)}}, weights)
    teacher = {'label': 't', 'config': str(tiny_configs['teacher']), 'checkpoint': str(weights)}
    made = study(teacher=teacher, train_flags=['--amp'])
    (run,) = reference_runs(made)
    found = run.provenance(made)
    assert (found.train_flags, found.splits, found.teacher) == (['--amp'], {'val': {}, 'test': {}}, None)
    content = b'a' + np.zeros(1, 'float32').tobytes() + b'b' + np.ones(2, 'float32').tobytes()
    assert found.checkpoint == hashlib.sha256(content).hexdigest()


def test_a_folder_has_the_digest_of_its_files(tmp_path):
    folder = tmp_path / 'teacher'
    folder.mkdir()
    (folder / 'model.safetensors').write_bytes(b'weights')
    (folder / 'config.json').write_text('{}')
    lines = [
        f'{name} {hashlib.sha256(content).hexdigest()}'
        for name, content in (('config.json', b'{}'), ('model.safetensors', b'weights'))
    ]
    first = configs.digest_if_local(folder)
    assert first == hashlib.sha256('\n'.join(lines).encode()).hexdigest()
    (folder / 'model.safetensors').write_bytes(b'others!')
    configs.digest_if_local.cache_clear()
    assert configs.digest_if_local(folder) != first
    assert configs.digest_if_local(tmp_path / 'nothing') is None
