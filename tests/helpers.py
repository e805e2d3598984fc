"""Helpers that several tests share: tiny configs, runs of the tools, comparisons."""

import json
import logging
import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
import yaml
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmseg.registry import MODELS, TRANSFORMS
from torch import Tensor
from warm_python import warm_python

import bdd_seg  # noqa: F401  registers the models
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

ROOT = Path(__file__).parent.parent

CONFIGS = ROOT / 'configs'

TRAIN, TEST = ROOT / 'tools/train.py', ROOT / 'tools/test.py'

MMSEG_TOOLS = Path(mmseg.__file__).parent / '.mim/tools'

NAMES = {
    'teacher': 'pspnet/pspnet_r50-d8-w16_1xb8-demo_street-scenes-96x192.py',
    'student': 'pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py',
    'distilled': 'bdd/bdd_pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py',
}

WIDTH = {
    'backbone': {'base_channels': 4, 'stem_channels': 4},
    'decode_head': {'channels': 8},
    'auxiliary_head': {'channels': 8},
    'data_preprocessor': {'size': (32, 64)},
}


def tiny_config(base: Path, model: dict, data_root: Path) -> str:
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations'},
        {'type': 'RandomCrop', 'crop_size': (32, 64)},
        {'type': 'RandomFlip', 'prob': 0.5},
        {'type': 'PackSegInputs'},
    ]
    test_pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}]
    loader = {'num_workers': 0, 'persistent_workers': False}
    train_dataset = {'data_root': str(data_root), 'pipeline': pipeline}
    test_dataset = {'data_root': str(data_root), 'pipeline': test_pipeline}
    settings = {
        'model': model,
        'train_dataloader': {**loader, 'batch_size': 2, 'dataset': train_dataset},
        'val_dataloader': {**loader, 'dataset': test_dataset},
        'test_dataloader': {**loader, 'dataset': test_dataset},
        'train_cfg': {'max_iters': 6, 'val_begin': 1, 'val_interval': 6},
        'default_hooks': {'logger': {'interval': 1}, 'checkpoint': {'interval': 3}},
        'randomness': {'seed': 0},
        'img_ratios': [1.0],
    }
    lines = [f'{key} = {value!r}' for key, value in settings.items()]
    return '\n'.join([f'_base_ = {str(base)!r}', *lines])


def build(config: Path | Config, **changes) -> torch.nn.Module:
    """The model of a config, its weights initialised, SyncBN replaced as a Runner on one process does."""
    cfg = Config.fromfile(config) if isinstance(config, Path) else config
    cfg.model.update(changes)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    model.init_weights()
    return model


def same(a, b) -> bool:
    """Return whether nested containers hold equal numbers, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def run(*arguments, launcher=(), expect=0) -> str:
    """Run a tool in its own process and return what it printed."""
    command = [warm_python(), *launcher, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == expect, f'{command}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}'
    return done.stdout + done.stderr


def train(config, work_dir, *arguments, tool=TRAIN, **kwargs) -> str:
    return run(tool, config, '--work-dir', work_dir, *arguments, **kwargs)


def logged(work_dir: Path) -> list[dict]:
    """The scalars of the training iterations of a work dir, in order."""
    lines = [line for path in sorted(work_dir.glob('*/vis_data/scalars.json')) for line in path.open()]
    return [record for record in map(json.loads, lines) if 'loss' in record]


def weights(path: Path) -> dict:
    return load_checkpoint(path)['state_dict']


def miou(output: str) -> list[str]:
    """aAcc, mIoU and mAcc as printed at the end of an evaluation."""
    return re.findall(r'(?:aAcc|mIoU|mAcc): ([\d.]+|nan)', output)[-3:]


def complaint(monkeypatch, tool, *arguments) -> str:
    """The one line that a tool ends with, run in this process."""
    monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)  # the tool sets it
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name='__main__')
    message = ended.value.code
    assert isinstance(message, str) and message.startswith('error: ') and '\n' not in message
    return message


@TRANSFORMS.register_module()
class LoadCoordinates(BaseTransform):
    """An image that says of each of its pixels where it is: channels x, y and 1, in floating point.

    Whatever resamples it bilinearly writes into each new pixel where that came from.
    """

    def __init__(self, height: int, width: int) -> None:
        self.shape = height, width

    def transform(self, results):
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
        results.update(
            img=np.stack([x, y, np.ones_like(x)], axis=2), img_shape=self.shape, ori_shape=self.shape
        )
        results['gt_seg_map'] = (x // 8 % 5).astype(np.uint8)
        results['seg_fields'].append('gt_seg_map')
        return results


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def distributions(logits: Tensor, domain: str, tau: float, mask: Tensor | None) -> list[Tensor]:
    """Every distribution as a list of float64 probabilities' logarithms, one Python step at a time."""
    found = []
    for n, image in enumerate(logits.double() / tau):
        kept = torch.ones(image.shape[1:], dtype=torch.bool) if mask is None else mask[n]
        columns = image[:, kept]  # (C, positions that count)
        for values in columns.T if domain == 'pixel' else columns:
            if len(values):
                found.append(values - torch.logsumexp(values, 0))
    return found


def naive(student, teacher, domain, tau_forward, tau_reverse, alpha, beta, mask=None) -> float:
    total = 0.0
    for tau, weight, forward in ((tau_forward, alpha, True), (tau_reverse, beta, False)):
        pairs = list(
            zip(
                distributions(teacher, domain, tau, mask),
                distributions(student, domain, tau, mask),
                strict=True,
            )
        )
        sums = [
            (math.fsum((p.exp() * (p - q)).tolist()) if forward else math.fsum((q.exp() * (q - p)).tolist()))
            for p, q in pairs
        ]
        total += weight * tau**2 * math.fsum(sums) / max(1, len(sums))
    return total


