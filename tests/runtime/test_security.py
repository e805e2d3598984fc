"""Files from elsewhere are data: what would run a command when unpickled runs nothing, whatever opens it."""

import functools
import http.server
import json
import os
import threading

import pytest
import torch
from helpers import ROOT, TEST, TRAIN, complaint, run, train

from bdd_seg.runtime.upstream.checkpoints import load_checkpoint


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def made(tmp_path):
    """The folder that must not come into being."""
    return tmp_path / 'made'


@pytest.fixture
def hostile(tmp_path, made, tiny_configs):
    content = load_checkpoint(tiny_configs['checkpoint']) | {'meta': Hostile(made), 'optimizer': {}}
    path = tmp_path / 'hostile.pth'
    torch.save(content, path)
    return path


@pytest.fixture
def served(hostile, monkeypatch):
    """Its URL."""
    monkeypatch.setenv('TORCH_HOME', str(hostile.parent / 'torch'))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=hostile.parent)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/{hostile.name}'
        server.shutdown()


def test_the_file_is_hostile(hostile, made, monkeypatch):
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', raising=False)  # as a tool left it
    torch.load(hostile, weights_only=False)
    assert made.is_dir()


def refused(monkeypatch, made, *line) -> str:
    message = complaint(monkeypatch, *line)
    assert not made.exists()
    assert 'refused' in message
    assert 'If you trust it, convert it once: torch.save(' in message
    return message


@pytest.mark.parametrize('zipped', [True, False], ids=['today', 'before torch 1.6'])
def test_a_checkpoint_to_evaluate(monkeypatch, hostile, made, tiny_configs, tmp_path, zipped):
    torch.save({'state_dict': {}, 'meta': Hostile(made)}, hostile, _use_new_zipfile_serialization=zipped)
    line = [TEST, tiny_configs['student'], hostile, '--work-dir', tmp_path]
    assert 'hostile.pth' in refused(monkeypatch, made, *line)


def test_a_checkpoint_to_evaluate_from_a_url(monkeypatch, served, made, tiny_configs, tmp_path):
    assert served in refused(monkeypatch, made, TEST, tiny_configs['student'], served, '--work-dir', tmp_path)


@pytest.mark.parametrize(
    'options',
    [
        ['load_from={}'],
        ['model.teacher.checkpoint={}'],
        ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint={}'],
    ],
    ids=['load_from', 'teacher', 'init_cfg'],
)
def test_a_checkpoint_that_a_config_names(monkeypatch, hostile, made, tiny_configs, tmp_path, options):
    options = [option.format(hostile) for option in options]
    line = [TRAIN, tiny_configs['distilled'], '--work-dir', tmp_path, '--cfg-options', *options]
    assert 'hostile.pth' in refused(monkeypatch, made, *line)


def test_a_teacher_from_a_url(monkeypatch, served, made, tiny_configs, tmp_path):
    option = f'model.teacher.checkpoint={served}'
    line = [TRAIN, tiny_configs['distilled'], '--work-dir', tmp_path, '--cfg-options', option]
    assert served in refused(monkeypatch, made, *line)


def test_a_checkpoint_by_the_name_of_a_model_zoo(monkeypatch, hostile, made, tiny_configs, tmp_path):
    """mmengine loads these without its table of loaders."""
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    (tmp_path / 'open_mmlab.json').write_text(json.dumps({'resnet18_v1c': hostile.name}))
    options = ['model.backbone.init_cfg.type=Pretrained']
    options += ['model.backbone.init_cfg.checkpoint=open-mmlab://resnet18_v1c']
    line = [TRAIN, tiny_configs['student'], '--work-dir', tmp_path, '--cfg-options', *options]
    message = complaint(monkeypatch, *line)
    assert not made.exists()
    assert 'refused' in message


@pytest.mark.parametrize('explicit', [True, False], ids=['load_from', 'work dir'])
def test_a_checkpoint_to_resume(monkeypatch, hostile, made, tiny_configs, tmp_path, explicit):
    (tmp_path / 'iter_3.pth').write_bytes(hostile.read_bytes())
    (tmp_path / 'last_checkpoint').write_text('iter_3.pth')
    line = [TRAIN, tiny_configs['student'], '--work-dir', tmp_path, '--resume']
    options = ['--cfg-options', f'load_from={tmp_path / "iter_3.pth"}'] if explicit else []
    refused(monkeypatch, made, *line, *options)


def test_the_config_in_a_checkpoint_is_not_run(tiny_configs, tmp_path, made):
    """Runner.resume runs the text in meta['config'] as Python; torch.load has nothing to object to a text."""
    train(tiny_configs['student'], tmp_path, '--cfg-options', 'train_cfg.max_iters=3')
    checkpoint = load_checkpoint(tmp_path / 'iter_3.pth')
    checkpoint['meta']['config'] = f'import os\nos.mkdir({str(made)!r})'
    torch.save(checkpoint, tmp_path / 'iter_3.pth')
    assert 'iterations  4 to 6' in train(tiny_configs['student'], tmp_path, '--resume')
    assert not made.exists()


@pytest.mark.parametrize('name', ['manifest', 'outputs'])
def test_a_teachers_cache(monkeypatch, hostile, made, tiny_configs, tmp_path, name):
    cache = tmp_path / 'cache'
    line = [ROOT / 'tools/cache_teacher.py', tiny_configs['distilled'], '--out', cache]
    run(*line)
    file = cache / 'manifest.json' if name == 'manifest' else next(cache.rglob('*.safetensors'))
    file.write_bytes(hostile.read_bytes())
    options = ['model.teacher.type=CachedTeacher', f'model.teacher.cache={cache}']
    line = [TRAIN, tiny_configs['distilled'], '--work-dir', tmp_path / 'run', '--cfg-options', *options]
    assert str(file.name) in complaint(monkeypatch, *line)
    assert not made.exists()
