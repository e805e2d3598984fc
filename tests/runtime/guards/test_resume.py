"""A run that was killed and resumed against the run that was not, with everything random that mmseg has."""

import json
import os
import pickle
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TRAIN, complaint, logged, same, train
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards import resume
from bdd_seg.runtime.guards.resume import ExactResumeHook, latest_checkpoint
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

EVERYTHING_RANDOM = """
_base_ = {base!r}
model = dict(decode_head=dict(dropout_ratio=0.3), distill_losses=[
    dict(type='BDDLoss'),
    dict(type='FeatureMSELoss', student_channels=32, teacher_channels=128,
         student_tap='backbone.layer4', teacher_tap='backbone.layer4')])
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(96, 48), ratio_range=(0.8, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 64)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]))
train_cfg = dict(val_interval=3)
randomness = dict(seed=None)  # mmengine chooses one
custom_hooks = [
    dict(type='LossScheduleHook', loss_name='loss_bdd', setting='reverse_weight', start=0.0, stop=2.0),
    dict(type='EMAHook', update_buffers=True, momentum=0.1)]
"""
KEPT = ('state_dict', 'ema_state_dict', 'distill_losses', 'optimizer', 'param_schedulers')


@pytest.fixture(scope='module')
def config(tiny_configs, tmp_path_factory):
    path = tmp_path_factory.mktemp('configs') / 'random.py'
    path.write_text(EVERYTHING_RANDOM.format(base=str(tiny_configs['distilled'])))
    return path


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('whole')
    train(config, work_dir)
    return work_dir


@pytest.mark.parametrize('workers', [0, 2])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(whole, config, tmp_path, workers):
    shutil.copy(whole / 'iter_3.pth', tmp_path)
    options = [
        f'train_dataloader.num_workers={workers}',
        f'train_dataloader.persistent_workers={workers > 0}',
    ]
    output = train(config, tmp_path, '--resume', '--cfg-options', *options)
    assert 'resumed epoch: 0, iter: 3' in output
    middle, end, resumed = (
        load_checkpoint(path)
        for path in (whole / 'iter_3.pth', whole / 'iter_6.pth', tmp_path / 'iter_6.pth')
    )
    for key in KEPT:
        assert same(end[key], resumed[key]), key
        assert not same(middle[key], end[key]), key
    assert logged_losses(whole)[3:] == logged_losses(tmp_path)


def logged_losses(work_dir) -> list[dict]:
    clocks = ('time', 'data_time', 'memory')
    return [{k: v for k, v in record.items() if k not in clocks} for record in logged(work_dir)]


def scores(work_dir) -> dict[int, float]:
    records = [json.loads(line) for file in work_dir.glob('*/vis_data/scalars.json') for line in file.open()]
    return {record['step']: record['mIoU'] for record in records if 'mIoU' in record}


def test_a_validation_that_may_not_have_happened_is_made_up_for(whole, config, tmp_path):
    """A checkpoint is saved before the validation of its iteration."""
    shutil.copy(whole / 'iter_6.pth', tmp_path)
    assert 'Validating at iteration 6' in train(config, tmp_path, '--resume')
    assert set(scores(whole)) == {3, 6}
    assert scores(tmp_path) == {6: scores(whole)[6]}


def test_resuming_with_nothing_saved_begins(config, tmp_path):
    assert f'no checkpoint in {tmp_path} yet' in train(
        config, tmp_path, '--resume', '--cfg-options', 'train_cfg.max_iters=1'
    )
    assert [record['step'] for record in logged(tmp_path)] == [1]


