"""tools/demo.py with tiny networks and scenes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import logged, train, weights

from bdd_seg.cli import demo
from bdd_seg.errors import ConfigError
from bdd_seg.study.settings import load_study

# A job in the background of a shell ignores Ctrl-C, and so would what it starts.
SMALL = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
SMALL += 'from pathlib import Path; from bdd_seg.cli import demo; '
SMALL += 'demo.STUDY, demo.SCENES, demo.SIZE = Path({!r}), (8, 4), (48, 96); demo.main()'


@pytest.fixture(scope='module')
def study(tiny_configs, tmp_path_factory) -> Path:
    """The demo's study file with tiny networks."""
    content = yaml.safe_load(demo.STUDY.read_text())
    teacher = tiny_configs['teacher']
    content['teacher'].update(config=str(teacher), checkpoint='work_dirs/demo/teacher/iter_6.pth')
    content['prepare'][1]['run'] = f'tools/train.py {shlex.quote(str(teacher))} --resume'
    content['methods']['alone']['config'] = str(tiny_configs['student'])
    content['methods']['distilled']['config'] = str(tiny_configs['distilled'])
    file = tmp_path_factory.mktemp('demo') / 'demo.yaml'
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def call(study, *flags) -> subprocess.Popen:
    """Start the demo with small scenes in the folder of its study file."""
    folders = ['--data', f'{study.parent}/data', '--work-dir', f'{study.parent}/runs']
    command = [sys.executable, '-c', SMALL.format(str(study)), *folders, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def interrupted(study) -> int:
    """A call that Ctrl-C ends while the teacher trains. Returns the process id of the training."""
    runs = study.parent / 'runs'
    with call(study) as tool:
        while not (runs / 'prepare_1.log').exists() or not (runs / 'prepare_1.log').stat().st_size:
            assert tool.poll() is None
            time.sleep(0.1)
        (child,) = map(int, Path(f'/proc/{tool.pid}/task/{tool.pid}/children').read_text().split())
        tool.send_signal(signal.SIGINT)
        assert 'interrupted; the same command goes on from here' in tool.communicate(timeout=120)[1]
        assert tool.returncode == 1
    return child


@pytest.fixture(scope='module')
def outputs(study, interrupted) -> list[str]:
    """The outputs of two calls after the interrupted one."""
    found = []
    for _ in range(2):
        with call(study) as tool:
            output, errors = tool.communicate(timeout=600)
        assert tool.returncode == 0, errors
        found.append(output)
    return found


def test_ctrl_c_ends_the_training(interrupted):
    with pytest.raises(ProcessLookupError):
        os.kill(interrupted, 0)


def test_the_next_call_trains_all_three(study, outputs):
    runs = study.parent / 'runs'
    folders = [runs / 'teacher', *runs.glob('alone-seed0-*'), *runs.glob('distilled-seed0-*')]
    assert [{record['step'] for record in logged(folder)} for folder in folders] == [{1, 2, 3, 4, 5, 6}] * 3
    assert 'final runs: 2 of 2 runs to do' in outputs[0]


def test_a_call_with_everything_finished_runs_nothing(outputs):
    assert '0 scenes drawn, 12 were there already' in outputs[1]
    assert 'tools/train.py' not in outputs[1]
    assert 'to do' not in outputs[1]
    assert '3 of 3 runs finished' in outputs[1]


def test_the_table(outputs):
    tables = [re.findall(r'^\| (?:teacher|student).*', output, re.MULTILINE) for output in outputs]
    assert len(tables[0]) == 3
    assert tables[0] == tables[1]
    rows = [
        [cell.strip() for cell in line.split('|')[1:-1]] for line in outputs[1].splitlines() if '| ' in line
    ]
    assert rows[0] == ['model', 'parameters (M)', 'GFLOPs', 'mIoU (%)', 'seconds per iteration']
    assert rows[2][1:3] == rows[3][1:3]  # the student alone and distilled are one network
    assert float(rows[1][1]) > float(rows[2][1])
    assert all(float(row[4]) > 0 for row in rows[1:])
    alone, distilled = float(rows[2][3]), float(rows[3][3])
    last = f'synthetic scenes 48x96, seed 0; distilled against alone: {distilled - alone:+.2f} mIoU; '
    assert last in outputs[1].splitlines()[-1]


def test_the_student_is_that_of_the_plain_command(study, outputs, tiny_configs, monkeypatch, tmp_path):
    runs, data = study.parent / 'runs', study.parent / 'data'
    options = [f'{loader}_dataloader.dataset.data_root={data}' for loader in ('train', 'val', 'test')]
    options += [f'model.teacher.checkpoint={runs}/teacher/iter_6.pth', 'randomness.seed=0']
    monkeypatch.setenv('OMP_NUM_THREADS', str(len(os.sched_getaffinity(0))))  # as torch's default
    train(tiny_configs['distilled'], tmp_path, '--cfg-options', *options)
    (file,) = runs.glob('distilled-seed0-*/student_float16.pth')
    expected, found = weights(tmp_path / 'iter_6.pth'), weights(file)
    assert found.keys() == expected.keys()
    floats = [key for key, value in expected.items() if value.is_floating_point()]
    assert len(floats) > 100
    assert all(torch.equal(found[key], expected[key].half()) for key in floats)


def test_another_seed_is_refused_in_the_same_folder(study, outputs):
    with call(study, '--seed', '1') as tool:
        errors = tool.communicate(timeout=120)[1]
    assert tool.returncode == 1
    assert (
        'holds a run with other settings; delete it or choose another --work-dir' in errors.splitlines()[-1]
    )


def test_a_teacher_of_a_study_is_used_where_its_seed_is_the_same(study, tmp_path):
    folder = tmp_path / 'teacher'
    folder.mkdir()
    torch.save({'state_dict': {}, 'meta': {'seed': 3}}, folder / 'iter_6.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_6.pth'))
    made = load_study(study)
    with pytest.raises(ConfigError, match='holds a run with other settings'):
        demo.claim_teacher(made, folder / 'iter_6.pth', 0)
    demo.claim_teacher(made, folder / 'iter_6.pth', 3)
    assert json.loads((folder / 'demo_settings.json').read_text())['seed'] == 3
    demo.claim_teacher(made, folder / 'iter_6.pth', 3)
    changed = made.model_copy(update={'options': {'train_dataloader.batch_size': 7}})
    with pytest.raises(ConfigError, match='holds a run with other settings'):
        demo.claim_teacher(changed, folder / 'iter_6.pth', 3)


