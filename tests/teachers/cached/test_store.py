import json
import os
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.teachers.cached.pipeline import read_teacher_cache
from bdd_seg.teachers.cached.store import CachedOutputs, Manifest, TeacherCache

GEOMETRY = np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])


def entry(scale: float = 1.0) -> CachedOutputs:
    outputs = {
        'decode_head.conv_seg': scale * torch.arange(24.0).reshape(2, 3, 4),
        'backbone': torch.ones(1, 1, 1),
    }
    return CachedOutputs(outputs, GEOMETRY, (24, 32), (48, 64))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    path.write_bytes(b'the content of an image')
    return str(path)


@pytest.fixture
def cache(tmp_path, image) -> TeacherCache:
    """A complete cache of one image, as another process finds it."""
    cache = TeacherCache(tmp_path / 'cache')
    manifest = Manifest(
        {'checkpoint': 'abc'}, 2, ['road', 'car'], 'decode_head.conv_seg', {'backbone': [8, 8]}, False, []
    )
    cache.write_manifest(manifest)
    digest = cache.digest(image)
    cache.write(digest, entry())
    file = cache.file_of(digest)
    told = {'sha256': file_digest(file), 'bytes': file.stat().st_size}
    manifest.images[digest] = {'path': image, 'size': [48, 64], **told}
    cache.write_manifest(manifest)
    return TeacherCache(tmp_path / 'cache')


def test_what_was_written_is_read(cache, image):
    found = cache.read(image)
    assert found.outputs.keys() == entry().outputs.keys()
    for tap, output in entry().outputs.items():
        assert found.outputs[tap].dtype == torch.float16
        assert torch.equal(found.outputs[tap].float(), output)
    assert np.array_equal(found.geometry, GEOMETRY)
    assert (found.input_shape, found.loaded_shape) == ((24, 32), (48, 64))
    assert cache.manifest.class_names == ['road', 'car']
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ['.json', '.safetensors']


def test_a_moved_image_is_found_and_a_changed_one_is_not(cache, image, tmp_path):
    moved, changed = tmp_path / 'moved.png', tmp_path / 'changed.png'
    moved.write_bytes(b'the content of an image')
    changed.write_bytes(b'the content of an imagE')
    assert cache.read(str(moved)).input_shape == (24, 32)
    with pytest.raises(
        ConfigError, match=r"changed\.png' is not in the cache .*, which holds 1 others: it was changed"
    ):
        cache.read(str(changed))


def test_missing_and_damaged_files_are_named(cache, image):
    (file,) = cache.folder.glob('*.safetensors')
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf'{file.name}.*image\.png.* are damaged; run tools/cache_teacher'):
        cache.read(image)
    assert cache.is_whole(file.stem)  # readable, so that only its digest tells
    file.write_bytes(content[:-10])
    assert not cache.is_whole(file.stem)
    file.unlink()
    assert not cache.is_whole(file.stem)
    with pytest.raises(ConfigError, match=rf'{file.name}.*image\.png.* are missing; run tools/cache_teacher'):
        cache.read(image)
    file.mkdir()  # stands for what may not be read: tests may run as root, who may
    with pytest.raises(ConfigError, match=rf'{file.name}.*image\.png. cannot be read: Is a directory'):
        cache.read(image)


def test_files_are_compared_with_the_manifest_without_reading_them(cache, image):
    (file,) = cache.folder.glob('*.safetensors')
    digest, content = file.stem, file.read_bytes()
    cache.manifest.images[digest]['bytes'] = len(content)
    cache.manifest.images['f' * 64] = {'bytes': 3}
    cache.file_of('f' * 64).write_bytes(b'any')
    assert cache.faults() == {}
    cache.check_files()
    file.write_bytes(bytes(len(content)))
    assert cache.faults() == {}
    file.write_bytes(content[:-10])
    assert cache.faults() == {digest: f'has {len(content) - 10} bytes instead of {len(content)}'}
    cache.file_of('f' * 64).unlink()
    assert cache.faults().keys() == {digest, 'f' * 64}
    with pytest.raises(
        ConfigError,
        match=rf'2 of 2 files .*, the first: {file.name} of .*image\.png. has .* bytes .*; run tools/',
    ):
        cache.check_files()
    file.unlink()
    cache.file_of('f' * 64).write_bytes(b'any')
    with pytest.raises(ConfigError, match=rf'1 of 2 files .*: {file.name} of .*image\.png. is missing; run'):
        cache.check_files()


