"""One call of a study, without its commands."""

import json
import os
import re
import threading

import pytest
import torch
from helpers import study_file

from bdd_seg.errors import ConfigError
from bdd_seg.study import session as session_module
from bdd_seg.study.configs import digest_if_local, reference_runs
from bdd_seg.study.results import RunResult, load_results
from bdd_seg.study.session import Session
from bdd_seg.study.settings import load_study


@pytest.fixture
def session(tiny_configs, tmp_path):
    """A call with changes of the study, in which no run is finished."""
    teacher = {
        'label': 'teacher',
        'config': str(tiny_configs['teacher']),
        'checkpoint': str(tiny_configs['checkpoint']),
    }
    file = study_file(tiny_configs, tmp_path, teacher=teacher, iterations=4)

    def make(**changes):
        return Session(load_study(file).model_copy(update=changes), tmp_path / 'out', 'command', jobs=2)

    return make


def store(session, run, **facts):
    folder = session.folder / run.name
    folder.mkdir(parents=True, exist_ok=True)
    scores = {split: {'mIoU': 30.0, 'aAcc': 80.0, 'mAcc': 40.0, 'classes': {}} for split in run.splits}
    content = {**run.provenance(session.study).to_json(), 'scores': scores, **facts}
    (folder / 'result.json').write_text(json.dumps(content))


def test_what_was_measured_on_something_else_is_measured_again(session, tmp_path):
    before = session()
    final, (teacher,) = before.make('alone', 'final', 1, {}), reference_runs(before.study)
    store(before, final)
    store(before, teacher)
    assert before.stored(final) is not None
    assert before.stored(teacher) is not None
    fewer = session(splits={'val': {}})
    assert fewer.stored(fewer.make('alone', 'final', 1, {})) is not None
    other = session(splits={'val': {}, 'train': {'test_dataloader.dataset.data_root': 'elsewhere'}})
    assert other.stored(other.make('alone', 'final', 1, {})) is None
    other = session(train_flags=['--amp'])
    assert other.stored(other.make('alone', 'final', 1, {})) is None
    torch.save({'state_dict': {'weight': torch.ones(2)}}, tmp_path / 'other.pth')
    retrained = before.study.teacher.model_copy(update={'checkpoint': tmp_path / 'other.pth'})
    other = session(teacher=retrained)
    assert other.stored(reference_runs(other.study)[0]) is None


def test_another_teacher_is_noticed(session, tmp_path):
    weights = tmp_path / 'teacher.pth'
    first, second = {'weight': torch.ones(2)}, {'weight': torch.zeros(2)}
    for content, time, known in ((first, 1, True), (first, 2, True), (second, 2, False)):
        torch.save({'state_dict': content, 'meta': {'time': time}}, weights)
        digest_if_local.cache_clear()  # as in another call
        made = session(distilled_options={'model.teacher.checkpoint': str(weights)})
        run_ = made.make('kd', 'final', 1, {})
        if time == 1:
            store(made, run_)
        assert (made.stored(run_) is not None) == known
    weights.unlink()  # brought back without it
    digest_if_local.cache_clear()
    assert made.stored(run_) is not None


def test_the_slowest_method_gets_a_part_of_the_iterations(session):
    made = session(budgets=['iterations', 'wall_clock'], wall_clock_of='alone', iterations=40)
    for run_, pace in zip(made.final_runs(), (0.01, 1.0), strict=True):
        store(made, run_, seconds_per_iteration=pace)
    assert [run_.cfg.train_cfg.max_iters for run_ in made.wall_clock_runs()] == [40, 4]


def several(made):
    """The methods of a study, and a second one with a teacher."""
    methods = made.study.methods
    return {**methods, 'other': methods['kd'].model_copy(update={'options': {'loss.loss_weight': 9}})}


def test_a_recording_is_made_where_several_runs_share_it(session):
    made = session()
    assert made.recordings is None
    assert session(methods=several(made)).recordings == made.folder / 'recordings'
    assert session(methods=several(made), record=False).recordings is None
    searched = made.study.methods['kd'].model_copy(
        update={'search': [{'loss.loss_weight': w} for w in (1, 2)]}
    )
    assert session(methods={**made.study.methods, 'kd': searched}).recordings is not None


