"""`bdd-seg export --int8`."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_network
import torch
from helpers import ROOT, complaint
from mmengine.config import Config

from bdd_seg.cli import export
from bdd_seg.deploy import latency
from bdd_seg.deploy.exported import ExportedFile

TOOL = ROOT / 'bdd_seg/cli/export.py'


@pytest.fixture(scope='module')
def student(tiny_configs, tmp_path_factory) -> tuple[Path, Path]:
    """The config and the checkpoint of a student that is exported in a second."""
    folder = tmp_path_factory.mktemp('student')
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.model = small_network.settings(classes=19)
    config = folder / 'student.py'
    config.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items()))
    torch.save({'state_dict': small_network.build(classes=19).state_dict()}, folder / 'student.pth')
    return config, folder / 'student.pth'


@pytest.mark.parametrize('flags, largest', [((), 127), (('--reduce-range',), 64)])
def test_the_table_of_all_forms(flags, largest, student, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency, '_WARM_UP', 1)
    monkeypatch.setattr(latency, '_MOST', 2)
    out = tmp_path / 'x.onnx'
    shape = ('--shape', '48', '96', '--num-images', '1', '--max-drop', '100', *flags, '--int8')
    monkeypatch.setattr(sys, 'argv', ['export', *map(str, (*student, out)), *shape])
    export.main()
    printed = capsys.readouterr().out
    small = tmp_path / 'x.int8.onnx'
    assert f'{small}: mIoU ' in printed and '7 of 7 layers in 8 bits' in printed
    assert 'calibrating on 8 images' in printed and 'one image 1×3×48×96' in printed
    rows = [line.split() for line in printed.splitlines()[-3:]]
    assert [row[0] for row in rows] == ['torch', 'ONNX', 'INT8']
    torch_miou, onnx_miou, int8_miou = (float(row[1]) for row in rows)
    assert 'IoU  |' not in printed and torch_miou == pytest.approx(onnx_miou, abs=0.03)
    assert f'{small}: mIoU {int8_miou:.2f}, {onnx_miou:.2f} in float' in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ['x.int8.onnx', 'x.onnx']
    own, other = (ExportedFile(file) for file in (out, small))
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(small).graph.initializer]
    assert max(np.abs(w.astype(int)).max() for w in weights if w.dtype == np.int8 and w.ndim == 4) == largest
    image = torch.randn(1, 3, 48, 96, generator=torch.Generator().manual_seed(0))
    assert own.about == other.about and own.about.size == (48, 96)
    assert 0 < (own(image) - other(image)).abs().mean() < 0.05 * own(image).abs().max()


def test_wrong_flags(student, tmp_path, monkeypatch):
    def error(*arguments):
        return complaint(monkeypatch, TOOL, *student, *arguments)

    assert '--int8 is for .onnx' in error(tmp_path / 'x.pt2', '--int8')
    assert '--int8 is for .onnx' in error(tmp_path / 'x.safetensors', '--int8')
    out = tmp_path / 'x.onnx'
    assert '--reduce-range is for --int8' in error(out, '--reduce-range')
    assert '--max-drop must be at least 0' in error(out, '--int8', '--max-drop', '-1')
    assert '--max-drop must be at least 0' in error(out, '--int8', '--max-drop', 'nan')
    assert 'missing' in error(out, '--int8', tmp_path / 'missing')
    missing = f'train_dataloader.dataset.data_root={tmp_path}/gone'
    assert '--int8 FOLDER' in error(out, '--int8', '--cfg-options', missing)
    missing = f'val_dataloader.dataset.data_root={tmp_path}/gone'
    images = ('--images', tmp_path / 'gone')
    assert 'gone' in error(out, '--int8', '--cfg-options', missing, *images)
    assert not list(tmp_path.iterdir())
