"""Tiny networks, configs and checkpoints that the tests share."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample

import bdd_seg  # noqa: F401  registers the models
from bdd_seg.datasets.street_scenes import write_dataset

# Of the tools that tests start, too: with tiny networks threads only get into each other's way.
os.environ.setdefault('OMP_NUM_THREADS', '1')

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / 'configs'
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


@pytest.fixture(autouse=True, scope='session')
def _few_threads():
    torch.set_num_threads(1)
    init_default_scope('mmseg')


@pytest.fixture(scope='session')
def camvid() -> Path:
    """The real street images; a test that wants them is skipped where they are absent."""
    places = [os.environ.get('CAMVID_ROOT'), ROOT / 'data/camvid', ROOT.parent / 'shared/data/camvid']
    for place in places:
        if place and (Path(place) / 'images/train').is_dir():
            return Path(place)
    pytest.skip('CamVid is neither in $CAMVID_ROOT nor in data/camvid')


@pytest.fixture(scope='session')
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('street_scenes')
    write_dataset(root, num_train=8, num_val=4, height=48, width=96, seed=0, workers=1)
    return root


@pytest.fixture(scope='session')
def tiny_configs(tmp_path_factory, scenes) -> dict[str, Path]:
    """Config files for a teacher, a student and the student distilled: the demo's, shrunk."""
    folder = tmp_path_factory.mktemp('configs')
    checkpoint = folder / 'teacher.pth'
    paths = {}
    for kind, name in NAMES.items():
        model = {key: dict(value) for key, value in WIDTH.items()}
        expansion = 4 if kind == 'teacher' else 1
        model['decode_head']['channels'] = 16 if kind == 'teacher' else 8
        model['decode_head']['in_channels'] = 32 * expansion
        model['auxiliary_head']['in_channels'] = 16 * expansion
        if kind == 'distilled':
            model['teacher'] = {'config': str(paths['teacher']), 'checkpoint': str(checkpoint)}
        paths[kind] = folder / f'{kind}.py'
        paths[kind].write_text(tiny_config(CONFIGS / name, model, scenes))
    torch.manual_seed(7)
    teacher = build(paths['teacher'])
    with torch.no_grad():
        for name, buffer in teacher.named_buffers():  # statistics that eval and train mode tell apart
            if name.endswith('running_mean'):
                buffer.normal_()
    torch.save({'state_dict': teacher.state_dict()}, checkpoint)
    paths['checkpoint'] = checkpoint
    return paths


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
    from mmengine.model import revert_sync_batchnorm

    cfg = Config.fromfile(config) if isinstance(config, Path) else config
    cfg.model.update(changes)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    model.init_weights()
    return model


def same(a, b) -> bool:
    """Whether nested containers hold equal numbers, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def batch() -> tuple[torch.Tensor, list[SegDataSample]]:
    """(2, 3, 32, 64) images and samples with labels 0 to 18 and some 255."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.normal(size=(2, 3, 32, 64)).astype('float32'))
    samples = []
    for _ in range(2):
        label = rng.integers(0, 20, size=(1, 32, 64))
        label[label == 19] = 255
        sample = SegDataSample(metainfo={'img_shape': (32, 64), 'ori_shape': (32, 64)})
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(label))
        samples.append(sample)
    return images, samples


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
