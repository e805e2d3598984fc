"""Samples tried before training: batches that cannot be made, maps that are missing, and no trace left."""

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import same
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.registry import MODELS, TRANSFORMS
from PIL import Image

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.rehearsal import RehearsalHook, _of_different_sizes
from bdd_seg.runtime.upstream.config_text import skip_layout

LOAD = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
PACK = {'type': 'PackSegInputs'}
CROP = {'type': 'RandomCrop', 'crop_size': (32, 32)}


@TRANSFORMS.register_module()
class RecordDraws(BaseTransform):
    """Writes down the images and random numbers that it is given, and counts them itself."""

    seen: list = []

    def __init__(self):
        self.count = 0

    def transform(self, results):
        self.count += 1
        numbers = random.random(), np.random.rand(), torch.rand(()).item()
        self.seen.append((results['img_path'], self.count, *numbers))
        return results


@pytest.fixture
def data(tmp_path):
    """Eight images of which two are of other sizes."""
    rng = np.random.default_rng(0)
    for kind in ('images', 'labels'):
        (tmp_path / kind).mkdir()
    for i in range(8):
        height, width = {3: (40, 70), 6: (90, 40)}.get(i, (48, 64))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f'images/{i}.png')
        Image.fromarray(image[..., 0] % 2).save(tmp_path / f'labels/{i}.png')
    return tmp_path


def loader(data, pipeline, batch_size, sampler='InfiniteSampler') -> dict:
    return {
        'batch_size': batch_size,
        'num_workers': 0,
        'sampler': {'type': sampler, 'shuffle': False},
        'dataset': {
            'type': 'BaseSegDataset',
            'data_root': str(data),
            'data_prefix': {'img_path': 'images', 'seg_map_path': 'labels'},
            'img_suffix': '.png',
            'metainfo': {'classes': ('a', 'b')},
            'pipeline': pipeline,
        },
    }


@pytest.fixture(scope='module')
def student(tiny_configs) -> Config:
    return Config.fromfile(tiny_configs['student'])


@pytest.fixture
def rehearse(student, data):
    """Rehearses as a Runner does, with its own data loaders and a whole model."""

    def run(pipeline, batch_size=2, val_batch_size=None, model=None, **preprocessor) -> None:
        cfg = copy.deepcopy(student)
        for key, settings in (model or {}).items():
            cfg.model[key] = settings
        cfg.model.data_preprocessor.update(size=(32, 32))
        cfg.model.data_preprocessor.update(preprocessor)
        runner = SimpleNamespace(
            model=MODELS.build(cfg.model),
            train_dataloader=Runner.build_dataloader(loader(data, pipeline, batch_size), seed=0),
            val_loop=None,
        )
        if val_batch_size is not None:
            settings = loader(data, [*LOAD, PACK], val_batch_size, 'DefaultSampler')
            runner.val_loop, runner.val_dataloader = object(), Runner.build_dataloader(settings, seed=0)
        RehearsalHook().before_train(runner)

    return run


def test_images_of_different_sizes_in_a_batch(rehearse):
    expected = (
        r'train_dataloader: .* different sizes, such as 40×70 \(\S+/3.png\) and 90×40 \(\S+/6.png\), in a '
        r'batch of 2. Crop them, .*RandomCrop.*model.data_preprocessor.size_divisor=32 with size=None'
    )
    with pytest.raises(ConfigError, match=expected):
        rehearse([*LOAD, PACK])


def test_both_mends_work(rehearse):
    rehearse([*LOAD, CROP, PACK])
    rehearse([*LOAD, PACK], size=None, size_divisor=32)


def test_validation_in_batches(rehearse):
    expected = r'val_dataloader: .* different sizes, .* in a batch of 3. .*write val_dataloader.batch_size=1'
    with pytest.raises(ConfigError, match=expected):
        rehearse([*LOAD, CROP, PACK], val_batch_size=3)
    rehearse([*LOAD, CROP, PACK], val_batch_size=1)


PID = {
    'type': 'PIDHead',
    'in_channels': 32,
    'channels': 8,
    'num_classes': 2,
    'norm_cfg': {'type': 'BN'},
    'act_cfg': {'type': 'ReLU'},
    'loss_decode': [{'type': 'CrossEntropyLoss'}] * 2
    + [{'type': 'BoundaryLoss'}, {'type': 'OhemCrossEntropy'}],
}
PIDNET = {
    'backbone': {
        'type': 'PIDNet',
        'channels': 8,
        'ppm_channels': 8,
        'num_stem_blocks': 1,
        'num_branch_blocks': 1,
    },
    'decode_head': PID,
    'auxiliary_head': None,
}


def test_a_map_that_a_head_learns_from(rehearse):
    expected = (
        r'model.decode_head \(PIDHead\) learns from gt_edge_map, .*'
        r"Add dict\(type='GenerateEdge'\) to it, before PackSegInputs"
    )
    with pytest.raises(ConfigError, match=expected):
        rehearse([*LOAD, CROP, PACK], model=PIDNET)
    rehearse([*LOAD, CROP, {'type': 'GenerateEdge'}, PACK], model=PIDNET)


def test_a_training_is_the_same_as_without(student, data, monkeypatch):
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
    runs = []
    for rehearse in (False, True):
        RecordDraws.seen.clear()
        cfg = copy.deepcopy(student)
        skip_layout(cfg)
        cfg.train_dataloader = loader(data, [*LOAD, CROP, {'type': 'RecordDraws'}, PACK], 2)
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        cfg.train_cfg.max_iters = 2
        cfg.update(work_dir=str(data / 'run'), experiment_name=f'{data.name}_{rehearse}')
        cfg.visualizer.name = cfg.experiment_name
        if not rehearse:
            del cfg.default_hooks.rehearsal
        runner = Runner.from_cfg(cfg)
        runner.train()
        runner.message_hub.pop_info('dataset_meta')  # teachers of later tests have other classes
        runs.append((list(RecordDraws.seen), runner.model.state_dict()))
    (plain, weights), (seen, same_weights) = runs
    assert len(plain) == 4 and len(seen) == 8
    assert seen[4:] == plain
    assert same(same_weights, weights)


def test_images_that_cannot_be_read_are_found_wherever_they_are_drawn(rehearse, data):
    for path in data.glob('images/*.png'):
        if path.stem != '0':
            path.write_bytes(b'')
    load = [{'type': 'CheckedLoading', 'transform': step} for step in LOAD]
    with pytest.raises(ConfigError, match=r"images/\d.png' cannot be read: it is empty"):
        rehearse([*load, CROP, PACK], batch_size=1)


class Infos:
    """A data set that knows where its images are."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def get_data_info(self, i):
        return {'img_path': self.paths[i]}


def test_the_smallest_and_the_largest_come_first(tmp_path):
    sizes = [(50, 40)] * 5 + [(30, 90), (10, 20), (50, 40), (80, 60), (70, 60), (50, 40)]
    for i, size in enumerate(sizes):
        Image.new('RGB', size).save(tmp_path / f'{i}.png')
    dataset = Infos([tmp_path / f'{i}.png' for i in range(len(sizes))])
    assert _of_different_sizes(dataset, 4) == [6, 8, 9, 5]
    assert _of_different_sizes(Infos([tmp_path / 'absent.png'] * 9), 4) == [0, 1, 2, 3]
    assert _of_different_sizes([None] * 200, 2) == [0, 6]
    assert _of_different_sizes(Infos(dataset.paths[:1]), 4) == [0]
