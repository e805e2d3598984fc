"""`bdd-seg export`, and `bdd-seg test` of what it writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import small_network
import torch
from helpers import ROOT, complaint
from mmengine.config import Config
from PIL import Image

from bdd_seg.cli import export, test
from bdd_seg.deploy.exported import ExportedFile
from bdd_seg.deploy.load import load_trained
from bdd_seg.distill.student import DISTILLERS_KEYS

TOOL, TEST = ROOT / 'bdd_seg/cli/export.py', ROOT / 'tools/test.py'


@pytest.fixture(scope='module')
def student(tiny_configs, tmp_path_factory) -> tuple[Path, Path]:
    """The config and the checkpoint of a distilled student that is exported in a second."""
    folder = tmp_path_factory.mktemp('student')
    cfg = Config.fromfile(tiny_configs['distilled'])
    teaching = {key: cfg.model[key] for key in DISTILLERS_KEYS if key in cfg.model}
    cfg.model = {**small_network.settings(classes=19), **teaching, 'type': 'SegDistiller'}
    config = folder / 'student.py'
    config.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items()))
    torch.save({'state_dict': small_network.build(classes=19).state_dict()}, folder / 'student.pth')
    return config, folder / 'student.pth'


@pytest.fixture(scope='module')
def exported(student, tmp_path_factory):
    """An ONNX file for one size, from pixels to labels."""
    out = tmp_path_factory.mktemp('exported') / 'new/x.onnx'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['export', *map(str, student), str(out), '--shape', '48', '96'])
        patch.setattr(sys, 'argv', [*sys.argv, '--with-preprocessing', '--labels', '--num-images', '2'])
        export.main()
    return out


def run(monkeypatch, command, *arguments):
    monkeypatch.setattr(sys, 'argv', ['bdd-seg', *map(str, arguments)])
    command.main()


def scores(work_dir: Path) -> dict[str, float]:
    """The metrics of an evaluation, without its times."""
    (file,) = work_dir.glob('*/*.json')
    return {key: value for key, value in json.loads(file.read_text()).items() if 'time' not in key}


def test_a_file_scores_as_its_checkpoint(student, exported, tmp_path, monkeypatch):
    def evaluate(name, *arguments):  # mmengine has a logger for each name of an experiment
        options = ['--work-dir', tmp_path / name, '--cfg-options', f'experiment_name={name}']
        run(monkeypatch, test, *arguments, *options)

    evaluate('torch', *student)
    evaluate('onnx', exported, '--config', student[0])
    expected = scores(tmp_path / 'torch')
    assert expected['mIoU'] > 0 and ExportedFile(exported).about.gives == 'labels'
    assert scores(tmp_path / 'onnx') == expected
    (log,) = (tmp_path / 'onnx').glob('*/*.log')
    assert f'model       {exported}' in log.read_text() and 'for one image of 48×96' in log.read_text()


def test_the_lines_say_what_was_compared(student, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'x.pt2'
    run(monkeypatch, export, *student, out, '--labels', '--dynamic', '--num-images', 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(str(out)) and lines[0].endswith('MB, torch.export')
    assert lines[1] == '  takes     normalised: any number of images of any size'
    assert lines[2] == '  gives     labels of 19 classes'
    assert lines[3] == '  compared  3 images 48×96: classes agree in 100.000 %'
    assert len(lines) == 5 and ExportedFile(out).about.gives == 'labels'


def test_weights_with_their_plain_config(student, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'x.safetensors'
    run(monkeypatch, export, *student, out)
    assert 'weights alone; their config is' in capsys.readouterr().out
    ours, theirs = load_trained(out), load_trained(*student)
    for name, tensor in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], tensor)
    assert ours.about == theirs.about
    assert out.stat().st_mode == student[0].stat().st_mode
    text = (tmp_path / 'x.py').read_text()
    assert 'teacher' not in text and 'SegDistiller' not in text and str(tmp_path) not in text


def test_files_that_are_not_replaced(student, tmp_path, monkeypatch):
    """The user's config of the same name, and the checkpoint itself."""
    config = tmp_path / 'x.py'
    config.write_text(f'# mine\n_base_ = {str(student[0])!r}')
    said = complaint(monkeypatch, TOOL, config, student[1], tmp_path / 'x.safetensors')
    assert "x.py' exists" in said and config.read_text().startswith('# mine')
    assert [path.name for path in tmp_path.iterdir()] == ['x.py']
    run(monkeypatch, export, config, student[1], tmp_path / 'y.safetensors')
    run(monkeypatch, export, config, student[1], tmp_path / 'y.safetensors')  # the same once more
    weights = (tmp_path / 'y.safetensors').read_bytes()
    for source in ((tmp_path / 'y.safetensors',), (student[0], tmp_path / 'y.safetensors')):
        said = complaint(monkeypatch, TOOL, *source, tmp_path / 'y.safetensors')
        assert 'is the checkpoint itself' in said
    assert (tmp_path / 'y.safetensors').read_bytes() == weights
    (tmp_path / 'iter_6.pth').touch()
    said = complaint(monkeypatch, TOOL, *student, tmp_path / 'iter_6.safetensors')
    assert 'would become that of' in said and not (tmp_path / 'iter_6.safetensors').exists()
    said = complaint(monkeypatch, TOOL, student[0], tmp_path / 'no.pth', tmp_path / 'y.safetensors')
    assert "no.pth' does not exist" in said


