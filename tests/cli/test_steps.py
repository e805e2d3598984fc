import re
from argparse import Namespace

import pytest
import torch
from mmengine.runner import Runner

from bdd_seg.cli.steps import build_runner, prepare
from bdd_seg.cli.summary import SummaryHook
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.console import QuietRunner
from bdd_seg.teachers.cached.pipeline import ReadTeacherCache


def flags(config, work_dir, **options) -> Namespace:
    return Namespace(
        config=str(config),
        work_dir=str(work_dir),
        cfg_options=options,
        launcher='none',
        local_rank=0,
        verbose=False,
    )


def steps_of(loader) -> list[str]:
    return [step.type for step in loader.dataset.pipeline]


@pytest.mark.parametrize('mode', ['train', 'test'])
def test_a_prepared_config_is_complete(tiny_configs, tmp_path, mode):
    seen = []
    args = flags(tiny_configs['student'], tmp_path / 'run')
    cfg = prepare(args, mode, lambda cfg, args: seen.append((cfg, args)))
    assert len(seen) == 1 and seen[0] == (cfg, args)
    assert (tmp_path / 'run').is_dir()
    kinds = {hook.type for hook in cfg.default_hooks.values()}
    assert {'BatchNormHook', 'CheckpointFitsHook', 'ExactResumeHook', 'FiniteLossHook'} <= kinds
    checked = ['CheckedLoading', 'CheckedLoading', 'PackSegInputs']
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        expected = (key == 'test_dataloader') == (mode == 'test')
        assert (steps_of(cfg[key])[-1] == 'CheckLabels') is expected
    key = 'val_dataloader' if mode == 'train' else 'test_dataloader'
    assert steps_of(cfg[key]) == [*checked, 'CheckLabels']


def test_data_is_checked_after_the_flags_changed_the_config(tiny_configs, tmp_path):
    def use_another_pipeline(cfg, args):
        cfg.test_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}]

    cfg = prepare(flags(tiny_configs['student'], tmp_path), 'test', use_another_pipeline)
    assert steps_of(cfg.test_dataloader) == ['CheckedLoading', 'CheckLabels']


def test_checks_are_switched_off_by_a_key_of_the_config(tiny_configs, tmp_path):
    args = flags(tiny_configs['student'], tmp_path, check_data=False)
    cfg = prepare(args, 'train', lambda cfg, args: None)
    assert steps_of(cfg.train_dataloader)[0] == 'LoadImageFromFile'


def test_a_cached_teachers_pipeline_is_checked_around_and_within(tiny_configs, tmp_path, monkeypatch):
    def wrap(cfg):
        dataset = cfg.train_dataloader.dataset
        dataset.pipeline = [dict(type=ReadTeacherCache.__name__, cache='a', transforms=dataset.pipeline)]

    monkeypatch.setattr('bdd_seg.cli.steps.read_teacher_cache', wrap)
    cfg = prepare(flags(tiny_configs['student'], tmp_path), 'train', lambda cfg, args: None)
    assert steps_of(cfg.train_dataloader) == ['ReadTeacherCache', 'CheckLabels']
    inner = [step.type for step in cfg.train_dataloader.dataset.pipeline[0].transforms]
    assert inner == ['CheckedLoading', 'CheckedLoading', 'CheckedCrop', 'RandomFlip', 'PackSegInputs']


def test_a_config_is_checked_before_the_flags_change_it(tiny_configs, tmp_path):
    args = flags(tiny_configs['student'], tmp_path / 'run', model=None)
    with pytest.raises(ConfigError, match='the config has no model'):
        prepare(args, 'train', lambda cfg, args: pytest.fail('too early'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'option, value, message',
    [
        ('model.teacher.checkpoint', 'absent.pth', "checkpoint 'absent.pth' does not exist"),
        ('model.teacher.checkpoint', 'other.pth', "checkpoint 'other.pth' does not fit the teacher"),
        ('model.teacher.config', 'absent.py', "config 'absent.py' does not exist"),
        ('model.decode_head.num_classes', 7, 'predicts 19 classes, the student 7'),
    ],
)
def test_a_teacher_is_checked_before_anything_is_built(
    tiny_configs, tmp_path, monkeypatch, option, value, message
):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, 'other.pth')
    args = flags(tiny_configs['distilled'], tmp_path / 'run', **{option: value})
    with pytest.raises(ConfigError, match=re.escape(message)):
        prepare(args, 'train', lambda cfg, args: None)
    assert not (tmp_path / 'run').exists()


def test_testing_needs_no_teacher(tiny_configs, tmp_path):
    args = flags(tiny_configs['distilled'], tmp_path, **{'model.teacher.checkpoint': 'absent.pth'})
    assert prepare(args, 'test', lambda cfg, args: None).model.teacher.checkpoint == 'absent.pth'


@pytest.mark.parametrize('verbose', [False, True])
def test_the_runner_is_quiet_unless_told_otherwise(tiny_configs, tmp_path, verbose):
    cfg = prepare(flags(tiny_configs['student'], tmp_path), 'train', lambda cfg, args: None)
    cfg.experiment_name = cfg.visualizer.name = f'{tmp_path.name}_{verbose}'
    runner = build_runner(cfg, verbose)
    assert isinstance(runner, QuietRunner) is not verbose
    assert isinstance(runner.hooks[-1], SummaryHook)


def test_a_runner_of_the_configs_own_stays(tiny_configs, tmp_path):
    args = flags(tiny_configs['student'], tmp_path, runner_type='Runner')
    cfg = prepare(args, 'train', lambda cfg, args: None)
    cfg.experiment_name = cfg.visualizer.name = tmp_path.name
    assert type(build_runner(cfg, verbose=False)) is Runner
