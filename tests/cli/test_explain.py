import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from bdd_seg.cli.explain import naming_the_cause
from bdd_seg.errors import ConfigError

THINGS = Registry('thing')


@THINGS.register_module()
class Thing:
    def __init__(self, size: int, part: dict | None = None, **others) -> None:
        if size < 0:
            raise ValueError(f'size must not be negative,\ngot {size}')
        self.size = size + 1
        self.part = THINGS.build({**part, 'scale': 2}) if part else None


@THINGS.register_module()
class SmallThing(Thing):
    def __init__(self, scale: float = 1, **arguments) -> None:
        super().__init__(**arguments)


def explain(cfg: dict, settings: dict) -> str:
    """What is said of building a thing that a config's ``model`` holds."""
    with pytest.raises(ConfigError) as caught, naming_the_cause(Config(cfg)):
        THINGS.build(ConfigDict(settings))
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_what_is_built_is_named_by_its_place_in_the_config():
    part = {'type': 'SmallThing', 'size': -1}
    thing = {'type': 'Thing', 'size': 3, 'part': part}
    expected = 'SmallThing): size must not be negative, got -1'
    assert explain({'model': thing}, part) == f'model.part ({expected}'
    # The class adds to the settings of its part: the only one of that type.
    assert explain({'model': thing}, thing) == f'model.part ({expected}'
    # Of two there is no telling, unless one has these very settings.
    both = {'model': {'first': {'type': 'SmallThing', 'size': 3}, 'second': thing}}
    assert explain(both, thing) == f'model.second (Thing): {expected}'.replace('SmallThing)', 'SmallThing')
    assert explain(both, part) == f'model.second.part ({expected}'
    # What only helps to write a config is not where it stands.
    assert explain({'part': part, 'custom_hooks': [1, part]}, part) == f'custom_hooks.1 ({expected}'


@pytest.mark.parametrize(
    'settings, expected',
    [
        ({'size': 3}, 'model has no type'),
        (
            {'type': 'Thnig'},
            "model (Thnig): no thing is called 'Thnig'. Did you mean Thing? If it is your own, name its "
            'module in custom_imports',
        ),
        ({'type': 'Other'}, "model (Other): no thing is called 'Other'. If it is your own, name"),
        ({'type': 'Thing'}, "model (Thing) lacks 'size'"),
        ({'type': 'SmallThing', 'size': -1}, 'model (SmallThing): size must not be negative, got -1'),
    ],
)  # fmt: skip
def test_usual_complaints_need_no_traceback(capsys, settings, expected):
    assert explain({'model': settings}, settings).startswith(expected)
    assert 'Traceback' not in capsys.readouterr().err


@THINGS.register_module()
class Exact:
    def __init__(self, size: int) -> None:
        size.nothing_like_it()


def test_similar_arguments_are_those_of_the_class_and_its_bases(capsys):
    settings = {'type': 'Exact', 'sise': 3}
    expected = "model (Exact): unexpected keyword argument 'sise' of Exact. Did you mean size?"
    assert explain({'model': settings}, settings) == expected
    assert 'Traceback' not in capsys.readouterr().err


def test_what_may_be_a_bug_keeps_its_traceback(capsys):
    settings = {'type': 'Exact', 'size': 3}
    said = explain({'model': settings}, settings)
    assert said == "model (Exact): AttributeError: 'int' object has no attribute 'nothing_like_it'"
    assert 'size.nothing_like_it()' in capsys.readouterr().err


@THINGS.register_module()
class Careless:
    def __init__(self, size: str) -> None:
        size = refused(int(size))


def refused(size: int) -> int:
    raise ValueError('of no use')


@pytest.mark.parametrize(
    'size, reason, line',
    [
        ('x', "ValueError: invalid literal.*'x'", 'refused(int(size))'),
        ('3', 'ValueError: of no use', 'raise'),
    ],
)
def test_what_a_class_did_not_refuse_itself_may_be_a_bug(capsys, size, reason, line):
    settings = {'type': 'Careless', 'size': size}
    assert re.match(rf'model \(Careless\): {reason}', explain({'model': settings}, settings))
    assert line in capsys.readouterr().err


def test_settings_may_hold_arrays():
    first, second = ({'type': 'Thing', 'size': -1, 'mean': np.zeros(3)} for _ in range(2))
    with (
        pytest.raises(ConfigError, match=r'^Thing: size must not'),
        naming_the_cause({'model': [first, second]}),
    ):
        THINGS.build({**first, 'mean': np.zeros(3)})
    with (
        pytest.raises(ConfigError, match=r'^model.1 \(Thing\)'),
        naming_the_cause({'model': [first, second]}),
    ):
        THINGS.build(second)


def test_the_module_that_ran_is_named(capsys):
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(5, 2)))
    with pytest.raises(ConfigError, match=r'^model.1.0: RuntimeError: mat1 and'), naming_the_cause({}):
        model(torch.zeros(1, 3))
    assert 'Traceback' in capsys.readouterr().err
    with (
        pytest.raises(ConfigError, match='^teacher: Linear: RuntimeError'),
        naming_the_cause({}, 'teacher: '),
    ):
        model[1][0](torch.zeros(1, 3))


def test_batch_norm_of_one_value_has_a_hint(capsys):
    model = nn.Sequential(nn.BatchNorm2d(3))
    expected = r'^model.0: Expected more than 1 value .*\. Raise train_dataloader.batch_size'
    with pytest.raises(ConfigError, match=expected), naming_the_cause({}):
        model(torch.zeros(1, 3, 1, 1))
    assert 'Traceback' not in capsys.readouterr().err


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {}[i]


def test_of_a_data_loaders_process_the_last_line_is_said(capsys):
    with pytest.raises(ConfigError, match='^KeyError: KeyError: 0$'), naming_the_cause({}):
        next(iter(DataLoader(Numbers(), num_workers=1)))
    assert 'return {}[i]' in capsys.readouterr().err


class Clumsy(Hook):
    def before_run(self, runner):
        len(3)


def test_hooks_are_named_and_their_tracebacks_shown(capsys):
    """mmengine replaces a hook's ``TypeError`` by another, without where it came from."""
    runner = object.__new__(Runner)
    runner._hooks = [Clumsy()]
    expected = r"^Clumsy: TypeError: object of type 'int' has no len\(\)$"
    with pytest.raises(ConfigError, match=expected), naming_the_cause({}):
        runner.call_hook('before_run')
    assert 'len(3)' in capsys.readouterr().err


@pytest.mark.parametrize('error', [ConfigError('a'), pickle.UnpicklingError('b'), KeyboardInterrupt()])
def test_others_pass(error):
    with pytest.raises(type(error)) as caught, naming_the_cause({}):
        raise error
    assert caught.value is error
