"""tools/cache_teacher.py, and training from what it wrote."""

import re
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import pytest
import torch
from helpers import MMSEG_TOOLS, ROOT, TRAIN, build, complaint, logged, run, train, weights
from mmengine.config import Config
from mmseg.registry import DATASETS
from safetensors.torch import load_file

from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers.cached.pipeline import read_teacher_cache
from bdd_seg.teachers.cached.store import TeacherCache

TOOL = ROOT / 'tools/cache_teacher.py'
LOGITS = 'decode_head.conv_seg'


@pytest.fixture(scope='module')
def made(tiny_configs, tmp_path_factory) -> tuple[Path, str]:
    """A cache of the 8 training scenes, and what the tool said."""
    folder = tmp_path_factory.mktemp('caches') / 'cache'
    return folder, run(TOOL, tiny_configs['distilled'], '--out', folder, '--workers', 0)


@pytest.fixture
def cache(made, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made[0], tmp_path / 'cache'))


def cached(folder: Path) -> list[str]:
    """The one-line change from a live teacher."""
    return ['--cfg-options', 'model.teacher.type=CachedTeacher', f'model.teacher.cache={folder}']


def main(monkeypatch, *arguments) -> None:
    """The tool in this process."""
    monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name='__main__')


def assert_alike(one: Path, other: Path) -> None:
    """The same images with the same outputs, to rounding: two processes may add up in another order."""
    manifests = [asdict(TeacherCache(folder).manifest) for folder in (one, other)]
    for manifest in manifests:
        for image in manifest['images'].values():
            assert len(image.pop('sha256')) == 64
    assert manifests[0] == manifests[1]
    files = [sorted(folder.glob('*.safetensors')) for folder in (one, other)]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    for pair in zip(*files, strict=True):
        torch.testing.assert_close(*map(load_file, pair), atol=2e-3, rtol=2e-3)


def test_the_cache_holds_the_teachers_logits_for_whole_images(made, tiny_configs, scenes):
    folder, output = made
    output = ' '.join(output.split())
    assert (
        '8 of 8 images to do, decode_head.conv_seg (19, 6, 12) in float16: 2.7 kB each, about 21.9 kB in'
        in output
    )
    assert f'{folder}: 8 images run, 0 were there already' in output
    cache = TeacherCache(folder)
    assert cache.manifest.strides == {LOGITS: [8, 8]}
    assert cache.manifest.class_names[:2] == ['road', 'sidewalk']  # of the teacher's own data set
    network = build(tiny_configs['teacher'])
    network.load_state_dict(torch.load(tiny_configs['checkpoint'], weights_only=True)['state_dict'])
    network.eval()
    paths = sorted((scenes / 'leftImg8bit/train').rglob('*.png'))
    assert sorted(entry['path'] for entry in cache.manifest.images.values()) == [str(path) for path in paths]
    for path in paths[:2]:
        pixels = cv2.imread(str(path))
        data = {'inputs': [torch.from_numpy(pixels).permute(2, 0, 1)], 'data_samples': []}
        with torch.no_grad():
            logits = network(network.data_preprocessor(data)['inputs'], mode='tensor')[0]
        entry = cache.read(str(path))
        torch.testing.assert_close(entry.outputs[LOGITS].float(), logits, atol=2e-3, rtol=2e-3)
        assert entry.input_shape == (48, 96)
        assert entry.loaded_shape == (48, 96)


