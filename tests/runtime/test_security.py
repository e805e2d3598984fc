"""Files from elsewhere are data: what would run a command when unpickled runs nothing, whatever opens it."""

import functools
import http.server
import json
import threading

import numpy as np
import pytest
import torch
from helpers import ROOT, TEST, TRAIN, Hostile, complaint, run, train

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.teachers import OnnxTeacher, TransformersTeacher


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


def _onnx_file(path, location=None, operator='Conv') -> None:
    """A 1×1 convolution, whose weights are in the file or in another."""
    onnx = pytest.importorskip('onnx', reason='onnx, which writes the files of these tests, is not installed')
    values = np.zeros((19, 3, 1, 1), 'float32')
    weight = onnx.numpy_helper.from_array(values, 'weight')
    if location is not None:
        weight = onnx.TensorProto(name='weight', data_type=weight.data_type, dims=weight.dims)
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key='location', value=str(location))
    own = '' if operator == 'Conv' else 'org.elsewhere'
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(operator, ['images', 'weight'], ['logits'], domain=own)],
        'graph',
        [helper.make_tensor_value_info('images', onnx.TensorProto.FLOAT, ['N', 3, 'H', 'W'])],
        [helper.make_tensor_value_info('logits', onnx.TensorProto.FLOAT, ['N', 19, 'H', 'W'])],
        [weight],
    )
    domains = [helper.make_opsetid('', 17), helper.make_opsetid('org.elsewhere', 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString())


@pytest.fixture
def onnx_line(tiny_configs, tmp_path):
    """The command that trains with the teacher ``models/teacher.onnx``, and that file."""
    pytest.importorskip('onnxruntime', reason='onnxruntime, an extra, is not installed')
    (tmp_path / 'models').mkdir()
    file, config = tmp_path / 'models/teacher.onnx', tmp_path / 'onnx.py'
    teacher = dict(_delete_=True, type='OnnxTeacher', model=str(file), mean=None, std=None)
    config.write_text(f'_base_ = {str(tiny_configs["distilled"])!r}\nmodel = dict(teacher={teacher!r})')
    return [TRAIN, config, '--work-dir', tmp_path / 'run'], file


@pytest.mark.parametrize('outside', ['relative', 'absolute', 'link'])
def test_an_onnx_teacher_reads_nothing_outside_of_its_folder(monkeypatch, onnx_line, tmp_path, outside):
    line, file = onnx_line
    secret, link = tmp_path / 'secret.bin', file.parent / 'link.bin'
    secret.write_bytes(np.zeros(19 * 3, 'float32').tobytes())
    link.symlink_to(secret)
    _onnx_file(file, {'relative': '../secret.bin', 'absolute': secret, 'link': 'link.bin'}[outside])
    message = complaint(monkeypatch, *line)
    assert 'teacher.onnx): it cannot be loaded' in message
    # The same weights are read from a file beside it.
    (file.parent / 'weights.bin').write_bytes(secret.read_bytes())
    _onnx_file(file, 'weights.bin')
    assert OnnxTeacher(file, mean=None, std=None).map_channels(None) == 19


@pytest.mark.parametrize('damage', ['garbage', 'truncated', 'empty', 'pickle', 'unknown operator'])
def test_an_onnx_teacher_that_is_none(monkeypatch, onnx_line, hostile, made, damage):
    line, file = onnx_line
    _onnx_file(file, operator='Evil' if damage == 'unknown operator' else 'Conv')
    whole = file.read_bytes()
    contents = {'garbage': b'no protobuf', 'truncated': whole[:-60], 'empty': b''}
    contents['pickle'] = hostile.read_bytes()
    file.write_bytes(contents.get(damage, whole))
    assert 'teacher.onnx): it cannot be loaded' in complaint(monkeypatch, *line)
    assert not made.exists()


@pytest.fixture
def hub_folder(tmp_path):
    """A tiny SegFormer as the hub has them, as a teacher of 19 classes."""
    transformers = pytest.importorskip('transformers', reason='the extra transformers is not installed')
    widths = dict(hidden_sizes=[4, 8, 12, 16], decoder_hidden_size=8, num_attention_heads=[1] * 4)
    config = transformers.SegformerConfig(depths=[1, 1, 1, 1], num_labels=19, **widths)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / 'hub')
    processor = {'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}
    (tmp_path / 'hub/preprocessor_config.json').write_text(json.dumps(processor))
    return tmp_path / 'hub'


@pytest.fixture
def taught(hub_folder, tiny_configs, tmp_path):
    """The command line of a training by that teacher."""
    config = tmp_path / 'config.py'
    teacher = {'_delete_': True, 'type': 'TransformersTeacher', 'model': str(hub_folder)}
    config.write_text(f'_base_ = {str(tiny_configs["distilled"])!r}\nmodel = dict(teacher={teacher!r})\n')
    return [TRAIN, config, '--work-dir', tmp_path / 'work']


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_pickle_from_hugging_face(monkeypatch, taught, hub_folder, made):
    (hub_folder / 'model.safetensors').unlink()
    torch.save({'weight': Hostile(made)}, hub_folder / 'pytorch_model.bin')
    message = complaint(monkeypatch, *taught)
    assert 'cannot be loaded (UnpicklingError' in message and 'holds tensors only' in message
    monkeypatch.delenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD')  # as the tool left it
    with pytest.raises(ConfigError, match='cannot be loaded'):
        TransformersTeacher(hub_folder).load([None])
    assert not made.exists()
    torch.load(hub_folder / 'pytorch_model.bin', weights_only=False)
    assert made.is_dir()  # so it is hostile


@pytest.mark.parametrize('kind', ['a network of its own', 'settings of a known network'])
def test_remote_code_from_hugging_face(monkeypatch, taught, hub_folder, made, tmp_path, kind):
    code = 'from transformers import SegformerConfig\n\n\nclass Own(SegformerConfig):\n    pass\n'
    (hub_folder / 'own.py').write_text(f'import os\n{code}\nos.mkdir({str(made)!r})\n')
    known = {'model_type': 'segformer'} if kind != 'a network of its own' else {'model_type': 'own'}
    change_json(hub_folder / 'config.json', auto_map={'AutoConfig': 'own.Own'}, **known)
    if kind == 'a network of its own':
        message = complaint(monkeypatch, *taught)
        assert 'its config.json cannot be used' in message and 'if you trust it' in message
    else:  # the library's own code is used
        TransformersTeacher(hub_folder).load([None])
    assert not made.exists()
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, 'HF_MODULES_CACHE', str(tmp_path / 'modules'))
    monkeypatch.syspath_prepend(tmp_path / 'modules')
    TransformersTeacher(hub_folder, trust_remote_code=True)._config(hub_folder)
    assert made.is_dir()  # so it runs where the config says so


@pytest.mark.parametrize('name', ['os.mkdir', 'pipeline', 'utils', 'AutoModel'])
def test_a_class_that_is_no_network(monkeypatch, taught, hub_folder, name):
    change_json(hub_folder / 'config.json', architectures=[name])
    assert f"names '{name}', which is no network of transformers" in complaint(monkeypatch, *taught)


def test_attention_by_code_on_the_hub(taught, hub_folder):
    """A config.json may name such code, which transformers fetches and runs where it can."""
    change_json(hub_folder / 'config.json', _attn_implementation='kernels-community/flash-attn')
    teacher = TransformersTeacher(hub_folder)
    assert teacher._config(hub_folder)._attn_implementation is None
    assert teacher.load([None]).model.config._attn_implementation in ('sdpa', 'eager')