@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_readable_as_the_umask_lets_them(tmp_path, umask, mode):
    earlier = os.umask(umask)
    try:
        cache = TeacherCache(tmp_path / 'cache')
        cache.write_manifest(Manifest({}, 2, None, 'decode_head.conv_seg', {}, False, []))
        cache.write('0' * 64, entry())
    finally:
        os.umask(earlier)
    assert [file.stat().st_mode & 0o777 for file in cache.folder.iterdir()] == [mode, mode]


def test_values_that_float16_cannot_hold_are_refused(cache):
    with pytest.raises(ConfigError, match='decode_head.conv_seg has values that float16 cannot hold'):
        cache.write('0' * 64, entry(scale=1e4))
    assert not cache.file_of('0' * 64).exists()


def test_a_folder_that_is_no_cache(cache, tmp_path):
    with pytest.raises(ConfigError, match='is no cache of a teacher.*tools/cache_teacher.py CONFIG --out'):
        TeacherCache(tmp_path).manifest  # noqa: B018
    path = cache.folder / 'manifest.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'version': 99}))
    with pytest.raises(ConfigError, match='is of format 99, this version reads 1'):
        TeacherCache(cache.folder).manifest  # noqa: B018
    path.write_text('{"version": 1}')
    with pytest.raises(ConfigError, match='cannot be read .*missing 7 required'):
        TeacherCache(cache.folder).manifest  # noqa: B018


PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]


def config(teacher: dict | None, dataset: dict) -> Config:
    return Config(dict(model=dict(teacher=teacher), train_dataloader=dict(dataset=dataset)))


def test_pipelines_of_all_training_data_sets_are_wrapped_once(cache):
    teacher = dict(type='CachedTeacher', cache=str(cache.folder))
    one = dict(type='CityscapesDataset', pipeline=PIPELINE)
    cfg = config(teacher, dict(type='ConcatDataset', datasets=[one, dict(type='RepeatDataset', dataset=one)]))
    wrapped = dict(type='ReadTeacherCache', cache=str(cache.folder), taps=[], transforms=PIPELINE)
    for folder in (cache.folder, cache.folder, shutil.copytree(cache.folder, cache.folder.parent / 'other')):
        cfg.model.teacher.cache = str(folder)  # the last time, in the config that an earlier run dumped
        read_teacher_cache(cfg)
        first, second = cfg.train_dataloader.dataset.datasets
        assert first.pipeline == second.dataset.pipeline == [{**wrapped, 'cache': str(folder)}]


def test_a_live_teacher_needs_no_cache():
    for teacher in (None, dict(config='teacher.py'), dict(type='MMSegTeacher')):
        cfg = config(teacher, dict(type='CityscapesDataset', pipeline=PIPELINE))
        read_teacher_cache(cfg)
        assert cfg.train_dataloader.dataset.pipeline == PIPELINE


def test_a_cache_that_is_not_there(tmp_path):
    dataset = dict(type='CityscapesDataset', pipeline=PIPELINE)
    with pytest.raises(ConfigError, match='is no cache of a teacher'):
        read_teacher_cache(config(dict(type='CachedTeacher', cache=str(tmp_path)), dataset))
    cache = TeacherCache(tmp_path)
    cache.write_manifest(Manifest({}, 2, None, 'decode_head.conv_seg', {}, False, [], {'f' * 64: {}}))
    with pytest.raises(ConfigError, match=r'1 of 1 files .*: f{64}\.safetensors .*is missing'):
        read_teacher_cache(config(dict(type='CachedTeacher', cache=str(tmp_path)), dataset))
    with pytest.raises(ConfigError, match='CachedTeacher needs model.teacher.cache'):
        read_teacher_cache(config(dict(type='CachedTeacher'), dataset))
