"""Trainings with images without labels: steps, resumed, from a cache, in two processes, and what is said."""

import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import KEPT, ROOT, TRAIN, build, complaint, logged, logged_losses, same, train, weights
from many_processes import job, relative_errors, torchrun, write_config
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from torch import nn
from warm_python import warm_python

from bdd_seg.datasets import UnlabelledHook
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.runtime.upstream.config_text import skip_layout
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers.cached.store import TeacherCache

# The guide's configs: labelled and unlabelled images, and unlabelled ones alone.
MIXED, ALONE = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/unlabelled.md').read_text(), re.DOTALL)

SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_begin=99']


def write(path: Path, text: str, base: Path, images: str, extra: str = '') -> Path:
    """Write a config of the guide with this base and these images."""
    assert "images='data/more'" in text
    text = text.replace("_base_ = 'my_distillation.py'\n", '').replace("'data/more'", repr(images))
    path.write_text(f'_base_ = {str(base)!r}\n{text}{extra}')
    return path


@pytest.fixture(scope='module')
def images(scenes) -> str:
    """4 images, the validation's, as if they had no labels."""
    return str(scenes / 'leftImg8bit/val')


@pytest.fixture(scope='module')
def config(tiny_configs, images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('configs') / 'mixed.py'
    return write(path, MIXED, tiny_configs['distilled'], images)


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp('whole')
    train(config, work_dir)
    return work_dir


def samples_of(labels: torch.Tensor) -> list[SegDataSample]:
    samples = [
        SegDataSample(metainfo={'img_shape': label.shape, 'ori_shape': label.shape}) for label in labels
    ]
    for sample, label in zip(samples, labels, strict=True):
        sample.gt_sem_seg = PixelData(data=label[None])
    return samples


def test_a_step_ignores_their_labels_and_counts_their_teacher(tiny_configs):
    cfg = load_config(tiny_configs['distilled'])
    for key in ('decode_head', 'auxiliary_head'):
        cfg.model[key].update(dropout_ratio=0, loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True))
    model = build(cfg)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 3, 32, 64, generator=generator)
    labels = torch.randint(0, 19, (4, 32, 64), generator=generator)
    labels[0, :9] = 255
    labels[[1, 3]] = 255  # without labels
    kept, others = [0, 2], [1, 3]
    beside, alone, unlabelled = (
        model.loss(inputs[part], samples_of(labels[part])) for part in (slice(None), kept, others)
    )
    for key in ('decode.loss_ce', 'aux.loss_ce', 'distill.teacher_acc'):
        torch.testing.assert_close(beside[key], alone[key], rtol=1e-5, atol=0)
    for key in ('decode.loss_ce', 'aux.loss_ce'):
        assert beside[key] > 0 and unlabelled[key] == 0
    # In the channel domain the mean runs over images and classes.
    mean = (alone['distill.loss_bdd'] + unlabelled['distill.loss_bdd']) / 2
    torch.testing.assert_close(beside['distill.loss_bdd'], mean, rtol=1e-4, atol=0)
    assert unlabelled['distill.loss_bdd'] > 0


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(whole, config, tmp_path):
    shutil.copy(whole / 'iter_3.pth', tmp_path)
    options = ['train_dataloader.num_workers=2', 'train_dataloader.persistent_workers=True']
    assert 'iterations  4 to 6' in train(config, tmp_path, '--resume', '--cfg-options', *options)
    end, resumed = (load_checkpoint(work_dir / 'iter_6.pth') for work_dir in (whole, tmp_path))
    for key in {*KEPT} & {*end}:
        assert same(end[key], resumed[key]), key
    assert logged_losses(whole)[3:] == logged_losses(tmp_path)


def test_a_cached_teacher_answers_for_them(config, images, tmp_path, monkeypatch):
    cache = tmp_path / 'cache'
    tool = ROOT / 'tools/cache_teacher.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(config), '--out', str(cache), '--workers', '0'])
    runpy.run_path(str(tool), run_name='__main__')
    entries = TeacherCache(cache).manifest.images.values()
    assert len(entries) == 8 + 4
    assert sum(entry['path'].startswith(images) for entry in entries) == 4
    options = ['model.teacher.type=CachedTeacher', f'model.teacher.cache={cache}', *SHORT]
    options += ['model.decode_head.loss_decode.avg_non_ignore=False']
    output = train(config, tmp_path / 'work', '--cfg-options', *options)
    assert output.count('The own loss of decode_head changes by images without labels') == 1
    records = logged(tmp_path / 'work')
    assert len(records) == 2 and all(record['distill.loss_bdd'] > 0 for record in records)


