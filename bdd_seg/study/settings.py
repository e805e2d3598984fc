"""The keys of a study file (YAML). ``benchmarks/studies`` holds examples."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bdd_seg.errors import ConfigError

PROJECT = Path(__file__).parents[1] / '.mim'
"""The folder that holds ``configs`` and ``tools``: links in a checkout, copies in an installation."""

Options = dict[str, Any]
"""Overrides of a config: dotted key → value, where ``loss.`` is short for the first distillation loss."""

Budget = Literal['iterations', 'wall_clock']
"""The amount of training that all methods of a comparison get. In files its key is ``equal``."""

_LOSS = 'model.distill_losses.0.'


class _Settings(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class Preparation(_Settings):
    """A command that runs before the study, such as the teacher's training, unless its file exists.

    Attributes:
        run: ``tools/NAME.py`` of this project, or a Python script, with its arguments.
        creates: The file that the command leaves.
    """

    run: str
    creates: Path


class Reference(_Settings):
    """A trained network that is only evaluated: the teacher."""

    label: str
    config: Path
    checkpoint: Path


class Method(_Settings):
    """A way to train the student.

    Attributes:
        label: Its name in tables.
        config: The config file that trains it: a path, or ``mmseg::FOLDER/NAME.py``. A path that does not
            exist in the working directory is looked up in this project.
        options: Overrides of this method.
        search: Settings to choose from, each a dict of overrides. The best on ``select_on`` is taken.
    """

    label: str
    config: Path
    options: Options = {}
    search: list[Options] = []


class Study(_Settings):
    """A study: methods that train one student, each at its best setting, over several seeds.

    Attributes:
        title: Title of the report.
        notes: Limits of the results, for the report.
        methods: Name → method.
        control: The method that the others are measured against, the student alone.
        compare: Methods that are also set against every other.
        teacher: Evaluated beside the students.
        seeds: Seeds of the final runs.
        search_seeds: Seeds of the search.
        select_on: The split on which settings are chosen.
        splits: Name → overrides under which ``tools/test.py`` evaluates that split.
        iterations: Length of each final run; by default that of the control's config.
        search_iterations: Length of each run of the search; by default that of the final runs.
        budgets: The key ``equal`` of the file: the budgets under which methods are compared. With
            ``wall_clock``, methods are trained again for about as long as ``wall_clock_of`` takes.
        wall_clock_of: The method that sets the wall-clock.
        options: Overrides of every run.
        distilled_options: Overrides of every run that has a teacher.
        train_flags: Further flags of ``tools/train.py``, such as ``--amp``.
        prepare: Commands to run before everything else.
        may_differ: Dotted keys of data, schedule, crop or student in which the configs of runs may differ
            all the same.
    """

    title: str
    notes: list[str] = []
    methods: dict[str, Method]
    control: str
    compare: list[str] = []
    teacher: Reference | None = None
    seeds: Annotated[list[int], Field(min_length=1)]
    search_seeds: list[int] = []
    select_on: str
    splits: dict[str, Options]
    iterations: Annotated[int, Field(gt=0)] | None = None
    search_iterations: Annotated[int, Field(gt=0)] | None = None
    budgets: list[Budget] = Field(default=['iterations'], alias='equal', min_length=1)
    wall_clock_of: str | None = None
    options: Options = {}
    distilled_options: Options = {}
    train_flags: list[str] = []
    prepare: list[Preparation] = []
    may_differ: list[str] = []

    @model_validator(mode='after')
    def _check(self) -> 'Study':
        named: dict[str, list[str | None]] = {
            'control': [self.control],
            'compare': [*self.compare],
            'wall_clock_of': [self.wall_clock_of],
        }
        for key, names in named.items():
            for name in names:
                if name is not None and name not in self.methods:
                    raise ValueError(f'{key}: {name!r} is none of the methods {sorted(self.methods)}')
        if self.teacher is not None and 'teacher' in self.methods:
            raise ValueError("methods: 'teacher' is the name of what is only evaluated; choose another name")
        if self.select_on not in self.splits:
            raise ValueError(f'select_on: {self.select_on!r} is none of the splits {sorted(self.splits)}')
        if self.budgets[0] != 'iterations':
            raise ValueError("equal: begins with 'iterations', whose runs measure the wall-clock")
        if 'wall_clock' in self.budgets and self.wall_clock_of is None:
            raise ValueError("equal: 'wall_clock' needs wall_clock_of, the method whose time all others get")
        trials = {name: len(method.search) for name, method in self.methods.items() if name != self.control}
        if len(set(trials.values())) > 1:
            raise ValueError(
                f'search: every method but the control needs as many trials as the others: {trials}'
            )
        if any(method.search for method in self.methods.values()) and not self.search_seeds:
            raise ValueError('search_seeds: a search needs at least one')
        if set(self.search_seeds) & set(self.seeds):
            raise ValueError(
                'search_seeds: a seed that chose a setting must not be among the seeds that judge it'
            )
        return self


def load_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: The file cannot be read, or a key or value in it is not valid.
    """
    try:
        return Study.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f'study {str(path)!r} cannot be read: {error}') from error
    except ValidationError as error:
        raise ConfigError(f'study {str(path)!r}: {first_problem(error)}') from error


def first_problem(error: ValidationError) -> str:
    """Return the first problem of a file that was validated, with its key."""
    first = error.errors()[0]
    place = '.'.join(map(str, first['loc']))
    reason = first.get('ctx', {}).get('error', first['msg'])  # an exception, where a check of ours raised it
    return f'{place}: {reason}' if place else str(reason)


def find_file(path: str | Path) -> Path:
    """Return the path of a file in the working directory, else in this project, else the path as given."""
    shipped = PROJECT / path
    return shipped if os.path.isfile(shipped) and not os.path.exists(path) else Path(path)


def expand_aliases(options: Options) -> Options:
    """Return overrides with ``loss.`` replaced by the full key."""
    return {
        _LOSS + key.removeprefix('loss.') if key.startswith('loss.') else key: value
        for key, value in options.items()
    }


def format_overrides(options: Options) -> str:
    """Return overrides as one short line, with hooks in the form of a call."""
    words = []
    for key, value in options.items():
        if key == 'custom_hooks':
            words += [_format_call(hook) for hook in value]
        else:
            words.append(f'{key.removeprefix("loss.")} {value}')
    return ', '.join(words)


def _format_call(settings: Options) -> str:
    arguments = ', '.join(f'{key}={value}' for key, value in settings.items() if key != 'type')
    return f'{settings["type"]}({arguments})'