def test_training_from_a_cache_needs_no_teacher(made, tiny_configs, tmp_path):
    teacherless = ['model.teacher.checkpoint=not_here.pth']
    train(tiny_configs['distilled'], tmp_path, *cached(made[0]), *teacherless)
    records = logged(tmp_path)
    assert [record['step'] for record in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        parts = [value for key, value in record.items() if 'loss' in key and key != 'loss']
        assert record['loss'] == pytest.approx(sum(parts), rel=1e-3)
        assert record['distill.loss_bdd'] > 0
        assert 0 <= record['distill.teacher_acc'] <= 100
    build(tiny_configs['student']).load_state_dict(weights(tmp_path / 'iter_6.pth'), strict=True)


def test_a_whole_image_is_taught_alike_by_cached_and_live_teacher(made, tiny_configs, tmp_path):
    """Both answer alike if the crop is the whole image at the cache's size."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    losses = {}
    for kind in ('live', 'cached'):
        cfg = load_config(tiny_configs['distilled'])
        cfg.train_dataloader.dataset.pipeline = pipeline
        cfg.model.data_preprocessor.size = (48, 96)
        cfg.train_cfg.max_iters, cfg.train_cfg.val_begin = 2, 99
        cfg.dump(tmp_path / f'{kind}.py')
        train(tmp_path / f'{kind}.py', tmp_path / kind, *(cached(made[0]) if kind == 'cached' else []))
        losses[kind] = [
            (record['distill.loss_bdd'], record['distill.teacher_acc']) for record in logged(tmp_path / kind)
        ]
    assert losses['cached'][0] == pytest.approx(losses['live'][0], rel=1e-3)


def test_a_second_run_makes_what_is_missing_or_damaged(cache, made, tiny_configs, monkeypatch, capsys):
    main(monkeypatch, tiny_configs['distilled'], '--out', cache)
    assert '0 images run, 8 were there already' in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in cache.glob('*.safetensors')}
    removed, cut, flipped = sorted(cache.glob('*.safetensors'))[:3]
    removed.unlink()
    cut.write_bytes(before[cut.name][:-50])
    content = bytearray(before[flipped.name])
    content[-1] ^= 1
    flipped.write_bytes(content)
    main(monkeypatch, tiny_configs['distilled'], '--out', cache, '--workers', 0)
    assert '3 images run, 5 were there already' in capsys.readouterr().out
    assert_alike(cache, made[0])


def test_an_interrupted_run_goes_on(cache, made, tiny_configs, monkeypatch, capsys):
    """As after a kill: a manifest without images, some outputs, one of them half written."""
    unfinished = TeacherCache(cache)
    unfinished.manifest.images.clear()
    unfinished.write_manifest(unfinished.manifest)
    for path in sorted(cache.glob('*.safetensors'))[:5]:
        path.unlink()
    (cache / 'abc.123.part').write_bytes(b'half')
    assert 'is not complete' in complaint(
        monkeypatch, TRAIN, tiny_configs['distilled'], '--work-dir', cache / 'work', *cached(cache)
    )
    main(monkeypatch, tiny_configs['distilled'], '--out', cache, '--workers', 0)
    assert '5 images run, 3 were there already' in capsys.readouterr().out
    assert_alike(cache, made[0])


def test_outputs_without_a_manifest_are_not_trusted(cache, made, tiny_configs, monkeypatch, capsys):
    """Nothing tells which teacher made them."""
    (cache / 'manifest.json').unlink()
    main(monkeypatch, tiny_configs['distilled'], '--out', cache, '--workers', 0)
    assert '8 images run, 0 were there already' in capsys.readouterr().out
    assert_alike(cache, made[0])


def test_two_processes_share_the_work(made, tiny_configs, tmp_path):
    torchrun = ['-m', 'torch.distributed.run', '--nproc-per-node=2', '--master-port=29513']
    output = run(
        TOOL,
        tiny_configs['distilled'],
        '--out',
        tmp_path,
        '--launcher',
        'pytorch',
        '--workers',
        0,
        launcher=torchrun,
    )
    assert output.count('8 images run, 0 were there already') == 1
    assert_alike(tmp_path, made[0])


def test_several_taps(tiny_configs, tmp_path, monkeypatch, capsys):
    arguments = [tiny_configs['distilled'], '--out', tmp_path, '--workers', 0]
    main(monkeypatch, *arguments, '--taps', 'backbone.layer1')
    assert 'backbone.layer1 (16, 12, 24), decode_head.conv_seg (19, 6, 12)' in ' '.join(
        capsys.readouterr().out.split()
    )
    assert TeacherCache(tmp_path).manifest.strides == {'backbone.layer1': [4, 4], LOGITS: [8, 8]}
    before = {path.name: load_file(path) for path in tmp_path.glob('*.safetensors')}
    for removed in sorted(before)[:2]:
        (tmp_path / removed).unlink()
    main(monkeypatch, *arguments)  # fewer are asked for: what is made keeps to the cache's
    assert '2 images run, 6 were there already' in capsys.readouterr().out
    for name, outputs in before.items():
        again = load_file(tmp_path / name)
        assert again.keys() == {'backbone.layer1', LOGITS}
        torch.testing.assert_close(again, outputs, atol=2e-3, rtol=2e-3)
    message = complaint(monkeypatch, TOOL, *arguments, '--taps', 'backbone.layer2', 'backbone.layer3')
    assert (
        'holds backbone.layer1, decode_head.conv_seg, not backbone.layer2, backbone.layer3, and a cache '
        'cannot be extended. Delete that folder, or choose another --out, with '
        '--taps backbone.layer1 backbone.layer2 backbone.layer3 decode_head.conv_seg'
    ) in message


def test_training_takes_along_what_its_losses_want(tiny_configs, tmp_path, monkeypatch):
    main(
        monkeypatch, tiny_configs['distilled'], '--out', tmp_path, '--workers', 0, '--taps', 'backbone.layer1'
    )
    cfg = load_config(tiny_configs['distilled'])
    cfg.model.teacher.update(type='CachedTeacher', cache=str(tmp_path))
    for taps, losses in (
        ([LOGITS], [dict(type='BDDLoss')]),
        ([LOGITS], [dict(type='BDDLoss', teacher_tap='logits')]),
        (['backbone.layer1', LOGITS], [dict(type='BDDLoss', teacher_tap='backbone.layer1')]),
    ):
        cfg.model.distill_losses = losses
        read_teacher_cache(cfg)
        sample = DATASETS.build(cfg.train_dataloader.dataset)[0]['data_samples']
        assert [tap for tap in ['backbone.layer1', LOGITS] if f'teacher/{tap}' in sample] == taps


def test_wrong_input_of_the_tool(cache, tiny_configs, tmp_path, monkeypatch):
    other = tmp_path / 'other.pth'
    content = torch.load(tiny_configs['checkpoint'], weights_only=True)
    content['state_dict']['decode_head.conv_seg.bias'] += 1
    torch.save(content, other)
    options = ['--cfg-options', f'model.teacher.checkpoint={other}']
    message = complaint(monkeypatch, TOOL, tiny_configs['distilled'], '--out', cache, *options)
    assert re.search('holds something else: its checkpoint was .*Delete that folder', message)
    options = ['--cfg-options', 'model.teacher.input_size=64']
    resized = ['--out', tmp_path / 'resized', '--workers', 0]
    main(monkeypatch, tiny_configs['distilled'], *resized, *options)
    message = complaint(monkeypatch, TOOL, tiny_configs['distilled'], *resized)
    assert re.search(r'holds something else: its input_size was \[64, 64\], is now None', message)
    assert 'has no model.teacher' in complaint(monkeypatch, TOOL, tiny_configs['student'])
    options = ['--cfg-options', 'val_dataloader.dataset.pipeline.0.to_float32=True']
    message = complaint(monkeypatch, TOOL, tiny_configs['distilled'], '--out', cache, *options)
    assert 'its pipeline was' in message
    options = ['--cfg-options', 'val_dataloader=None']
    assert 'has no val_dataloader' in complaint(monkeypatch, TOOL, tiny_configs['distilled'], *options)
    (tmp_path / 'file').touch()
    message = complaint(monkeypatch, TOOL, tiny_configs['distilled'], '--out', tmp_path / 'file')
    assert re.search("'.*file' cannot be written", message)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(10, 9, 1))
    message = complaint(
        monkeypatch, TOOL, tiny_configs['distilled'], '--out', tmp_path / 'new', '--workers', 0
    )
    assert 'has 1 byte free, about 21.9 kB are needed. Choose another --out, or fewer --taps' in message


def test_the_manifest_tells_how_long_files_are(cache, tiny_configs, monkeypatch):
    """And forgets files that nothing makes anew."""
    manifest = TeacherCache(cache).manifest
    lengths = {digest: image['bytes'] for digest, image in manifest.images.items()}
    assert lengths == {path.stem: path.stat().st_size for path in cache.glob('*.safetensors')}
    manifest.images['f' * 64] = {'path': 'not_of_this_data_set.png', 'size': [1, 1], 'sha256': '', 'bytes': 1}
    TeacherCache(cache).write_manifest(manifest)
    main(monkeypatch, tiny_configs['distilled'], '--out', cache, '--workers', 0)
    images = TeacherCache(cache).manifest.images
    assert {digest: image['bytes'] for digest, image in images.items()} == lengths


def training_error(monkeypatch, tiny_configs, cache, work_dir, *options) -> str:
    name = f'experiment_name={work_dir.name}'
    return complaint(
        monkeypatch, TRAIN, tiny_configs['distilled'], '--work-dir', work_dir, *cached(cache), name, *options
    )


def test_a_cache_that_does_not_match_stops_training(cache, tiny_configs, tmp_path, monkeypatch):
    def error(*options):
        return training_error(monkeypatch, tiny_configs, cache, tmp_path / 'work', *options)

    assert 'comes from another teacher than the config names' in error('model.teacher.precision=bf16')
    for path in cache.glob('*.safetensors'):
        path.write_bytes(bytes(path.stat().st_size))
    assert re.search(r"cached outputs '.*\.safetensors' of '.*\.png' are damaged", error())
    # from a loading process, whose traceback stays out of the line
    assert 'are damaged' in error('train_dataloader.num_workers=1')
    for path in cache.glob('*.safetensors'):
        path.unlink()
    missing = r"8 of 8 files of the cache '.*' are missing or cut, the first: .* of '.*\.png' is missing; run"
    assert re.search(missing, error())
    manifest = TeacherCache(cache)
    manifest.manifest.images = {'0' * 64: {'bytes': 0}}
    manifest.write_manifest(manifest.manifest)
    manifest.file_of('0' * 64).touch()
    assert re.search(r"image '.*\.png' is not in the cache '.*', which holds 1 others", error())


def test_mmsegs_own_tool_says_what_is_missing(made, tiny_configs, tmp_path):
    output = train(
        tiny_configs['distilled'], tmp_path, *cached(made[0]), tool=MMSEG_TOOLS / 'train.py', expect=1
    )
    assert re.search(
        'the training data brings no cached outputs of cache .*. Train with the tools/train.py', output
    )


def test_the_pipeline_can_be_wrapped_by_hand(made, tiny_configs, tmp_path):
    cfg = Config.fromfile(tiny_configs['distilled'])
    dataset = cfg.train_dataloader.dataset
    dataset.pipeline = [dict(type='ReadTeacherCache', cache=str(made[0]), transforms=dataset.pipeline)]
    cfg.train_cfg.max_iters, cfg.train_cfg.val_begin = 2, 99
    cfg.dump(tmp_path / 'wrapped.py')
    train(tmp_path / 'wrapped.py', tmp_path, *cached(made[0]), tool=MMSEG_TOOLS / 'train.py')
    assert len(logged(tmp_path)) == 2
