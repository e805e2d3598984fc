import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import TRAIN, run, train
from mmengine.fileio import get_file_backend, put, put_text
from mmengine.runner import save_checkpoint

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import AtomicLocalBackend
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

# As a full disk, which would need one: no file may grow beyond the given number of bytes.
WITH_LIMIT = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_checkpoints_go_through_it(tmp_path):
    assert type(get_file_backend(str(tmp_path))) is AtomicLocalBackend
    save_checkpoint({'weight': torch.ones(2)}, str(tmp_path / 'folder/iter_1.pth'))
    assert load_checkpoint(tmp_path / 'folder/iter_1.pth')['weight'].tolist() == [1, 1]
    assert os.listdir(tmp_path / 'folder') == ['iter_1.pth']


def test_it_keeps_to_the_umask(tmp_path):
    before = os.umask(0o027)
    put(b'', str(tmp_path / 'file'))
    os.umask(before)
    assert (tmp_path / 'file').stat().st_mode & 0o777 == 0o640


def test_links_permissions_and_devices_stay(tmp_path):
    private, link, pipe = tmp_path / 'private', tmp_path / 'link', tmp_path / 'pipe'
    private.write_bytes(b'old')
    private.chmod(0o600)
    link.symlink_to(private)
    put(b'new', str(link))
    assert link.is_symlink() and private.read_bytes() == b'new'
    assert private.stat().st_mode & 0o777 == 0o600
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    put(b'through', str(pipe))
    assert os.read(reader, 9) == b'through' and pipe.is_fifo()
    os.close(reader)


def test_several_may_write_one_image(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: put(bytes(1000), str(tmp_path / 'image.png')), range(200)))
    assert os.listdir(tmp_path) == ['image.png']


def test_texts_go_through_it(tmp_path, monkeypatch):
    put_text('old', str(tmp_path / 'a.json'))
    monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put_text('new', str(tmp_path / 'a.json'))
    assert (tmp_path / 'a.json').read_text() == 'old'


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch, step):
    file = tmp_path / 'iter_1.pth'
    put(b'old', str(file))

    def fail(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(ConfigError, match="iter_1.pth' cannot be written: No space left on device.*--resume"):
        put(b'new', str(file))
    assert file.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['iter_1.pth']


def test_a_full_disk_ends_a_training_with_a_line_and_leaves_the_last_checkpoint(tiny_configs, tmp_path):
    config = tiny_configs['distilled']
    train(config, tmp_path, '--cfg-options', 'train_cfg.max_iters=3')
    limit = (tmp_path / 'iter_3.pth').stat().st_size - 1
    (tmp_path / 'with_limit.py').write_text(WITH_LIMIT)
    line = [limit, TRAIN, config, '--work-dir', tmp_path, '--resume']
    ended = run(tmp_path / 'with_limit.py', *line, expect=1).splitlines()[-1]
    assert ended.startswith(f"error: '{tmp_path}/iter_6.pth' cannot be written: File too large")
    assert not list(tmp_path.glob('iter_6*'))
    assert 'iterations  4 to 6' in train(config, tmp_path, '--resume')
    assert load_checkpoint(tmp_path / 'iter_6.pth')['meta']['iter'] == 6