def test_the_pace_is_measured_with_a_live_teacher(session, tmp_path):
    budget = {'budgets': ['iterations', 'wall_clock'], 'wall_clock_of': 'kd', 'iterations': 40}
    made = session(methods=several(session()), **budget, pace_iterations=3)
    for run_ in made.final_runs():
        store(made, run_, seconds_per_iteration=1.0)  # as it is with a recording
    assert made.wall_clock_runs() == []
    for run_, pace in zip(made.pace_runs(), (0.1, 0.2, 0.1), strict=True):
        assert run_.cfg.train_cfg.max_iters == 3 and run_.splits == {}
        assert run_.training_config(tmp_path).model.get('teacher', {}).get('record') is None
        store(made, run_, seconds_per_iteration=pace)
    assert [run_.cfg.train_cfg.max_iters for run_ in made.wall_clock_runs()] == [80, 40, 80]
    assert session(**budget).pace_runs() == []  # nothing is recorded
    assert len({run_.name for run_ in [*made.pace_runs(), *made.final_runs()]}) == 6
    longer = made.study.methods['alone'].model_copy(update={'iterations': 90})
    methods = {**made.study.methods, 'longer': longer}
    made = session(**{**budget, 'methods': methods}, pace_iterations=3)
    assert [run_.method for run_ in made.wall_clock_runs()] == ['alone', 'kd', 'other']
    assert [run_.cfg.train_cfg.max_iters for run_ in made.final_runs()] == [40, 40, 40, 90]


def test_teachers_that_run_a_network_are_recorded(session, tmp_path):
    made = session()
    student, distilled = made.final_runs()
    assert distilled.training_config(tmp_path).model.teacher.record == str(tmp_path / 'seed1')
    assert 'record' not in distilled.training_config(None).model.teacher
    assert 'record' not in distilled.cfg.model.teacher  # so that it is the same run
    assert 'teacher' not in student.training_config(tmp_path).model
    cached = session(distilled_options={'model.teacher.type': 'CachedTeacher', 'model.teacher.cache': 'c'})
    assert 'record' not in cached.final_runs()[1].training_config(tmp_path).model.teacher


def test_seeds_of_their_own_come_after_those_of_all(session):
    made = session()
    kd = made.study.methods['kd'].model_copy(update={'seeds': [1, 5]})
    made = session(seeds=[1, 2], methods={**made.study.methods, 'kd': kd})
    assert [(run_.seed, run_.method) for run_ in made.final_runs()] == [
        (1, 'alone'),
        (1, 'kd'),
        (2, 'alone'),
        (5, 'kd'),
    ]


def test_results_from_elsewhere_are_taken_over_where_the_config_is_the_same(session, capsys):
    made = session(seeds=[1, 2])
    first, second, third, _ = made.final_runs()
    for run_ in (first, second):
        store(made, run_, seconds=1.0, iterations=4, machine='another')
    made.report()
    for folder in made.folder.glob('*-seed*'):
        (folder / 'result.json').unlink()  # as on another machine
    elsewhere = load_results(made.folder / 'results.json')
    with pytest.raises(ConfigError, match='--continue-from: none of its runs has the config'):
        session(seeds=[7]).take_over(elsewhere)
    with pytest.raises(ConfigError, match='--continue-from: none of its runs'):
        session(train_flags=['--amp']).take_over(elsewhere)
    with pytest.raises(ConfigError, match='--continue-from: none of its runs'):
        session(splits={'val': {}, 'test': {}, 'train': {}}).take_over(elsewhere)
    made.take_over(elsewhere)
    assert '== 2 of 2 runs taken from elsewhere' in capsys.readouterr().out
    assert made.stored(third) is None
    assert session(seeds=[1, 2]).results().runs == elsewhere.runs  # in another call, too
    made.report()
    assert 'Runs were also made with another.' in (made.folder / 'report.md').read_text()
    made.take_over(elsewhere)  # safe to do twice
    assert made.results().runs == elsewhere.runs


def test_results_of_another_teacher_are_not_taken_over(session, tmp_path, capsys):
    teacher = tmp_path / 'teacher.pth'
    torch.save({'state_dict': {'weight': torch.ones(2)}}, teacher)
    made = session(distilled_options={'model.teacher.checkpoint': str(teacher)})
    for run_ in made.final_runs():
        store(made, run_, seconds=1.0, iterations=4)
    made.report()
    elsewhere = load_results(made.folder / 'results.json')
    for file in made.folder.glob('*-seed*/result.json'):
        file.unlink()
    digest_if_local.cache_clear()
    torch.save({'state_dict': {'weight': torch.zeros(2)}}, teacher)
    fresh = session(distilled_options={'model.teacher.checkpoint': str(teacher)})
    fresh.take_over(elsewhere)
    assert '== 1 of 2 runs taken from elsewhere; 1 had another teacher' in capsys.readouterr().out
    assert [run_.method for run_ in fresh.results().runs] == ['alone']
    digest_if_local.cache_clear()


