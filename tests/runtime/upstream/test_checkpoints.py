import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import find_checkpoint, load_checkpoint


@pytest.mark.parametrize('zipped', [True, False], ids=['today', 'before torch 1.6'])
def test_reads_what_a_runner_saves(tmp_path, zipped):
    hub = MessageHub.get_instance(f'test_checkpoint_{zipped}')
    hub.update_scalar('train/loss', 1.5)
    hub.update_scalar('train/loss', 2.5)
    content = {
        'meta': {'epoch': 0, 'iter': np.int64(7), 'acc': np.float64(0.5), 'classes': ('a', 'b')},
        'state_dict': {'weight': torch.arange(3.0)},
        'message_hub': hub.state_dict(),
        'array': np.arange(4, dtype=np.float32),
    }
    torch.save(content, tmp_path / 'runner.pth', _use_new_zipfile_serialization=zipped)
    read = load_checkpoint(str(tmp_path / 'runner.pth'))
    assert torch.equal(read['state_dict']['weight'], torch.arange(3.0))
    assert read['meta'] == content['meta']
    assert read['array'].tolist() == [0, 1, 2, 3]
    history = read['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer)
    assert history.data[0].tolist() == [1.5, 2.5]
    assert history.statistics('mean') == 2.0


def test_threads_may_read_at_once(tmp_path):
    history = HistoryBuffer()
    history.update(1.5)
    torch.save({'weight': torch.rand(100_000), 'history': history}, tmp_path / 'runner.pth')
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(load_checkpoint, [tmp_path / 'runner.pth'] * 100):
            assert read['history'].current() == 1.5


class Hostile:
    """Unpickling it would make a folder."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'function, arguments',
    [(os.mkdir, ('PATH',)), (getattr, (os, 'mkdir')), (getattr, (HistoryBuffer, '__init__'))],
)
def test_runs_no_code(tmp_path, function, arguments):
    made = tmp_path / 'made'
    arguments = [str(made) if a == 'PATH' else a for a in arguments]
    if os in arguments:  # a module cannot be pickled; reach one through a class that is admitted
        arguments[0] = HistoryBuffer
        arguments[1] = '__globals__'
    torch.save({'state_dict': {}, 'meta': Hostile(function, *arguments)}, tmp_path / 'hostile.pth')
    with pytest.raises(
        ConfigError, match='holds more than weights and is refused.*If you trust it, convert it'
    ):
        load_checkpoint(str(tmp_path / 'hostile.pth'))
    assert not made.exists()


def test_files_that_are_no_checkpoints(tmp_path):
    torch.save({'weight': torch.randn(1000)}, tmp_path / 'good.pth')
    good = (tmp_path / 'good.pth').read_bytes()
    damaged = {
        'short.pth': good[: len(good) // 2],
        'empty.pth': b'',
        'text.pth': b'<html>404 not found</html>',
        'words.pth': b'hello world\n',
        'word.pth': b'text',
        'pickle.pth': pickle.dumps([1, 2, 3])[:-2],
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            ConfigError, match=f'{name}.* is no readable checkpoint .*Copy or download .* again'
        ) as raised:
            load_checkpoint(str(tmp_path / name))
        assert 'will likely succeed' not in str(raised.value)
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ConfigError, match='holds a list, expected a dict'):
        load_checkpoint(str(tmp_path / 'list.pth'))
    with pytest.raises(ConfigError, match='does not exist'):
        load_checkpoint(str(tmp_path / 'absent.pth'))
    with pytest.raises(ConfigError, match='does not exist'):
        load_checkpoint('x' * 300 + '.pth')
    with pytest.raises(ConfigError, match='is a folder'):
        load_checkpoint(str(tmp_path))


def test_urls_share_a_download_only_where_the_name_tells_the_content(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    fetched = []

    def fetch(url, path):
        fetched.append(url)
        torch.save({'weight': torch.full((1,), float(len(fetched)))}, path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    runs = [f'http://127.0.0.1/{folder}/iter_80000.pth' for folder in ('r18-d8.a', 'r101-d8.b')]
    runs += [f'http://127.0.0.1/get/model-d8.pth?id={i}' for i in (1, 2)]
    for i, url in enumerate([*runs, *runs]):
        assert find_checkpoint(url) is None or i >= len(runs)
        assert load_checkpoint(url)['weight'] == i % len(runs) + 1
    assert fetched == runs
    # As torch and OpenMMLab name their files, and where they keep them.
    name = 'pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth'
    torch.save({'weight': torch.zeros(1)}, tmp_path / 'hub/checkpoints' / name)
    for mirror in ('download.openmmlab.com', 'mmassets.onedl.ai'):
        assert load_checkpoint(f'https://{mirror}/mmsegmentation/{name}')['weight'] == 0
    assert fetched == runs


@pytest.mark.parametrize(
    'name, url',
    [
        ('open-mmlab://resnet18_v1c', r'https://\S+/resnet18_v1c-b5776b93.pth'),
        ('openmmlab://resnet18_v1c', r'https://\S+/resnet18_v1c-b5776b93.pth'),
        ('torchvision://resnet50', r'https://\S+/resnet50-0676ba61.pth'),
        ('modelzoo://resnet50', r'https://\S+/resnet50-0676ba61.pth'),
        ('mmcls://mobilenet_v2', r'https://\S+/mobilenet_v2_\S+-3b2dc3af.pth'),
        ('http://127.0.0.1:9/any/resnet18-12345678.pth', None),
    ],
)
def test_what_cannot_be_fetched_is_one_line_with_the_address_and_the_place(tmp_path, monkeypatch, name, url):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def fetch(address, path):
        raise OSError(f'no route to {address}')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', fetch)
    origin = '' if url is None else f' from {url}'
    expected = (
        rf"^checkpoint '{name}' cannot be downloaded{origin} \(no route to \S+\). .* put the file at (.*)$"
    )
    with pytest.raises(ConfigError, match=expected) as raised:
        CheckpointLoader.load_checkpoint(name)
    # The file is found where the message says.
    place = re.search(expected, str(raised.value)).group(1)
    torch.save({'state_dict': {'backbone.a': torch.ones(1), 'head.b': torch.ones(1)}}, place)
    only_backbone = {'a'} if name.startswith('mmcls') else {'backbone.a', 'head.b'}
    assert CheckpointLoader.load_checkpoint(name)['state_dict'].keys() == only_backbone
    assert str(find_checkpoint(name)) == place


@pytest.mark.parametrize('scheme', ['open-mmlab', 'torchvision', 'mmcls'])
def test_a_name_that_is_in_no_list(scheme):
    with pytest.raises(ConfigError, match="mmengine's list has no 'resnet5o'. Did you mean .*resnet50"):
        load_checkpoint(f'{scheme}://resnet5o')
