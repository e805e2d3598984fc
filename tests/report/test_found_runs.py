"""Paths of bdd-seg report: the networks that they name, roles, configs, checkpoints, curves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_study
from mmengine.config import Config
from written_runs import write_config, write_log, write_run

from bdd_seg.distill.student import plain_config
from bdd_seg.errors import ConfigError
from bdd_seg.report.runs import config_text, find_runs, read_curves, seeds_of, training_config
from bdd_seg.runtime.upstream.atomic_files import file_digest
from bdd_seg.study.results import Results


@pytest.fixture(scope='module')
def folder(tiny_configs, tmp_path_factory) -> Path:
    """Work dirs of a teacher, a student alone and distilled, and of another network."""
    folder = tmp_path_factory.mktemp('work_dirs')
    teacher = write_run(folder / 'teacher', tiny_configs['teacher'], log=False)
    distilled = Config.fromfile(tiny_configs['distilled'])
    distilled.model.teacher.checkpoint = str(teacher / 'iter_6.pth')
    write_run(folder / 'distilled', distilled)
    write_run(folder / 'alone', tiny_configs['student'], 3)
    other = Config.fromfile(tiny_configs['student'])
    other.model.decode_head.channels = 4
    write_run(folder / 'other', other, None)
    return folder


def test_roles(folder):
    runs = find_runs([folder / name for name in ('distilled', 'other', 'alone', 'teacher')]).runs
    assert [(run.role, run.label) for run in runs] == [
        ('teacher', 'teacher'),
        ('alone', 'alone'),
        ('distilled', 'distilled'),
        ('plain', 'other'),
    ]
    assert [run.checkpoint and run.checkpoint.name for run in runs] == [
        'iter_6.pth',
        'iter_3.pth',
        'iter_6.pth',
        None,
    ]
    assert runs[3].note == 'has no checkpoint yet'
    assert [run.path for run in find_runs([folder]).runs] == [run.path for run in runs]  # all in a folder


def test_a_published_distilled_student_is_not_alone(folder, tmp_path):
    """Its config is plain."""
    content = torch.load(folder / 'alone/iter_3.pth')
    roles = {}
    for marked in (False, True):
        place = tmp_path / str(marked)
        place.mkdir()
        cfg = Config.fromfile(folder / 'alone/config.py')
        cfg.model.pop('pretrained')  # as in a published config
        cfg.model.pop('auxiliary_head')
        write_config(place / 'student.py', cfg)
        torch.save({**content, 'meta': {'distilled': marked}}, place / 'student.pth')
        runs = find_runs([folder / 'alone', place / 'student.pth']).runs
        roles[marked] = {run.path.name: run.role for run in runs}
    assert roles[False] == {'alone': 'plain', 'student.pth': 'plain'}
    assert roles[True] == {'alone': 'alone', 'student.pth': 'distilled'}
    runs = find_runs([folder / 'distilled', tmp_path / 'True/student.pth']).runs
    assert [run.role for run in runs] == ['distilled', 'distilled']


def test_a_teacher_is_known_by_the_digest_in_a_cache(folder, tiny_configs, tmp_path):
    cfg = Config.fromfile(tiny_configs['distilled'])
    cache = tmp_path / 'cache'
    cache.mkdir()
    digest = file_digest(folder / 'teacher/iter_6.pth')
    manifest = dict(
        teacher={'checkpoint': digest}, num_classes=19, class_names=None, logits_tap='x', strides={}
    )
    manifest |= dict(align_corners=False, pipeline=[], images={}, version=1)
    (cache / 'manifest.json').write_text(json.dumps(manifest))
    cfg.model.teacher = dict(type='CachedTeacher', cache=str(cache))
    write_run(tmp_path / 'from_cache', cfg)
    runs = find_runs([tmp_path / 'from_cache', folder / 'teacher']).runs
    assert [run.role for run in runs] == ['teacher', 'distilled']


def test_networks_of_one_name_get_their_folders(folder, tiny_configs, tmp_path):
    write_run(tmp_path / 'alone', tiny_configs['student'], 6)
    runs = find_runs([folder / 'alone', tmp_path / 'alone', folder / 'alone']).runs
    assert [run.label for run in runs] == [f'{folder.name}/alone', f'{tmp_path.name}/alone']


def test_a_checkpoint_in_a_work_dir(folder):
    (run,) = find_runs([folder / 'distilled/iter_6.pth']).runs
    assert run.label == 'distilled/iter_6.pth' and run.work_dir == folder / 'distilled'
    (run,) = find_runs([folder / 'distilled'], 'iter_*.pth').runs
    assert run.checkpoint == folder / 'distilled/iter_6.pth'


def test_another_checkpoint_of_the_teacher_is_not_the_teacher(folder, tmp_path):
    work_dir = shutil.copytree(folder / 'teacher', tmp_path / 'teacher')
    cfg = Config.fromfile(folder / 'distilled/config.py')
    cfg.model.teacher.checkpoint = str(work_dir / 'iter_6.pth')
    distilled = write_run(tmp_path / 'distilled', cfg)
    shutil.copy(work_dir / 'iter_6.pth', work_dir / 'iter_9.pth')
    runs = find_runs([work_dir / 'iter_9.pth', distilled]).runs
    assert [(run.role, run.checkpoint.name) for run in runs] == [
        ('plain', 'iter_9.pth'),
        ('distilled', 'iter_6.pth'),
    ]
    (teacher, _) = find_runs([work_dir, distilled]).runs  # which has been trained on since
    assert (teacher.role, teacher.checkpoint.name) == ('teacher', 'iter_6.pth')


def test_the_config_is_that_of_the_latest_training(folder, tmp_path):
    """A test in the work dir leaves a config without teacher, in the work dir, too."""
    work_dir = shutil.copytree(folder / 'distilled', tmp_path / 'distilled')
    tested = plain_config(Config.fromfile(work_dir / 'config.py'))
    write_config(work_dir / 'config.py', tested)
    write_log(work_dir, '20250102_000000', [{'mIoU': 3.0, 'step': 0}], tested)
    assert training_config(work_dir).model.type == 'SegDistiller'
    assert find_runs([work_dir]).runs[0].role == 'distilled'
    shutil.rmtree(work_dir / '20250101_000000')
    assert training_config(work_dir).model.type == 'EncoderDecoder'
    (work_dir / 'config.py').unlink()
    (work_dir / '20250102_000000/vis_data/config.py').unlink()
    with pytest.raises(ConfigError, match='holds no config'):
        find_runs([work_dir])


def test_configs_differ_in_what_the_networks_differ(folder):
    alone, distilled = (
        config_text(find_runs([folder / name]).runs[0].cfg).splitlines() for name in ('alone', 'distilled')
    )
    assert [line for line in alone if line not in distilled] == ["model.type = 'EncoderDecoder'"]
    added = [line for line in distilled if line not in alone]
    assert "model.type = 'SegDistiller'" in added
    assert "model.distill_losses.0.type = 'BDDLoss'" in added
    assert all(line.startswith(('model.type', 'model.teacher', 'model.distill_losses')) for line in added)


def test_curves_over_two_sessions(tmp_path):
    """Of iterations 4 to 6, done again after an interruption, the second time counts."""
    first = [{'loss': 9.0 - step, 'lr': 0.1, 'time': 1.0, 'step': step} for step in (2, 4, 6)]
    write_log(tmp_path, '20250101_000000', [*first, {'mIoU': 10.0, 'aAcc': 50.0, 'step': 6}])
    second = [{'loss': 3.0 - step / 10, 'lr': 0.05, 'time': 2.0, 'step': step} for step in (4, 6, 8)]
    second[1]['distill.loss_bdd'] = 0.25
    write_log(tmp_path, '20250102_000000', [*second, {'mIoU': 20.0, 'aAcc': 60.0, 'step': 7}])
    with (tmp_path / '20250102_000000/vis_data/scalars.json').open('a') as file:
        file.write('{"loss": 1.0, "st')  # cut short by a kill
    curves = {curve.name: curve for curve in read_curves(tmp_path)}
    assert list(curves) == ['loss', 'lr', 'distill.loss_bdd', 'mIoU', 'aAcc']
    np.testing.assert_array_equal(curves['loss'].iterations, [2, 4, 6, 8])
    np.testing.assert_allclose(curves['loss'].values, [7.0, 2.6, 2.4, 2.2])
    np.testing.assert_allclose(curves['loss'].seconds, [2.0, 6.0, 10.0, 14.0])
    assert curves['distill.loss_bdd'].seconds == [10.0]
    assert (curves['mIoU'].iterations, curves['mIoU'].values, curves['mIoU'].seconds) == ([7], [20.0], [12.0])


def test_validations_of_a_training_in_epochs(tmp_path):
    records = []
    for epoch in (1, 2):
        records += [
            {'loss': 1.0, 'time': 1.0, 'epoch': epoch, 'step': 5 * epoch},
            {'mIoU': 7.0, 'step': epoch},
        ]
    write_log(tmp_path, '20250101_000000', records)
    curves = {curve.name: curve for curve in read_curves(tmp_path)}
    np.testing.assert_array_equal(curves['mIoU'].iterations, [5, 10])


def test_a_study_gives_a_network_a_method_and_its_seeds(folder, tmp_path, tiny_configs):
    content = small_study()
    for run in content['runs']:
        run['config_sha256'] = 'abcdef0123456789'
    (tmp_path / 'results.json').write_text(json.dumps(content))
    cfg = Config.fromfile(folder / 'distilled/config.py')
    kept = write_run(tmp_path / 'bdd-seed0-abcdef012345', cfg, 6)
    (kept / 'iter_6.pth').rename(kept / 'student_float16.pth')
    (kept / 'last_checkpoint').write_text(str(kept / 'iter_6.pth'))
    write_run(tmp_path / 'bdd-seed7-abcdef012345', cfg, None)  # of the search
    found = find_runs([tmp_path])
    runs = {run.label: run for run in found.runs}
    assert list(runs)[0] == 'teacher' and runs['teacher'].score == 45.0
    assert runs['BDD'].role == 'distilled' and runs['BDD'].score == 32.0
    assert runs['BDD'].checkpoint == kept / 'student_float16.pth' and runs['BDD'].note == 'seed 0 of 3'
    assert runs['CWD'].checkpoint is None and runs['CWD'].cfg is None
    assert len(runs) == 5
    rows = {row.label: row for row in seeds_of(found.studies[0]) if row.budget == 'iterations'}
    assert rows['BDD'].mious == {0: 32.0, 1: 33.0, 2: 33.4} and rows['BDD'].minutes == 4.5
    assert rows['alone'].against_control == ''
    results = Results.model_validate(content)
    assert rows['BDD'].against_control == str(results.difference('iterations', 'test', 'bdd', 'alone'))
    again = find_runs([tmp_path / 'results.json']).runs
    assert [run.checkpoint for run in again] == [run.checkpoint for run in found.runs]


def test_a_trained_teacher_has_the_study_s_label(folder, tmp_path):
    content = small_study()
    content['runs'] = [
        run for run in content['runs'] if run['stage'] == 'reference' or run['method'] == 'alone'
    ]
    content['methods']['teacher']['label'] = 'PSPNet-R50'
    (tmp_path / 'results.json').write_text(json.dumps(content))
    shutil.copytree(folder / 'teacher', tmp_path / 'teacher')
    cfg = Config.fromfile(folder / 'distilled/config.py')
    cfg.model.teacher.checkpoint = str(tmp_path / 'teacher/iter_6.pth')
    write_run(tmp_path / 'mine', cfg)
    runs = find_runs([tmp_path]).runs
    assert [(run.role, run.label) for run in runs] == [
        ('teacher', 'PSPNet-R50'),
        ('plain', 'alone'),
        ('distilled', 'mine'),
    ]
    assert runs[0].checkpoint == tmp_path / 'teacher/iter_6.pth' and runs[0].score == 45.0


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('alon', 'does not exist. Did you mean alone.*Give the --work-dir of a training'),
        ('empty', 'holds no checkpoint, no log and no results. Give'),
        ('alone/config.py', 'is no trained network. Give'),
    ],
)
def test_paths_that_name_no_network(folder, path, message):
    (folder / 'empty').mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match=message):
        find_runs([folder / path])


def test_a_damaged_checkpoint_leaves_the_curves(folder, tmp_path):
    work_dir = shutil.copytree(folder / 'alone', tmp_path / 'alone')
    (work_dir / 'iter_3.pth').write_bytes(b'PK')
    (run,) = find_runs([work_dir]).runs
    assert run.checkpoint is None and 'is no readable checkpoint' in run.note


def test_a_checkpoint_by_name_must_be_in_one_of_them(folder):
    runs = find_runs([folder / 'alone', folder / 'distilled'], 'iter_3.pth').runs
    assert [run.checkpoint is None for run in runs] == [False, True]
    assert runs[1].note == 'has no checkpoint iter_3.pth'
    with pytest.raises(ConfigError, match="--checkpoint 'best_.*no work dir holds such a file"):
        find_runs([folder / 'alone'], 'best_*.pth')


def test_a_checkpoint_alone_needs_its_config(tmp_path):
    torch.save({}, tmp_path / 'model.pth')
    with pytest.raises(ConfigError, match='no config beside it'):
        find_runs([tmp_path / 'model.pth'])
