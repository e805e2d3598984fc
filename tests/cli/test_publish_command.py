"""`bdd-seg publish`: its lines, and its users' mistakes in one line."""

import shutil
import sys

import pytest
import torch
from helpers import ROOT, Hostile, build, complaint
from mmengine.config import Config

from bdd_seg.cli import publish

TOOL = ROOT / 'bdd_seg/cli/publish.py'


@pytest.fixture(scope='module')
def work(tiny_configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp('work')
    shutil.copy(tiny_configs['distilled'], folder / 'distilled.py')
    model = build(Config.fromfile(tiny_configs['student']))
    content = {'state_dict': model.state_dict(), 'optimizer': torch.zeros(80_000), 'meta': {'iter': 6}}
    torch.save(content, folder / 'iter_6.pth')
    return folder


def test_the_lines_tell_files_and_bytes(work, tmp_path, monkeypatch, capsys):
    words = ['publish', work, tmp_path / 'out', '--safetensors', '--name', 'tiny', '--data', 'Scenes.']
    monkeypatch.setattr(sys, 'argv', list(map(str, words)))
    publish.main()
    printed = capsys.readouterr().out
    files = sorted(file.suffix for file in (tmp_path / 'out').iterdir())
    assert files == ['.md', '.pth', '.py', '.safetensors']
    (weights,) = (tmp_path / 'out').glob('tiny-*.pth')
    before, after = ((work / 'iter_6.pth').stat().st_size, weights.stat().st_size)
    assert after < before / 2
    assert f'{weights}\n' in printed
    assert f'bytes: {before:,} before, {after:,} published ({100 * after / before:.0f} %)' in printed
    test = f'bdd-seg test {work}/distilled.py {work}/iter_6.pth'
    assert f'scores: none is known. Measure them with {test}\n' in printed
    assert 'Scenes.' in (tmp_path / 'out/README.md').read_text()


@pytest.mark.parametrize(
    'words, message',
    [
        (['nowhere.pth', '{out}'], "'nowhere.pth' does not exist"),
        (['nowhere.pth', '{out}', '--config', '{work}/distilled.py'], 'is no checkpoint, and no work dir'),
        (['{empty}', '{out}'], 'holds no checkpoint'),
        (['{lonely}', '{out}'], 'has no config beside it'),
        (['{work}/distilled.py', '{out}'], 'Give a .pth or a work dir'),
        (['{work}/iter_6.pth', '{out}', '--config', '{teacher}'], 'does not fit the model of'),
        (['{hostile}', '{out}', '--config', '{work}/distilled.py'], 'holds more than weights and is refused'),
        (['{work}', '{lonely}'], 'is a file, not a folder'),
        (['{work}', '{work}'], 'holds checkpoints of a training'),
        (['{lonely}', '{work}', '--config', '{work}/distilled.py'], 'holds checkpoints of a training'),
        (
            ['{lonely}', '{empty}/../lonely', '--config', '{work}/distilled.py'],
            'Choose another folder, such as',
        ),
        (['{work}', '{out}', '--name', '../x'], "--name '../x' must be letters"),
    ],
)
def test_mistakes_end_in_one_line(words, message, work, tiny_configs, tmp_path, monkeypatch):
    places = {
        'work': work,
        'out': tmp_path / 'out',
        'empty': tmp_path / 'empty',
        'lonely': tmp_path / 'lonely/model.pth',
        'hostile': tmp_path / 'hostile.pth',
        'teacher': tiny_configs['teacher'],
    }
    places['empty'].mkdir()
    places['lonely'].parent.mkdir()
    shutil.copy(work / 'iter_6.pth', places['lonely'])
    torch.save({'state_dict': Hostile(tmp_path / 'made')}, places['hostile'])
    assert message in complaint(monkeypatch, TOOL, *(word.format(**places) for word in words))
    assert not (tmp_path / 'made').exists()
    assert not [*tmp_path.glob('out/*')]
    assert sorted(file.name for file in work.iterdir()) == ['distilled.py', 'iter_6.pth']
