"""tools/demo.py with tiny networks and scenes."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT, complaint, logged, train, weights
from warm_python import warm_python

from bdd_seg.cli import demo
from bdd_seg.errors import ConfigError
from bdd_seg.study.settings import load_study

SMALL = """
from pathlib import Path
from bdd_seg.cli import demo
demo.STUDY, demo.SCENES, demo.SIZE = Path({!r}), (8, 4), (48, 96)
demo.main()
"""


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


def folders(study) -> list[str]:
    return ['--data', f'{study.parent}/data', '--work-dir', f'{study.parent}/runs']


def make_small(monkeypatch, study) -> None:
    """Do in this process what SMALL does in another one."""
    for name, value in (('STUDY', study), ('SCENES', (8, 4)), ('SIZE', (48, 96))):
        monkeypatch.setattr(demo, name, value)


def call(study) -> subprocess.Popen:
    """Start the demo with small scenes in the folder of its study file."""
    script = study.parent / 'small_demo.py'
    script.write_text(SMALL.format(str(study)))
    command = [warm_python(), script, *folders(study)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    try:
        threads = [*Path(f'/proc/{pid}/task').iterdir()]
        children = [int(word) for thread in threads for word in (thread / 'children').read_text().split()]
    except FileNotFoundError:  # it ended meanwhile
        return []
    return [*children, *(pid for child in children for pid in descendants(child))]


def pid_in(work_dir: Path, tool: subprocess.Popen) -> int:
    """The process that holds a work dir, as soon as one does."""
    while True:
        try:
            return json.loads((work_dir / '.running').read_text())['pid']
        except (FileNotFoundError, json.JSONDecodeError):
            assert tool.poll() is None
            time.sleep(0.05)


@pytest.fixture(scope='module')
def interrupted(study) -> dict:
    """A call that Ctrl-C ends while the teacher trains, and one beside it."""
    runs = study.parent / 'runs'
    with call(study) as tool:
        training = pid_in(runs / 'teacher', tool)
        os.kill(training, signal.SIGSTOP)  # so that it does not end before the signal comes
        with pytest.MonkeyPatch.context() as patch:
            make_small(patch, study)
            refused = complaint(patch, ROOT / 'tools/demo.py', '--work-dir', runs)
        pid = pid_in(runs, tool)
        family = descendants(pid)
        tool.send_signal(signal.SIGINT)
        os.kill(training, signal.SIGCONT)
        errors = tool.communicate()[1]
        assert tool.returncode == 130
    return {'pid': pid, 'family': family, 'errors': errors, 'refused': refused}


@pytest.fixture(scope='module')
def outputs(study, interrupted) -> list[str]:
    """The outputs of two calls after the interrupted one, the second one in this process."""
    with call(study) as tool:
        output, errors = tool.communicate()
    assert tool.returncode == 0, errors
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as second:
        patch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')
        patch.setattr(sys, 'argv', ['demo.py', *folders(study)])
        make_small(patch, study)
        demo.main()
    return [output, second.getvalue()]


def test_ctrl_c_ends_the_training(study, interrupted):
    assert interrupted['errors'].endswith('interrupted; the same command goes on from here\n')
    assert len(interrupted['family']) >= 2  # the supervisor and the training
    for pid in interrupted['family']:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert 'interrupted; --resume goes on' in (study.parent / 'runs/prepare_1.log').read_text()


def test_a_second_call_beside_it_is_refused(study, interrupted):
    expected = f"error: '{study.parent}/runs' is in use by process {interrupted['pid']} on "
    assert interrupted['refused'].startswith(expected)


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
    assert any(line.startswith(last) for line in outputs[1].splitlines())


def test_it_ends_with_the_page(study, outputs):
    page = study.parent / 'runs/report.html'
    assert outputs[1].splitlines()[-1].startswith(f'{page}: open it')
    miou = re.search(
        r'student PSPNet-R18, distilled *\|.*\| *([\d.]+) *\| *[\d.]+ *\|$', outputs[1], re.MULTILINE
    )[1]
    assert miou in page.read_text()


def test_the_student_is_that_of_the_plain_command(study, outputs, tiny_configs, tmp_path):
    runs, data = study.parent / 'runs', study.parent / 'data'
    options = [f'{loader}_dataloader.dataset.data_root={data}' for loader in ('train', 'val', 'test')]
    options += [f'model.teacher.checkpoint={runs}/teacher/iter_6.pth', 'randomness.seed=0']
    train(tiny_configs['distilled'], tmp_path, '--cfg-options', *options)
    (file,) = runs.glob('distilled-seed0-*/student_float16.pth')
    expected, found = weights(tmp_path / 'iter_6.pth'), weights(file)
    assert found.keys() == expected.keys()
    floats = [key for key, value in expected.items() if value.is_floating_point()]
    assert len(floats) > 100
    assert all(torch.equal(found[key], expected[key].half()) for key in floats)


def test_another_seed_is_refused_in_the_same_folder(study, outputs, monkeypatch):
    make_small(monkeypatch, study)
    message = complaint(monkeypatch, ROOT / 'tools/demo.py', *folders(study), '--seed', 1)
    assert message.endswith('holds a run with other settings; delete it or choose another --work-dir')


def test_the_progress_tells_the_time_of_all(study, outputs, capsys):
    """That of a demo whose teacher is trained, with a student that has 6 iterations to go."""
    made = load_study(study)
    checkpoint = study.parent / 'runs/teacher/iter_6.pth'
    made = demo.place(made, made.teacher, study.parent / 'data', checkpoint, 0)
    session = demo.DemoSession(made, study.parent / 'elsewhere', 'command')
    steps = session.steps
    assert [step.label.split(',')[0] for step in steps] == ['teacher', *['student PSPNet-R18'] * 2]
    assert [(step.iterations, step.seconds) for step in steps] == [(6, 0.41), (6, 0.21), (6, 0.31)]
    session.progress_line('ignored', steps[0].work_dir, seconds=0)()
    session.progress_line('an evaluation', study.parent / 'nowhere', seconds=0)()
    lines = capsys.readouterr().out.splitlines()
    begin = r'\[demo\] step 2 of 4: teacher: iteration 6 of 6, 0 s left of this, \d+ (s|min) of all'
    assert re.fullmatch(begin, lines[0])
    assert lines[1] == 'an evaluation: running for 0 s'


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
