"""tools/study.py, through the commands that it runs."""

import json
import os
import time

import pytest
import torch
import yaml
from helpers import ROOT, build, complaint, run

TOOL = ROOT / 'tools/study.py'


@pytest.fixture(scope='module')
def study(tiny_configs, tmp_path_factory):
    """A study file: one seed to choose between two settings, one to judge, and a test split."""
    folder = tmp_path_factory.mktemp('study')
    made = folder / 'prepared/done.txt'
    script = folder / 'prepare.py'
    script.write_text(f'open({str(made)!r}, "w").write("x")\n')
    content = {
        'title': 'Tiny',
        'notes': ['Nothing.'],
        'command': 'PYTHONPATH=. python tools/study.py tiny.yaml',
        'methods': {
            'alone': {'label': 'student alone', 'config': str(tiny_configs['student'])},
            'bdd': {
                'label': 'BDD',
                'config': str(tiny_configs['distilled']),
                'search': [{'loss.loss_weight': 1}, {'loss.loss_weight': 2}],
            },
        },
        'control': 'alone',
        'compare': ['bdd'],
        'teacher': {
            'label': 'teacher',
            'config': str(tiny_configs['teacher']),
            'checkpoint': str(tiny_configs['checkpoint']),
        },
        'seeds': [1],
        'search_seeds': [0],
        'select_on': 'val',
        'splits': {'val': {}, 'train': {'test_dataloader.dataset.data_prefix': None}},
        'iterations': 4,
        'pace_iterations': 4,
        'prepare': [{'run': str(script), 'creates': str(made)}],
    }
    prefix = {'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'}
    content['splits']['train'] = {f'test_dataloader.dataset.data_prefix.{key}': prefix[key] for key in prefix}
    file = folder / 'tiny.yaml'
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_a_study_stops_goes_on_and_tells_what_came_out(study, tiny_configs):
    folder = study.parent / 'results'
    arguments = [study, '--work-dir', folder, '--jobs', 2]
    assert run(TOOL, *arguments, '--list').count('to do') == 6
    output = run(TOOL, *arguments, '--time-limit', 0.02)
    assert 'stopped; the same command goes on from here' in output
    assert (study.parent / 'prepared/done.txt').exists()
    assert not list(folder.glob('*/result.json'))

    output = run(TOOL, *arguments)
    assert '[2/2] ' in output
    assert 'min left' in output
    assert '7 of 7 runs finished' in output
    assert not list(folder.glob('recordings/*'))
    results = json.loads((folder / 'results.json').read_text())
    assert results['command'] == 'PYTHONPATH=. python tools/study.py tiny.yaml'
    stages = [(entry['stage'], entry['method'], entry['seed']) for entry in results['runs']]
    assert stages == [
        ('reference', 'teacher', 0),
        ('search', 'bdd', 0),
        ('search', 'bdd', 0),
        ('final', 'alone', 1),
        ('final', 'bdd', 1),
        ('pace', 'alone', 1),
        ('pace', 'bdd', 1),
    ]
    searched = {
        entry['setting']['loss.loss_weight']: entry['scores']['val']['mIoU']
        for entry in results['runs']
        if entry['stage'] == 'search'
    }
    chosen = results['methods']['bdd']['setting']['loss.loss_weight']
    assert searched[chosen] == max(searched.values())
    judged = results['runs'][4]
    assert judged['setting'] == {'loss.loss_weight': chosen}
    for entry in results['runs'][1:]:
        assert entry['iterations'] == 4
        assert 0 < entry['seconds_per_iteration'] < entry['seconds']
        assert entry['peak_memory_mb'] > 100
        assert (
            set(entry['scores'])
            == {'search': {'val'}, 'pace': set(), 'final': {'val', 'train'}}[entry['stage']]
        )
        for scores in entry['scores'].values():
            known = [iou for iou in scores['classes'].values() if iou is not None]
            assert len(scores['classes']) == 19
            assert scores['mIoU'] == pytest.approx(sum(known) / len(known), abs=0.02)
    assert 'BDD' in (folder / 'report.md').read_text()

    # what is left of a final run is its student, with which mmseg's tool gives the same numbers
    final = next(folder.glob(f'bdd-seed1-{judged["config_sha256"][:12]}'))
    assert [path.name for path in final.glob('*.pth')] == ['student_float16.pth']
    weights = torch.load(final / 'student_float16.pth', weights_only=True)['state_dict']
    assert weights['decode_head.conv_seg.weight'].dtype == torch.float16
    build(tiny_configs['student']).load_state_dict(weights, strict=True)
    assert not list(next(folder.glob('bdd-seed0-*')).glob('*.pth'))

    before = (folder / 'results.json').read_text()
    start = time.time()
    assert 'to do' not in run(TOOL, *arguments)
    assert all(os.path.getmtime(path) < start for path in folder.glob('*/train.log'))
    assert json.loads(before)['runs'] == json.loads((folder / 'results.json').read_text())['runs']


def test_a_run_that_fails_names_its_log(study, tmp_path):
    content = yaml.safe_load(study.read_text())
    content.update(teacher=None, train_flags=['--no-such-flag'], compare=[])
    del content['methods']['bdd']
    (tmp_path / 'wrong.yaml').write_text(yaml.safe_dump(content))
    output = run(TOOL, tmp_path / 'wrong.yaml', '--work-dir', tmp_path / 'out', expect=1)
    message = output.splitlines()[-1]
    assert message.startswith('error: ')
    assert 'bdd_seg.cli.train failed' in message
    assert 'unrecognized arguments: --no-such-flag' in message
    assert 'train.log' in message


def test_wrong_study_files(study, monkeypatch, tmp_path):
    assert 'cannot be read' in complaint(monkeypatch, TOOL, tmp_path / 'nowhere.yaml')
    content = yaml.safe_load(study.read_text())
    content['methods']['bdd']['options'] = {'train_dataloader.batch_size': 1}
    (tmp_path / 'wrong.yaml').write_text(yaml.safe_dump(content))
    message = complaint(monkeypatch, TOOL, tmp_path / 'wrong.yaml')
    assert "'alone' and 'bdd' cannot be compared: their train_dataloader.batch_size is" in message
    content['methods']['bdd']['config'] = 'configs/nowhere.py'
    (tmp_path / 'wrong.yaml').write_text(yaml.safe_dump(content))
    assert 'nowhere.py' in complaint(monkeypatch, TOOL, tmp_path / 'wrong.yaml')