class Numbers:
    """A data set whose samples are random numbers of each of the three kinds that augmentations use."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


class Hub(dict):
    get_info, update_info = dict.get, dict.__setitem__


def draws(rank, world_size, batch_size, workers, first, batches, seed=3) -> list[tuple]:
    """What one of ``world_size`` processes loads from batch ``first`` on."""
    dataset = Numbers()
    sampler = InfiniteSampler(dataset, seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=list)
    loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    runner = SimpleNamespace(
        train_dataloader=loader, train_loop=loop, iter=first, seed=seed, hooks=[], message_hub=Hub()
    )
    ExactResumeHook().before_train(runner)
    sampler.skip(first * batch_size)
    iterator = iter(loader)
    return [tuple(sample) for _ in range(batches) for sample in next(iterator)]


@pytest.mark.parametrize('workers', [0, 1, 3])
@pytest.mark.parametrize('world_size', [1, 2, 4])
def test_a_draws_random_numbers_follow_from_its_number_alone(workers, world_size):
    expected = draws(0, 1, 4, 0, 0, 6)
    assert len(set(expected)) == 24
    shares = [draws(rank, world_size, 4 // world_size, workers, 2, 4) for rank in range(world_size)]
    assert [sample for together in zip(*shares, strict=True) for sample in together] == expected[8:]


def test_another_seed_draws_other_numbers():
    first, second = draws(0, 1, 4, 0, 0, 5), draws(0, 1, 4, 0, 0, 5, seed=4)
    assert not {sample[1:] for sample in first} & {sample[1:] for sample in second}
    assert [sample[0] for sample in first] != [sample[0] for sample in second]


def test_the_random_numbers_of_an_iteration_follow_from_its_number():
    def number(iteration, seed=1):
        ExactResumeHook().before_train_iter(SimpleNamespace(seed=seed, iter=iteration), 0)
        return torch.rand(()).item(), np.random.rand()

    assert number(5) == number(5)
    assert len({value for key in [(5, 1), (6, 1), (5, 2)] for value in number(*key)}) == 6


def test_other_loops_are_warned_of():
    dataset = Numbers()
    loader = DataLoader(dataset, 2, sampler=DefaultSampler(dataset, seed=0))
    for loop in (IterBasedTrainLoop, EpochBasedTrainLoop):
        said = []
        runner = SimpleNamespace(
            train_dataloader=loader, train_loop=loop.__new__(loop), iter=0, seed=1,
            logger=SimpleNamespace(warning=said.append), hooks=[], message_hub=Hub(),
        )  # fmt: skip
        ExactResumeHook().before_train(runner)
        assert len(said) == 1
        assert 'InfiniteSampler' in said[0]


def test_the_draws_can_be_sent_to_workers_that_are_spawned():
    dataset = Numbers()
    sampler = InfiniteSampler(dataset, seed=3)
    next(iter(sampler))
    load = resume._SeededDraws(dataset, sampler, 2, 0)
    expected = load([0, 1])
    load.next_batch = 0
    assert pickle.loads(pickle.dumps(load))([0, 1]) == expected


def test_content_that_could_not_be_resumed_is_told_at_the_first_save():
    said = []
    runner = SimpleNamespace(logger=SimpleNamespace(warning=said.append))
    hook = ExactResumeHook()
    meta = {'dataset_meta': ConfigDict(groups={'flat': [0, 1]})}
    hook.before_save_checkpoint(runner, {'meta': meta, 'message_hub': {}, 'state_dict': {}})
    assert said == []
    for _ in range(2):
        hook = hook if said else ExactResumeHook()
        hook.before_save_checkpoint(runner, {'meta': meta, 'message_hub': Hub()})
    assert len(said) == 1
    assert 'more than data' in said[0] and 'Hub' in said[0]


def test_the_interval_of_validations_that_changes_on_the_way():
    validated = []
    loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    loop._iter, loop._epoch, loop._max_iters, loop.val_begin = 150, 0, 400, 1
    loop.val_interval, loop.dynamic_milestones, loop.dynamic_intervals = 400, [0, 100], [400, 50]
    runner = SimpleNamespace(
        train_loop=loop, logger=SimpleNamespace(info=lambda _: None),
        val_loop=SimpleNamespace(run=lambda: validated.append(loop.iter)),
    )  # fmt: skip
    ExactResumeHook().before_train_epoch(runner)
    assert validated == [150]


def test_a_lone_checkpoint_is_warned_of():
    said = []
    hooks = [CheckpointHook(max_keep_ckpts=2), CheckpointHook(max_keep_ckpts=1)]
    dataset = Numbers()
    for i in range(2):
        runner = SimpleNamespace(
            train_dataloader=DataLoader(dataset, 2, sampler=InfiniteSampler(dataset, seed=0)),
            train_loop=IterBasedTrainLoop.__new__(IterBasedTrainLoop), iter=0, seed=1,
            logger=SimpleNamespace(warning=said.append), hooks=hooks[i:], message_hub=Hub(),
        )  # fmt: skip
        ExactResumeHook().before_train(runner)
    assert len(said) == 2
    assert 'max_keep_ckpts=1' in said[0]


def test_machines_that_see_different_work_dirs_are_refused(monkeypatch):
    monkeypatch.setattr(resume, 'all_gather', lambda own: [own, torch.tensor(0)])
    with pytest.raises(ConfigError, match=r'different iterations, \[4, 0\].*/work'):
        ExactResumeHook().before_train(SimpleNamespace(iter=4, work_dir='/work'))


def save(path, age=0):
    torch.save({'state_dict': {}}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_latest_checkpoint_is_the_one_noted(tmp_path):
    note = tmp_path / 'last_checkpoint'
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / 'none') is None
    older, newer = save(tmp_path / 'iter_9.pth'), save(tmp_path / 'iter_1000.pth', age=5)
    note.write_text('/another/machine/iter_1000.pth\n')
    assert latest_checkpoint(tmp_path) == newer
    note.write_text('')  # killed while writing the note
    assert latest_checkpoint(tmp_path) == older
    note.unlink()
    assert latest_checkpoint(tmp_path) == older
    note.write_text('s3://bucket/iter_8.pth')
    assert latest_checkpoint(tmp_path) == 's3://bucket/iter_8.pth'
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    note.write_text(str(save(elsewhere / 'epoch_3.pth')))  # CheckpointHook's out_dir
    assert latest_checkpoint(tmp_path) == elsewhere / 'epoch_3.pth'


def test_a_noted_checkpoint_that_is_gone_does_not_begin_a_training_anew(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/another/disk/iter_8.pth')
    with pytest.raises(ConfigError, match="'/another/disk/iter_8.pth', which is gone"):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_cut_short_is_passed_over_with_a_word(tmp_path, capsys):
    save(tmp_path / 'iter_3.pth', age=9)
    content = save(tmp_path / 'iter_6.pth').read_bytes()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_6.pth'))
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (tmp_path / 'iter_6.pth').write_bytes(content[:length])
        assert latest_checkpoint(tmp_path) == tmp_path / 'iter_3.pth'
        assert 'iter_6.pth' in capsys.readouterr().out


def test_only_broken_checkpoints_do_not_begin_a_training_anew(config, tmp_path, monkeypatch):
    (tmp_path / 'iter_3.pth').write_bytes(b'half')
    message = complaint(monkeypatch, TRAIN, config, '--work-dir', tmp_path, '--resume')
    assert 'nothing to resume from' in message and 'iter_3.pth' in message
