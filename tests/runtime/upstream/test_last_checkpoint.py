import os

import pytest
import torch

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.last_checkpoint import latest_checkpoint


def save(path, age=0):
    torch.save({'state_dict': {}}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_latest_checkpoint_is_the_one_noted(tmp_path):
    note = tmp_path / 'last_checkpoint'
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / 'none') is None
    older, newer = save(tmp_path / 'iter_9.pth'), save(tmp_path / 'iter_1000.pth', age=5)
    note.write_text('/another/machine/iter_1000.pth\n')
    assert latest_checkpoint(tmp_path) == newer
    note.write_text('')  # killed while writing the note
    assert latest_checkpoint(tmp_path) == older
    note.unlink()
    assert latest_checkpoint(tmp_path) == older
    note.write_text('s3://bucket/iter_8.pth')
    assert latest_checkpoint(tmp_path) == 's3://bucket/iter_8.pth'
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    note.write_text(str(save(elsewhere / 'epoch_3.pth')))  # CheckpointHook's out_dir
    assert latest_checkpoint(tmp_path) == elsewhere / 'epoch_3.pth'


def test_a_noted_checkpoint_that_is_gone_does_not_begin_a_training_anew(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/another/disk/iter_8.pth')
    with pytest.raises(ConfigError, match="'/another/disk/iter_8.pth', which is gone"):
        latest_checkpoint(tmp_path)


def test_a_checkpoint_cut_short_is_passed_over_with_a_word(tmp_path, capsys):
    save(tmp_path / 'iter_3.pth', age=9)
    content = save(tmp_path / 'iter_6.pth').read_bytes()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_6.pth'))
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (tmp_path / 'iter_6.pth').write_bytes(content[:length])
        assert latest_checkpoint(tmp_path) == tmp_path / 'iter_3.pth'
        assert 'iter_6.pth' in capsys.readouterr().out
