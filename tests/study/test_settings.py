import pytest
import yaml
from helpers import ROOT

from bdd_seg.errors import ConfigError
from bdd_seg.study.settings import PROJECT, expand_aliases, find_file, format_overrides, load_study

SMALLEST = {
    'title': 't',
    'methods': {
        'alone': {'label': 'a', 'config': 'a.py'},
        'kd': {'label': 'b', 'config': 'b.py', 'search': [{'loss.loss_weight': 1}]},
        'cwd': {'label': 'c', 'config': 'b.py', 'search': [{'loss.loss_weight': 2}]},
    },
    'control': 'alone',
    'seeds': [1, 2],
    'search_seeds': [0],
    'select_on': 'val',
    'splits': {'val': {}},
}


def load(tmp_path, **changes):
    file = tmp_path / 'study.yaml'
    file.write_text(yaml.safe_dump({**SMALLEST, **changes}, sort_keys=False))
    return load_study(file)


def test_what_is_left_out_has_its_default(tmp_path):
    study = load(tmp_path)
    assert study.budgets == ['iterations']
    assert study.iterations is None
    assert study.methods['kd'].search == [{'loss.loss_weight': 1}]
    assert study.methods['alone'].search == []


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'seed': 3}, 'seed: Extra inputs are not permitted'),
        ({'seeds': []}, 'seeds: List should have at least 1 item'),
        ({'iterations': 0}, 'iterations: Input should be greater than 0'),
        ({'control': 'nobody'}, "control: 'nobody' is none of the methods"),
        ({'compare': ['kd', 'bdd']}, "compare: 'bdd' is none of the methods"),
        ({'select_on': 'test'}, "select_on: 'test' is none of the splits"),
        ({'equal': ['wall_clock']}, "equal: begins with 'iterations'"),
        ({'equal': ['iterations', 'wall_clock']}, "equal: 'wall_clock' needs wall_clock_of"),
        ({'search_seeds': []}, 'search_seeds: a search needs at least one'),
        ({'search_seeds': [2]}, 'search_seeds: a seed that chose a setting must not be among'),
        (
            {
                'teacher': {'label': 't', 'config': 't.py', 'checkpoint': 't.pth'},
                'methods': {**SMALLEST['methods'], 'teacher': {'label': 't', 'config': 't.py'}},
            },
            "methods: 'teacher' is the name of what is only evaluated",
        ),
        ({'judge_on': ['test']}, "judge_on: 'test' is none of the splits"),
        (
            {'methods': {**SMALLEST['methods'], 'kd': {**SMALLEST['methods']['kd'], 'space': {'a': [1]}}}},
            'methods.kd: give it a search or a space, not both',
        ),
        (
            {'methods': {'alone': {'label': 'a', 'config': 'a.py', 'space': {'loss.tau': [1, 2]}}}},
            'trials: tell how many settings are drawn from each space',
        ),
        (
            {
                'wall_clock_of': 'longer',
                'methods': {**SMALLEST['methods'], 'longer': {'label': 'a', 'config': 'a', 'iterations': 9}},
            },
            "wall_clock_of: 'longer' has iterations of its own",
        ),
        ({'equal': ['hours']}, "equal.0: Input should be 'iterations' or 'wall_clock'"),
    ],
)
def test_what_may_not_be_said(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **changes)


def test_every_method_gets_as_many_trials(tmp_path):
    methods = {**SMALLEST['methods'], 'cwd': {'label': 'c', 'config': 'b.py'}}
    with pytest.raises(ConfigError, match="needs as many trials as the others: {'kd': 1, 'cwd': 0}"):
        load(tmp_path, methods=methods)


def test_settings_drawn_from_a_space(tmp_path):
    space = {'loss.tau': [1, 2, 4], 'loss.loss_weight': [1, 3], 'loss.schedule': [None, {'warmup': 5}]}
    kd, cwd = ({'label': name, 'config': 'b.py', 'space': space} for name in ('kd', 'cwd'))
    methods = {'alone': SMALLEST['methods']['alone'], 'kd': kd, 'cwd': cwd}
    study = load(tmp_path, methods=methods, trials=7)
    first, *drawn = study.search_of('kd')
    assert first == {}
    assert len(drawn) == 6 and len({str(setting) for setting in drawn}) == 6
    for key, values in space.items():  # each value as often as the others
        assert [[setting[key] for setting in drawn].count(value) for value in values] == [
            6 / len(values)
        ] * len(values)
    again = load(tmp_path, methods=methods, trials=7)
    assert again.search_of('kd') == [first, *drawn] != again.search_of('cwd')
    whole = load(tmp_path, methods=methods, trials=50)
    assert len(whole.search_of('kd')) == 1 + 12  # all that there are
    assert load(tmp_path, methods=methods, trials=1).search_of('kd') == [{}]


def test_a_method_may_have_seeds_and_a_length_of_its_own(tmp_path):
    methods = {**SMALLEST['methods'], 'alone': {'label': 'a', 'config': 'a.py', 'seeds': [1, 2, 3]}}
    study = load(tmp_path, methods=methods)
    assert study.seeds_of('alone') == [1, 2, 3] and study.seeds_of('kd') == [1, 2]
    with pytest.raises(ConfigError, match='a seed that chose a setting'):
        load(tmp_path, methods=methods, search_seeds=[3])


def test_a_method_with_a_length_of_its_own_needs_no_search(tmp_path):
    longer = {'label': 'a', 'config': 'a.py', 'iterations': 9}
    study = load(tmp_path, methods={**SMALLEST['methods'], 'longer': longer})
    assert study.methods['longer'].iterations == 9


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match='nowhere.yaml. cannot be read: .*No such file'):
        load_study(tmp_path / 'nowhere.yaml')
    (tmp_path / 'broken.yaml').write_text('title: [')
    with pytest.raises(ConfigError, match='broken.yaml. cannot be read: while parsing'):
        load_study(tmp_path / 'broken.yaml')


def test_short_keys():
    assert expand_aliases({'loss.tau_forward': 2, 'lossy': 1}) == {
        'model.distill_losses.0.tau_forward': 2,
        'lossy': 1,
    }


def test_overrides_as_text():
    hook = {'type': 'EMAHook', 'start': 0, 'stop': 1}
    options = {'loss.tau_forward': 2, 'model.pretrained': None, 'custom_hooks': [hook]}
    expected = 'tau_forward 2, model.pretrained None, EMAHook(start=0, stop=1)'
    assert format_overrides(options) == expected
    assert format_overrides({}) == ''


def test_the_working_directory_comes_before_the_project(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    name = 'configs/_base_/default_runtime.py'
    assert find_file(name) == PROJECT / name
    assert find_file(name).samefile(ROOT / name)
    assert str(find_file('configs/mine.py')) == 'configs/mine.py'
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text('')
    assert str(find_file(name)) == name
