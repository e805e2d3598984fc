"""A teacher's check, before anything is built."""

import pytest
import torch
from helpers import build
from mmengine.config import Config
from mmengine.logging import MMLogger

from bdd_seg.distill.student import plain_model
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.teachers import CachedTeacher, MMSegTeacher
from bdd_seg.teachers.cached.store import Manifest, TeacherCache
from bdd_seg.teachers.classes import number_of_classes


@pytest.fixture
def student(tiny_configs) -> dict:
    return plain_model(Config.fromfile(tiny_configs['student']).model)


@pytest.fixture
def teacher(tiny_configs):
    def make(**changes) -> MMSegTeacher:
        settings = {'config': tiny_configs['teacher'], 'checkpoint': tiny_configs['checkpoint'], **changes}
        return MMSegTeacher(**settings)

    return make


def test_a_right_teacher_passes_and_nothing_is_built_or_drawn(teacher, student):
    found, state = teacher(), torch.get_rng_state()
    found.check(student)
    assert not found.is_built
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_of_another_network_are_refused(teacher, student, tmp_path, tiny_configs):
    weights = load_checkpoint(tiny_configs['checkpoint'])['state_dict']
    weights['decode_head.conv_seg.weight'] = torch.zeros(7, 16, 1, 1)
    torch.save({'state_dict': weights}, tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match='1 of another shape: decode_head.conv_seg.weight .7, 16'):
        teacher(checkpoint=tmp_path / 'other.pth').check(student)


def test_an_old_checkpoint_passes_without_a_warning(teacher, student, tmp_path, tiny_configs, recwarn):
    """Of torch before 1.6, without the counters of BatchNorm."""
    weights = load_checkpoint(tiny_configs['checkpoint'])['state_dict']
    weights = {key: value for key, value in weights.items() if 'num_batches' not in key}
    torch.save({'state_dict': weights}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    teacher(checkpoint=tmp_path / 'old.pth').check(student)
    assert not recwarn.list


def test_a_checkpoint_that_is_still_to_be_downloaded_is_left_alone(teacher, student, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    teacher(checkpoint='https://nowhere.invalid/teacher-12345678.pth').check(student)
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints/teacher-12345678.pth').write_text('no weights')
    with pytest.raises(ConfigError, match='teacher-12345678.pth'):
        teacher(checkpoint='https://nowhere.invalid/teacher-12345678.pth').check(student)


def test_a_network_that_computes_while_it_is_built_is_left_to_the_building(student, tmp_path):
    swin = {
        'type': 'EncoderDecoder',
        'backbone': {
            'type': 'SwinTransformer',
            'embed_dims': 8,
            'depths': (1, 1, 1, 1),
            'num_heads': (1, 1, 1, 1),
        },
        'decode_head': {
            'type': 'FCNHead',
            'in_channels': 64,
            'channels': 8,
            'num_classes': 19,
            'num_convs': 1,
            'concat_input': False,
        },
        'test_cfg': {'mode': 'whole'},
    }
    model = build(Config({'model': swin}))
    torch.save(model.state_dict(), tmp_path / 'swin.pth')
    MMSegTeacher(swin, tmp_path / 'swin.pth').check(student)
    with pytest.raises(ConfigError, match='predicts 19 classes, the student 7'):
        MMSegTeacher(swin, tmp_path / 'swin.pth').check({'decode_head': {'num_classes': 7}})


def test_a_cache_of_other_classes_is_refused(student, tmp_path):
    cache = TeacherCache(tmp_path)
    facts = {'teacher': {}, 'class_names': None, 'logits_tap': 'a', 'strides': {'a': [8, 8]}}
    manifest = Manifest(num_classes=7, align_corners=False, pipeline=[], **facts)
    cache.write_manifest(manifest)
    with pytest.raises(ConfigError, match='is not complete'):
        CachedTeacher(str(tmp_path)).check(student)
    manifest.images['digest'] = {'path': 'a.png'}
    cache.write_manifest(manifest)
    with pytest.raises(ConfigError, match='predicts 7 classes, the student 19'):
        CachedTeacher(str(tmp_path)).check(student)


@pytest.mark.parametrize(
    'head, expected',
    [
        ({'num_classes': 19}, 19),
        ({'num_classes': 2, 'out_channels': 1}, 1),
        ({'num_classes': 19, 'out_channels': 256}, 19),  # Mask2Former's width
        ({'num_classes': 2, 'out_channels': None}, 2),
        ([{'num_classes': 2}, {'num_classes': 5}], 5),
        ({'type': 'A'}, None),
        (None, None),
    ],
)
def test_the_number_of_classes_in_settings(head, expected):
    assert number_of_classes({'decode_head': head}) == expected


@pytest.mark.parametrize('slow', [True, False])
def test_bfloat16_is_warned_about_where_it_is_slow(teacher, tiny_configs, monkeypatch, capsys, slow):
    monkeypatch.setattr('bdd_seg.runtime.upstream.bfloat16.is_slow', lambda: slow)
    MMLogger.get_instance(f'precision, slow: {slow}')
    found = teacher(precision='bf16')
    found.build(build(tiny_configs['student']), [])
    lines = [line for line in capsys.readouterr().out.splitlines() if 'bfloat16' in line]
    assert len(lines) == slow
    assert all("model.teacher.precision='bf16': this CPU has no units" in line for line in lines)
    assert ', bf16' in found.summary()