def test_the_seed_is_in_checkpoints(study, outputs):
    assert demo.load_checkpoint(study.parent / 'runs/teacher/iter_6.pth')['meta']['seed'] == 0


def test_the_flags_reach_the_study(tmp_path):
    study = load_study(demo.STUDY)
    made = demo.place(study, study.teacher, tmp_path / 'my data', tmp_path / 'teacher/iter_800.pth', 5)
    assert made.seeds == [5]
    assert made.options['val_dataloader.dataset.data_root'] == f'{tmp_path}/my data'
    assert made.distilled_options['model.teacher.checkpoint'] == f'{tmp_path}/teacher/iter_800.pth'
    (step,) = made.prepare
    assert step.creates == made.teacher.checkpoint == tmp_path / 'teacher/iter_800.pth'
    words = shlex.split(step.run)
    assert words[-6:-4] == [f'{tmp_path}/teacher', '--cfg-options']
    assert words[-1] == 'randomness.seed=5'
    assert f'test_dataloader.dataset.data_root={tmp_path}/my data' in words


def test_the_scenes_are_those_of_the_study_file():
    study = load_study(demo.STUDY)
    assert study.prepare[0].run == 'tools/make_street_scenes.py'  # 600 and 100 scenes of 128x256 by default
    assert study.prepare[0].creates.name == f'street_000000_{demo.SCENES[1] - 1:06d}_leftImg8bit.png'
    assert demo.SCENES == (600, 100)
    assert demo.SIZE == (128, 256)