def test_what_the_search_chose_elsewhere_decides_which_final_runs_are_taken_over(session):
    kd = (
        session().study.methods['kd'].model_copy(update={'search': [{'loss.loss_weight': w} for w in (1, 2)]})
    )
    changes = {'methods': {**session().study.methods, 'kd': kd}, 'search_seeds': [0]}
    made = session(**changes)
    scores = {'aAcc': 80.0, 'mAcc': 40.0, 'classes': {}}
    for run_, miou in zip(made.search_runs(), (30.0, 40.0), strict=True):
        store(made, run_, scores={'val': {**scores, 'mIoU': miou}}, seconds=1.0, iterations=4)
    final = made.final_runs()[1]
    assert final.setting == {'loss.loss_weight': 2}
    store(made, final, seconds=1.0, iterations=4)
    made.report()
    elsewhere = load_results(made.folder / 'results.json')
    for file in made.folder.glob('*-seed*/result.json'):
        file.unlink()
    fresh = session(**changes)
    fresh.take_over(elsewhere)
    assert fresh.results().runs == elsewhere.runs and len(elsewhere.runs) == 3


def test_a_report_is_about_the_machine_that_measured(session):
    made = session()
    made.folder.mkdir()
    made.measured = True
    assert (made.machine()['threads'], made.machine()['jobs']) == (max(1, os.cpu_count() // 2), 2)
    (made.folder / 'machine.json').write_text('{"cpu": "another"}')
    assert session().machine() == {'cpu': 'another'}


def result_of(miou):
    scores = {'mIoU': miou, 'aAcc': 80.0, 'mAcc': 40.0, 'classes': {'sky': miou}}
    return RunResult(
        iterations=4, seconds=6.0, seconds_per_iteration=0.5, scores={'val': scores, 'test': scores}
    )


def test_runs_at_once_get_their_shares_and_results_are_stored(session, monkeypatch, capsys):
    both, seen = threading.Barrier(2, timeout=600), []

    def train_and_test(run, folder, study, environment, stop, follow, recordings):
        both.wait()  # two at a time
        seen.append(environment)
        folder.mkdir(parents=True)
        return result_of(30.0 + run.seed).model_copy(update=run.provenance(study).to_json())

    monkeypatch.setattr(session_module, 'train_and_test', train_and_test)
    made = session(teacher=None, seeds=[1, 2])
    made.run()
    printed = capsys.readouterr().out
    assert '== final runs: 4 of 4 runs to do, 2 at once' in printed
    assert re.search(r'\[4/4\] final .* mIoU; 0 min left', printed)
    assert '== 4 of 4 runs finished: ' in printed
    assert len(seen) == 4
    assert all(environment['OMP_NUM_THREADS'] == str(made.threads) for environment in seen)
    results = made.results()
    assert [(run.method, run.seed, run.scores['val'].miou) for run in results.runs] == [
        ('alone', 1, 31.0),
        ('kd', 1, 31.0),
        ('alone', 2, 32.0),
        ('kd', 2, 32.0),
    ]
    assert json.loads((made.folder / 'results.json').read_text()) == json.loads(json.dumps(results.to_json()))
    made.run()
    assert 'to do' not in capsys.readouterr().out


def failing(*broken):
    """A ``train_and_test`` of which these runs, (method, seed), fail."""

    def train_and_test(run, folder, study, environment, stop, follow, recordings):
        if (run.method, run.seed) in broken:
            raise ConfigError(f'broken {run.method} {run.seed}')
        folder.mkdir(parents=True, exist_ok=True)
        return result_of(30.0 + run.seed).model_copy(update=run.provenance(study).to_json())

    return train_and_test


def test_a_study_stops_if_all_first_runs_fail(session, monkeypatch):
    def train_and_test(run, folder, study, environment, stop, follow, recordings):
        if run.seed == 1:
            raise ConfigError('broken')
        while not stop():
            pass
        raise session_module.StoppedError

    monkeypatch.setattr(session_module, 'train_and_test', train_and_test)
    made = session(teacher=None, seeds=[1, 2, 3])
    with pytest.raises(ConfigError, match='^broken'):
        made.run()
    assert json.loads((made.folder / 'results.json').read_text())['runs'] == []


@pytest.mark.parametrize('broken', [('kd', 1), ('kd', 2)])
def test_a_run_that_fails_lets_the_others_go_on(session, monkeypatch, capsys, broken):
    monkeypatch.setattr(session_module, 'train_and_test', failing(broken))
    made = session(teacher=None, seeds=[1, 2])
    with pytest.raises(ConfigError, match=f'^1 of the runs failed: final kd seed {broken[1]}. .*broken kd'):
        made.run()
    assert f'final kd seed {broken[1]}: broken kd {broken[1]}\n' in capsys.readouterr().out
    finished = [(run.method, run.seed) for run in made.results().runs]
    assert finished == [pair for pair in [('alone', 1), ('kd', 1), ('alone', 2), ('kd', 2)] if pair != broken]
    with pytest.raises(ConfigError, match=f'^1 of the runs failed: final kd seed {broken[1]}. '):
        session(teacher=None, seeds=[1, 2]).run()  # alone in its step now, it does not end the study either
    monkeypatch.setattr(session_module, 'train_and_test', failing())
    session(teacher=None, seeds=[1, 2]).run()  # the same command again
    assert len(made.results().runs) == 4