# A config with everything random that mmseg has.
EVERYTHING_RANDOM = """
_base_ = {base!r}
feature = dict(student_tap='backbone.layer4', teacher_tap='backbone.layer4')
memory = dict(num_classes=19, pixel_memory=40, region_memory=5, pixel_keys=100, region_keys=40, positions=30)
model = dict(
    decode_head=dict(dropout_ratio=0.3),
    balance_gradients=1.0,
    distill_losses=[
        dict(type='BDDLoss', schedule=dict(reverse_weight=(0.0, 2.0), curve='cosine')),
        dict(type='FeatureLoss', schedule=dict(loss_weight=(1.0, 0.0)), **feature),
        dict(type='MGDLoss', **feature),
        dict(type='CIRKDMemoryLoss', **memory, **feature)])
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
    dict(type='EMAHook', update_buffers=True, momentum=0.1)]
"""
# The parts of a checkpoint that a resumed run must end with.
KEPT = ('state_dict', 'ema_state_dict', 'distill_losses', 'optimizer', 'param_schedulers')


def logged_losses(work_dir: Path) -> list[dict]:
    """Return the scalars of the training iterations without those that clocks and memory decide."""
    clocks = ('time', 'data_time', 'memory')
    return [{k: v for k, v in record.items() if k not in clocks} for record in logged(work_dir)]


def study_run(method, seed, miou, equal='iterations', stage='final', setting=None, **facts) -> dict:
    """A run as in results.json, with scores on val one point above those on test; a search has val alone."""
    classes = {'sky': miou + 40, 'train': None, 'pole': miou - 20}
    scores = {
        split: {'mIoU': score, 'aAcc': 80.0, 'mAcc': 50.0, 'classes': classes}
        for split, score in (('val', miou + 1), ('test', miou))
        if split == 'val' or stage != 'search'
    }
    run = {'method': method, 'stage': stage, 'equal': equal, 'seed': seed, 'setting': setting or {}}
    if stage != 'reference':
        run.update(iterations=900, seconds_per_iteration=0.2, seconds=180.0, peak_memory_mb=900.0)
    return {**run, 'scores': scores, 'finished': '2025-01-01T00:00:00', **facts}


def study_runs(method, mious, **facts) -> list[dict]:
    """Final runs with seeds 0, 1, 2, …"""
    return [study_run(method, seed, miou, **facts) for seed, miou in enumerate(mious)]


def study_results(labels: dict[str, str], runs: list[dict]) -> dict:
    """The content of a results.json. Labels are method → label."""
    return {
        'title': 'CamVid',
        'command': 'python tools/study.py camvid.yaml',
        'control': 'alone',
        'select_on': 'val',
        'splits': ['val', 'test'],
        'compare': ['bdd'],
        'wall_clock_of': None,
        'methods': {
            name: {'label': label, 'config': f'{name}.py', 'loss': {}, 'setting': {}, 'trials': 0}
            for name, label in labels.items()
        },
        'runs': runs,
        'environment': {'cpu': 'Xeon', 'cores': 2, 'gpu': None, 'torch': '2.13.0', 'jobs': 2},
        'notes': ['Nothing on Cityscapes.'],
    }


def small_study() -> dict:
    """Results in which BDD is ahead of the student alone, behind CWD, and not told apart from KD."""
    labels = {'teacher': 'teacher', 'kd': 'KD', 'alone': 'alone', 'bdd': 'BDD', 'cwd': 'CWD', 'late': 'late'}
    return study_results(
        labels,
        [
            study_run('teacher', 0, 45.0, stage='reference'),
            *study_runs('kd', [34.0, 30.5, 33.0]),
            *study_runs('bdd', [32.0, 33.0, 33.4], seconds_per_iteration=0.3, seconds=270.0),
            *study_runs('alone', [30.0, 31.0, 32.0]),
            *study_runs('cwd', [34.0, 35.0, 35.5]),
        ],
    )


def large_study() -> dict:
    """Results of seven methods and the student alone, five seeds, eleven classes, both budgets."""
    rng = np.random.default_rng(0)
    names = ['alone', 'bdd', 'kd', 'cwd', 'dist', 'mgd', 'bdd-pixel', 'a method with a long name']
    classes = [f'class {i}' for i in range(11)]
    runs = []
    for i, (name, equal) in enumerate((n, e) for e in ('iterations', 'wall_clock') for n in names):
        runs += study_runs(name, rng.normal(35 + i % 3, 0.5, 5).tolist(), equal=equal, seconds=180.0)
    for run in runs:
        for score in run['scores'].values():
            score['classes'] = dict(zip(classes, rng.normal(40, 5, 11).tolist(), strict=True))
    results = study_results({name: name for name in names}, runs)
    return {**results, 'wall_clock_of': 'bdd', 'environment': {'cpu': 'Xeon'}, 'notes': []}


def study_file(tiny_configs, folder, kd=None, **changes) -> Path:
    """A study file of the tiny student, alone and distilled. ``kd`` has overrides of the distilled one."""
    content = {
        'title': 't',
        'methods': {
            'alone': {'label': 'a', 'config': str(tiny_configs['student'])},
            'kd': {'label': 'b', 'config': str(tiny_configs['distilled']), 'options': kd or {}},
        },
        'control': 'alone',
        'seeds': [1],
        'select_on': 'val',
        'splits': {'val': {}, 'test': {}},
        **changes,
    }
    file = folder / 'study.yaml'
    file.write_text(yaml.safe_dump(content))
    return file
