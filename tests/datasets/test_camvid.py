import numpy as np
import torch
from helpers import CONFIGS
from mmseg.registry import DATASETS

from bdd_seg.runtime.upstream.configs import load_config

CONFIG = CONFIGS / 'bdd/bdd_pspnet_r101-d8_pspnet_r18-d8_1xb8-20k_camvid-360x480.py'


def build(camvid, loader: str):
    cfg = load_config(CONFIG)
    return DATASETS.build({**cfg[loader].dataset, 'data_root': str(camvid)})


def test_reads_the_splits(camvid):
    sizes = {loader: len(build(camvid, f'{loader}_dataloader')) for loader in ('train', 'val', 'test')}
    assert sizes == {'train': 367, 'val': 101, 'test': 233}


def test_a_sample_is_a_street(camvid):
    dataset = build(camvid, 'test_dataloader')
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 360, 480)
    assert sample['inputs'].dtype == torch.uint8
    label = sample['data_samples'].gt_sem_seg.data
    assert label.shape == (1, 360, 480)
    assert set(np.unique(label)) <= {*range(11), 255}
    classes = dataset.metainfo['classes']
    assert len(classes) == len(dataset.metainfo['palette']) == 11
    rows = torch.arange(360.0)
    height = {name: rows[(label[0] == i).any(1)].mean().item() for i, name in enumerate(classes)}
    assert height['sky'] < height['building'] < height['road']  # the names belong to these indices


def test_training_samples_fill_the_crop(camvid):
    sample = build(camvid, 'train_dataloader')[3]
    height, width = sample['inputs'].shape[1:]
    assert height <= 360 and width <= 480
    assert sample['data_samples'].gt_sem_seg.data.shape == (1, height, width)