def test_two_processes_do_what_one_does(tiny_configs, images, tmp_path, monkeypatch):
    """The same images make up a batch of 4 in one process and two batches of 2 in two."""
    # Means over the labelled pixels would be each process's own.
    extra = "loss['loss_decode']['avg_non_ignore'] = False\nval_dataloader = val_cfg = val_evaluator = None\n"
    for name, batch_size in (('one', 4), ('two', 2)):
        base = write_config(
            tmp_path / f'{name}_base.py', tiny_configs['distilled'], batch_size=batch_size, iterations=2
        )
        write(tmp_path / f'{name}.py', MIXED, base, images, extra)
    one = Config.fromfile(tmp_path / 'one.py')
    one.work_dir, one.experiment_name = str(tmp_path / 'one'), tmp_path.name
    skip_layout(one)
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    Runner.from_cfg(one).train()
    command = [*torchrun(2, python=warm_python()), TRAIN, tmp_path / 'two.py', '--work-dir', tmp_path / 'two']
    command += ['--launcher', 'pytorch']
    with job(command, tmp_path / 'log.txt', tmp_path) as started:
        assert started.wait() == 0, started.output[-3000:]
    errors = relative_errors(weights(tmp_path / 'two/iter_2.pth'), weights(tmp_path / 'one/iter_2.pth'))
    assert errors[0] < 1e-6 and errors[1] < 1e-4


def test_wrong_settings_end_in_one_line(config, tmp_path, monkeypatch):
    options = ['train_dataloader.dataset.unlabelled.ignore_index=9', f'experiment_name={tmp_path.name}']
    message = complaint(
        monkeypatch, TRAIN, config, '--work-dir', tmp_path, '--cfg-options', *options, 'check_data=False'
    )
    assert 'Give UnlabelledImages ignore_index=255' in message


def test_a_sampler_without_images_to_draw(tiny_configs, tmp_path, monkeypatch):
    options = ['train_dataloader.sampler.type=MixedSampler', f'experiment_name={tmp_path.name}']
    message = complaint(
        monkeypatch, TRAIN, tiny_configs['student'], '--work-dir', tmp_path, '--cfg-options', *options
    )
    assert 'MixedSampler: the data set has no images without labels, it is a' in message


@pytest.mark.parametrize(
    'model, labels, said',
    [
        ('plain', True, ['The own loss of decode_head', 'teach nothing here']),
        ('masked', True, ['The own loss of decode_head', 'teach nothing here']),
        ('distilled', True, ['The own loss of decode_head']),
        ('distilled', False, []),  # alone they change nothing
        ('exact', True, []),
    ],
)
def test_what_the_hook_says(tiny_configs, images, model, labels, said):
    cfg = load_config(tiny_configs['student' if model == 'plain' else 'distilled'])
    if model == 'masked':
        cfg.model.distill_losses[0].mask_ignored = True
    if model == 'exact':
        for key in ('decode_head', 'auxiliary_head'):
            cfg.model[key].loss_decode.avg_non_ignore = True
    unlabelled = dict(type='UnlabelledImages', images=images, pipeline=[])
    dataset = DATASETS.build(
        dict(type='WithUnlabelled', dataset=cfg.train_dataloader.dataset, unlabelled=unlabelled)
        if labels
        else unlabelled
    )
    heard = []
    runner = SimpleNamespace(
        model=revert_sync_batchnorm(MODELS.build(cfg.model)),
        train_dataloader=SimpleNamespace(dataset=dataset),
        logger=SimpleNamespace(warning=heard.append),
    )
    UnlabelledHook().before_train(runner)
    assert len(heard) == len(said)
    assert all(expected in message for expected, message in zip(said, heard, strict=True))


def test_they_train_alone(tiny_configs, images, tmp_path):
    """With a teacher that answers for them; the student's own loss is 0."""
    classes = DATASETS.get('CityscapesDataset').METAINFO['classes']
    text = ALONE.replace("('sky', 'road')", repr(classes))
    config = write(tmp_path / 'alone.py', text, tiny_configs['distilled'], images)
    train(config, tmp_path / 'work', '--cfg-options', *SHORT)
    records = logged(tmp_path / 'work')
    assert len(records) == 2
    assert all(record['decode.loss_ce'] == 0 < record['distill.loss_bdd'] for record in records)
