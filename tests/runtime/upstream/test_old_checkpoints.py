"""Checkpoints as OpenMMLab's own mmseg 0.x and 1.x wrote them."""

import pytest
import torch
from helpers import build
from mmengine.runner.checkpoint import load_checkpoint as mmengine_load_checkpoint

from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.teachers.mmseg import MMSegTeacher

LOGITS = 'decode_head.conv_seg'
CLASSES = ('road', 'sidewalk', 'building')
PALETTE = [[128, 64, 128], [244, 35, 232], [70, 70, 70]]
META = {
    '0.x': {
        'env_info': 'sys.platform: linux\nPython: 3.7.7\nPyTorch: 1.5.0',
        'seed': 0,
        'exp_name': 'pspnet_r101-d8_512x1024_80k_cityscapes.py',
        'mmseg_version': '0.5.0+9e6bf4a',
        'config': "norm_cfg = dict(type='SyncBN', requires_grad=True)\n",
        'CLASSES': [*CLASSES],
        'PALETTE': PALETTE,
        'epoch': 1,
        'iter': 80000,
        'mmcv_version': '1.0.0',
        'time': 'Mon Jun  8 12:00:00 2020',
        'hook_msgs': {'last_ckpt': 'work_dirs/iter_72000.pth'},
    },
    '1.x': {
        'cfg': "norm_cfg = dict(type='SyncBN', requires_grad=True)\n",
        'dataset_meta': {'classes': CLASSES, 'palette': PALETTE},
        'seed': 0,
        'experiment_name': 'pspnet_r101-d8_4xb2-80k_cityscapes-512x1024',
        'mmengine_version': '0.7.4',
        'time': '20230608_120000',
        'epoch': 0,
        'iter': 80000,
    },
}
BESIDES = {
    '0.x': {'optimizer': {'state': {}, 'param_groups': [{'lr': 0.01, 'params': [0]}]}},
    '1.x': {'message_hub': {'log_scalars': {}, 'runtime_info': {}, 'resumed_keys': {}}, 'optimizer': {}},
}


@pytest.mark.parametrize('zipped', [False, True], ids=['legacy', 'zip'])
@pytest.mark.parametrize('version', META)
def test_networks_load_them(tiny_configs, batch, tmp_path, version, zipped):
    weights = torch.load(tiny_configs['checkpoint'])['state_dict']
    file = tmp_path / 'iter_80000.pth'
    content = {'meta': META[version], 'state_dict': weights, **BESIDES[version]}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert load_checkpoint(file)['meta'] == META[version]
    model = build(tiny_configs['teacher'])
    mmengine_load_checkpoint(model, str(file), strict=True)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())
    student, answers = build(tiny_configs['student']), []
    for checkpoint in (file, tiny_configs['checkpoint']):
        teacher = MMSegTeacher(str(tiny_configs['teacher']), str(checkpoint))
        teacher.build(student, [None])
        answers.append(teacher(batch[0]).maps[LOGITS])
    assert torch.equal(*answers)
