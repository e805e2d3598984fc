"""A pipeline that makes a fixed number of views of each image."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import train
from mmengine.config import Config
from mmseg.registry import TRANSFORMS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import check_data

PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations'},
    {'type': 'RandomCrop', 'crop_size': (32, 64)},
    {'type': 'RandomFlip', 'prob': 0.5},
    {'type': 'PhotoMetricDistortion'},
    {'type': 'PackSegInputs'},
]


def sample_of(scenes, number):
    image = sorted((scenes / 'leftImg8bit/train').rglob('*.png'))[number]
    labels = (
        str(image).replace('leftImg8bit.png', 'gtFine_labelTrainIds.png').replace('leftImg8bit', 'gtFine')
    )
    return {'img_path': str(image), 'seg_map_path': labels, 'seg_fields': [], 'reduce_zero_label': False}


def views(scenes, number, count, seed, draws=40):
    np.random.seed(seed)
    pipeline = TRANSFORMS.build({'type': 'FixedViews', 'views': count, 'transforms': PIPELINE})
    samples = [pipeline(sample_of(scenes, number)) for _ in range(draws)]
    return [(sample['inputs'], sample['data_samples'].gt_sem_seg.data) for sample in samples]


def kinds(samples):
    return Counter(image.numpy().tobytes() + label.numpy().tobytes() for image, label in samples)


@pytest.mark.parametrize('count', [1, 3])
def test_there_are_as_many_views_as_asked_for_the_same_in_every_run(scenes, count):
    first, second = (kinds(views(scenes, 0, count, seed)) for seed in (0, 1))
    assert len(first) == count and first.keys() == second.keys()
    if count > 1:
        assert first != second  # in another order and number
        assert min(first.values()) > 40 / count / 3


def test_images_have_views_of_their_own(scenes, tmp_path):
    """Two files of one content are not cropped and flipped alike."""
    first = sample_of(scenes, 0)
    second = {**first, 'img_path': shutil.copy(first['img_path'], tmp_path / 'another.png')}
    pipeline = TRANSFORMS.build({'type': 'FixedViews', 'views': 1, 'transforms': PIPELINE})
    a, b = (pipeline(sample)['inputs'] for sample in (first, second))
    assert not torch.equal(a, b)


def test_the_random_numbers_outside_are_left_alone(scenes):
    pipeline = TRANSFORMS.build({'type': 'FixedViews', 'views': 4, 'transforms': PIPELINE})
    np.random.seed(0)
    np.random.randint(4)
    expected = np.random.rand(), torch.initial_seed()
    np.random.seed(0)
    pipeline(sample_of(scenes, 0))
    assert (np.random.rand(), torch.initial_seed()) == expected


@pytest.mark.parametrize('views', [0, -1, 2.5, '3'])
def test_wrong_numbers_of_views(views):
    with pytest.raises(ConfigError, match='views must be a positive whole number'):
        TRANSFORMS.build({'type': 'FixedViews', 'views': views, 'transforms': PIPELINE})


def test_a_training_in_one_line_whose_record_stops_growing(tiny_configs, tmp_path):
    config = tmp_path / 'views.py'
    pipeline = "[dict(type='FixedViews', views=1, transforms=_base_.train_dataloader.dataset.pipeline)]"
    config.write_text(
        f'_base_ = {str(tiny_configs["distilled"])!r}\n'
        f'train_dataloader = dict(dataset=dict(pipeline={pipeline}))\n'
    )
    folder = tmp_path / 'record'
    for seed in (0, 1):
        options = f'model.teacher.record={folder}', f'randomness.seed={seed}'
        train(config, tmp_path / f'seed{seed}', '--cfg-options', *options)
        assert len([*folder.rglob('*.safetensors')]) == 8  # one for each image


def test_a_cache_of_whole_images_cannot_follow_it(scenes):
    views = {'type': 'FixedViews', 'views': 2, 'transforms': PIPELINE}
    pipeline = TRANSFORMS.build({'type': 'FollowGeometry', 'transforms': [views]})
    with pytest.raises(ConfigError, match='FixedViews loads and transforms the image in one'):
        pipeline(sample_of(scenes, 0))


def test_loading_and_cropping_are_checked_within(tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [dict(type='FixedViews', views=2, transforms=dataset.pipeline)]
    check_data(cfg, 'train')
    inner = dataset.pipeline[0]['transforms']
    assert [step['type'] for step in inner[:3]] == ['CheckedLoading', 'CheckedLoading', 'CheckedCrop']
