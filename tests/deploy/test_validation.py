"""mIoU on the validation set of a config."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.registry import DATASETS

from bdd_seg.deploy.load import trained_of
from bdd_seg.deploy.validation import Validation
from bdd_seg.errors import ConfigError


@pytest.fixture
def cfg(tiny_configs):
    return Config.fromfile(tiny_configs['teacher'])


def test_miou_is_that_of_all_pixels(cfg, tiny_configs):
    model = trained_of(cfg, tiny_configs['checkpoint']).model
    validation = Validation(cfg)
    found = validation.miou(model, 'x')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    table = np.zeros((19, 19))
    for item in dataset:
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([item]))
        truth, answer = (field.data[0].numpy() for field in (sample.gt_sem_seg, sample.pred_sem_seg))
        np.add.at(table, (truth[truth != 255], answer[truth != 255]), 1)
    both = np.diag(table)
    with np.errstate(invalid='ignore'):
        ious = both / (table.sum(0) + table.sum(1) - both)
    assert found == pytest.approx(100 * np.nanmean(ious), abs=0.006) and found > 0
    assert validation.miou(model, 'x') == found  # the config's settings are as they were


@pytest.mark.parametrize('form', ['list', 'metrics'])
def test_other_forms_of_evaluators(cfg, form, tiny_configs):
    model = trained_of(cfg, tiny_configs['checkpoint']).model
    expected = Validation(cfg).miou(model, 'x')
    plain = dict(cfg.val_evaluator)
    cfg.val_evaluator = [plain] if form == 'list' else {'type': 'Evaluator', 'metrics': [plain]}
    assert Validation(cfg).miou(model, 'x') == expected


def test_wrong_configs(cfg, tiny_configs, tmp_path):
    model = trained_of(cfg, tiny_configs['checkpoint']).model
    cfg.val_evaluator.iou_metrics = ['mDice']
    with pytest.raises(ConfigError, match='no mIoU. Add'):
        Validation(cfg).miou(model, 'x')
    cfg.val_dataloader.dataset.data_root = str(tmp_path / 'missing')
    with pytest.raises(ConfigError, match='not on this machine'):
        Validation(cfg)
    for key in ('val_dataloader', 'test_dataloader'):
        cfg.pop(key)
    with pytest.raises(ConfigError, match='has no val_dataloader'):
        Validation(cfg)
