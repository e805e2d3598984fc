"""Resumed runs are compared with an uninterrupted one, with everything random that mmseg has."""

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import EVERYTHING_RANDOM, KEPT, TRAIN, complaint, logged, logged_losses, same, train
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards import resume
from bdd_seg.runtime.guards.resume import ExactResumeHook
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint


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
    assert 'iterations  4 to 6' in output
    middle, end, resumed = (
        load_checkpoint(path)
        for path in (whole / 'iter_3.pth', whole / 'iter_6.pth', tmp_path / 'iter_6.pth')
    )
    for key in KEPT:
        assert same(end[key], resumed[key]), key
        assert not same(middle[key], end[key]), key
    assert resumed['distill_factors'] == end['distill_factors']
    memory = resumed['distill_losses']['loss_cirkd_memory']
    assert memory['draws.count'] == 6 and memory['pixels.written'].sum() > memory['regions.written'].sum() > 0
    assert logged_losses(whole)[3:] == logged_losses(tmp_path)


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


class Numbers(Dataset):
    """A data set whose samples are random numbers of each of the three kinds that augmentations use."""

    metainfo = {'classes': ('one', 'two')}

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


class Hub(dict):
    get_info, update_info = dict.get, dict.__setitem__


def runner_of(loader, iteration=0, seed=3, loop=IterBasedTrainLoop, hooks=()):
    """As much of a Runner as the hook reads, and the warnings of its log."""
    train_loop = loop.__new__(loop)
    train_loop.dataloader = loader
    train_loop.dataloader_iterator = _InfiniteDataloaderIterator(loader)
    said = []
    runner = SimpleNamespace(
        train_dataloader=loader,
        train_loop=train_loop,
        iter=iteration,
        seed=seed,
        hooks=hooks,
        message_hub=Hub(),
        logger=SimpleNamespace(warning=said.append),
    )
    return runner, said


def draws(rank, world_size, batch_size, workers, first, batches, seed=3, **settings) -> list[tuple]:
    """Return the samples that one of ``world_size`` processes loads from batch ``first`` on."""
    dataset = Numbers()
    sampler = InfiniteSampler(dataset, seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    loader = DataLoader(
        dataset, batch_size, sampler=sampler, num_workers=workers, collate_fn=list, **settings
    )
    runner, said = runner_of(loader, first, seed)
    ExactResumeHook().before_train(runner)
    assert said == []
    iterator = runner.train_loop.dataloader_iterator
    iterator.skip_iter(first)
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


@pytest.mark.parametrize(
    'workers, settings',
    [
        (1, {'multiprocessing_context': 'spawn'}),  # one alone, as it takes seconds to import what it needs
        (2, {'persistent_workers': True, 'prefetch_factor': 1}),
    ],
)
def test_workers_of_every_kind_draw_the_same(workers, settings):
    assert draws(0, 1, 4, workers, 2, 4, **settings) == draws(0, 1, 4, 0, 0, 6)[8:]


def test_the_new_data_loader_is_the_old_one_but_for_the_seeding():
    dataset = Numbers()
    settings = {
        'batch_size': 2,
        'sampler': InfiniteSampler(dataset, seed=0),
        'num_workers': 1,
        'collate_fn': list,
        'pin_memory': True,
        'drop_last': True,
        'timeout': 9,
        'worker_init_fn': print,
        'generator': torch.Generator(),
        'prefetch_factor': 5,
        'persistent_workers': True,
        'in_order': False,
    }
    loader = DataLoader(dataset, multiprocessing_context='spawn', **settings)
    runner, _ = runner_of(loader)
    ExactResumeHook().before_train(runner)
    new = runner.train_loop.dataloader
    assert new is not loader
    assert {name: getattr(new, name) for name in settings} == settings
    assert new.multiprocessing_context is loader.multiprocessing_context
    assert runner.train_loop.dataloader_iterator._dataloader is new
    assert new.dataset.dataset is dataset
    assert new.dataset.metainfo == dataset.metainfo
    assert len(new.dataset) == 5 and new.dataset[3][0] == 3
    assert not hasattr(new.dataset, 'absent')
    assert '__getitems__' not in vars(dataset)


class OtherLoader(DataLoader):
    """Of a user's own, whose settings nobody knows."""


@pytest.mark.parametrize(
    'loop, sampler, loader',
    [
        (EpochBasedTrainLoop, InfiniteSampler, DataLoader),
        (IterBasedTrainLoop, DefaultSampler, DataLoader),
        (IterBasedTrainLoop, InfiniteSampler, OtherLoader),
    ],
)
def test_other_loops_samplers_and_loaders_are_warned_of(loop, sampler, loader):
    dataset = Numbers()
    old = loader(dataset, 2, sampler=sampler(dataset, seed=0))
    runner, said = runner_of(old, loop=loop)
    ExactResumeHook().before_train(runner)
    assert len(said) == 1
    assert 'InfiniteSampler' in said[0]
    assert runner.train_loop.dataloader is old


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
        train_loop=loop,
        logger=SimpleNamespace(info=lambda _: None),
        val_loop=SimpleNamespace(run=lambda: validated.append(loop.iter)),
    )
    ExactResumeHook().before_train_epoch(runner)
    assert validated == [150]


def test_a_lone_checkpoint_is_warned_of():
    hooks = [CheckpointHook(max_keep_ckpts=2), CheckpointHook(max_keep_ckpts=1)]
    dataset = Numbers()
    for i in range(2):
        loader = DataLoader(dataset, 2, sampler=InfiniteSampler(dataset, seed=0))
        runner, said = runner_of(loader, hooks=hooks[i:])
        ExactResumeHook().before_train(runner)
        assert len(said) == 1
        assert 'max_keep_ckpts=1' in said[0]
    runner, said = runner_of(loader, hooks=hooks[:1])
    ExactResumeHook().before_train(runner)
    assert said == []


def test_machines_that_see_different_work_dirs_are_refused(monkeypatch):
    monkeypatch.setattr(resume, 'all_gather', lambda own: [own, torch.tensor(0)])
    with pytest.raises(ConfigError, match=r'different iterations, \[4, 0\].*/work'):
        ExactResumeHook().before_train(SimpleNamespace(iter=4, work_dir='/work'))


def test_only_broken_checkpoints_do_not_begin_a_training_anew(config, tmp_path, monkeypatch):
    (tmp_path / 'iter_3.pth').write_bytes(b'half')
    message = complaint(monkeypatch, TRAIN, config, '--work-dir', tmp_path, '--resume')
    assert 'nothing to resume from' in message and 'iter_3.pth' in message