def test_what_a_file_lacks_is_said(student, tmp_path, monkeypatch, capsys):
    config = tmp_path / 'clahe.py'
    config.write_text(Path(student[0]).read_text())
    cfg = Config.fromfile(config)
    cfg.test_dataloader.dataset.pipeline.insert(1, {'type': 'CLAHE'})
    config.write_text('\n'.join(f'{key} = {value!r}' for key, value in cfg.to_dict().items()))
    out = tmp_path / 'x.onnx'
    (tmp_path / 'x.int8.onnx').touch()
    run(monkeypatch, export, config, student[1], out, '--shape', 32, 48, '--num-images', 1)
    printed = capsys.readouterr().out
    assert '  lacks     CLAHE of the test pipeline: evaluate it with --config' in printed
    assert printed.splitlines()[-1] == f'{tmp_path / "x.int8.onnx"} is of an earlier export'
    assert ExportedFile(out).about.prepared_by == ('CLAHE',)


def without_images(student, folder) -> Path:
    """The student's config, whose validation images are elsewhere."""
    config = folder / 'elsewhere.py'
    config.write_text(
        f'_base_ = {str(student[0])!r}\nval_dataloader = dict(dataset=dict(data_root={str(folder / "no")!r}))'
    )
    return config


def test_images_of_ones_own(student, tmp_path, monkeypatch, capsys):
    config = without_images(student, tmp_path)
    (tmp_path / 'images').mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'images/a.png')
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, export, config, student[1], 'x.pt2', '--images', 'images', '--shape', 32, 48)
    assert 'compared  1 image 32×48' in capsys.readouterr().out
    said = complaint(monkeypatch, TOOL, config, student[1], tmp_path / 'y.pt2')
    assert 'validation images are not on this machine' in said and 'give some: --images FOLDER' in said
    (tmp_path / 'images/b.png').write_text('no image')
    said = complaint(monkeypatch, TOOL, config, student[1], 'y.pt2', '--images', 'images/b.png')
    assert "b.png' cannot be read" in said
    assert not Path('y.pt2').exists()


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['CONFIG', 'CHECKPOINT', 'x.tflite'], 'must end in .onnx, .pt2 or .safetensors'),
        (['CONFIG', 'x.onnx'], 'give the checkpoint, too'),
        (['x.onnx', 'y.onnx'], 'is exported already'),
        (['no.pth', 'x.onnx'], "'no.pth' does not exist"),
        (['CONFIG', 'CHECKPOINT', 'x.onnx', '--images', 'no'], "'no'"),
        (['CONFIG', 'CHECKPOINT', 'x.onnx', '--num-images', '0'], '--num-images must be at least 1'),
        (['CONFIG', 'CHECKPOINT', 'x.onnx', '--shape', '0', '4'], '--shape must be a height and a width'),
        (['CONFIG', 'CHECKPOINT', 'x.safetensors', '--labels'], '--labels is for .onnx and .pt2'),
        (['CONFIG', 'CHECKPOINT', 'x.onnx', '--cfg-options', 'modle.x=1'], 'Did you mean model'),
    ],
)
def test_wrong_inputs_end_in_a_line_and_leave_no_file(student, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    named = {'CONFIG': student[0], 'CHECKPOINT': student[1]}
    said = complaint(monkeypatch, TOOL, *(named.get(one, one) for one in arguments))
    assert message in said
    assert not [*tmp_path.iterdir()]


def test_another_data_set_than_the_files(exported, student, tmp_path, monkeypatch):
    config = tmp_path / 'other.py'
    classes = {'classes': ('a', 'b'), 'palette': [[0, 0, 0], [1, 1, 1]]}
    config.write_text(
        f'_base_ = {str(student[0])!r}\ntest_dataloader = dict(dataset=dict(metainfo={classes!r}))'
    )
    config.write_text(
        config.read_text().replace('metainfo', "_delete_=True, type='BaseSegDataset', metainfo")
    )
    said = complaint(monkeypatch, TEST, exported, '--config', config, '--work-dir', tmp_path / 'w')
    assert 'has the classes road, sidewalk' in said and 'the data of test_dataloader a, b' in said


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['x.onnx'], 'x.onnx needs its config: --config CONFIG'),
        (['x.py', 'x.onnx', '--config', 'x.py'], '--config is for an exported file that is given alone'),
    ],
)
def test_lines_of_test_that_lack_something(monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, test, *arguments)
    assert message in capsys.readouterr().err


def test_a_config_alone_and_a_work_dir_without_a_checkpoint(student, monkeypatch, tmp_path):
    assert f'{student[0]} is a config: give the checkpoint, too' in complaint(monkeypatch, TEST, student[0])
    assert 'holds no checkpoint iter_*.pth' in complaint(monkeypatch, TEST, tmp_path)


def test_a_file_that_is_missing(student, monkeypatch, tmp_path):
    said = complaint(monkeypatch, TEST, tmp_path / 'no.onnx', '--config', student[0])
    assert "no.onnx' does not exist" in said
