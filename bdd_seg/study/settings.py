"""The keys of a study file (YAML). ``benchmarks/studies`` holds examples."""

import math
import os
import random
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
        space: Values to choose from, by override, in place of ``search``. Tried are the config as it is and
            combinations of these values, drawn as a Latin hypercube, ``trials`` in all.
        seeds: Seeds of its final runs; by default those of the study.
        iterations: Length of its final runs, where that is what is compared; by default that of the study.
            Such a method needs no search.
    """

    label: str
    config: Path
    options: Options = {}
    search: list[Options] = []
    space: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    iterations: Annotated[int, Field(gt=0)] | None = None


class Study(_Settings):
    """A study: methods that train one student, each at its best setting, over several seeds.

    Attributes:
        title: Title of the report.
        notes: Limits of the results, for the report.
        command: The command line for the report; by default ``python tools/study.py FILE``.
        methods: Name → method.
        control: The method that the others are measured against, the student alone.
        compare: Methods that are also set against every other.
        teacher: Evaluated beside the students.
        seeds: Seeds of the final runs.
        search_seeds: Seeds of the search.
        trials: Number of settings to try of each method that has a ``space``.
        select_on: The split on which settings are chosen.
        splits: Name → overrides under which ``tools/test.py`` evaluates that split.
        judge_on: The splits on which final runs are evaluated; by default all.
        iterations: Length of each final run; by default that of the control's config.
        search_iterations: Length of each run of the search; by default that of the final runs.
        budgets: The key ``equal`` of the file: the budgets under which methods are compared. With
            ``wall_clock``, methods are trained again for about as long as ``wall_clock_of`` takes.
        wall_clock_of: The method that sets the wall-clock.
        record: Whether runs with one seed share a recording of their teacher, which is exact to float16. The
            pace of methods, with a live teacher, is then measured in short runs of their own.
        pace_iterations: Length of the runs that measure the pace.
        options: Overrides of every run.
        distilled_options: Overrides of every run that has a teacher.
        train_flags: Further flags of ``tools/train.py``, such as ``--amp``.
        prepare: Commands to run before everything else.
        may_differ: Dotted keys of data, schedule, crop or student in which the configs of runs may differ
            all the same.
    """

    title: str
    notes: list[str] = []
    command: str | None = None
    methods: dict[str, Method]
    control: str
    compare: list[str] = []
    teacher: Reference | None = None
    seeds: Annotated[list[int], Field(min_length=1)]
    search_seeds: list[int] = []
    trials: Annotated[int, Field(gt=0)] | None = None
    select_on: str
    splits: dict[str, Options]
    judge_on: list[str] = []
    iterations: Annotated[int, Field(gt=0)] | None = None
    search_iterations: Annotated[int, Field(gt=0)] | None = None
    budgets: list[Budget] = Field(default=['iterations'], alias='equal', min_length=1)
    wall_clock_of: str | None = None
    record: bool = True
    pace_iterations: Annotated[int, Field(gt=0)] = 40
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
        for split in self.judge_on:
            if split not in self.splits:
                raise ValueError(f'judge_on: {split!r} is none of the splits {sorted(self.splits)}')
        for name, method in self.methods.items():
            if method.search and method.space:
                raise ValueError(f'methods.{name}: give it a search or a space, not both')
            if method.space and self.trials is None:
                raise ValueError('trials: tell how many settings are drawn from each space')
        if self.budgets[0] != 'iterations':
            raise ValueError("equal: begins with 'iterations', whose runs measure the wall-clock")
        if 'wall_clock' in self.budgets and self.wall_clock_of is None:
            raise ValueError("equal: 'wall_clock' needs wall_clock_of, the method whose time all others get")
        if self.wall_clock_of is not None and self.wall_clock_of not in self.rivals:
            raise ValueError(f'wall_clock_of: {self.wall_clock_of!r} has iterations of its own')
        trials = {name: len(self.search_of(name)) for name in self.rivals if name != self.control}
        if len(set(trials.values())) > 1:
            raise ValueError(
                f'search: every method but the control needs as many trials as the others: {trials}'
            )
        if any(trials.values()) and not self.search_seeds:
            raise ValueError('search_seeds: a search needs at least one')
        if set(self.search_seeds) & {seed for name in self.methods for seed in self.seeds_of(name)}:
            raise ValueError(
                'search_seeds: a seed that chose a setting must not be among the seeds that judge it'
            )
        return self

    def search_of(self, name: str) -> list[Options]:
        """Return the settings that the search tries for a method, the same ones in every call."""
        method = self.methods[name]
        if not method.space or self.trials is None:
            return method.search
        return [{}, *_latin_hypercube(method.space, self.trials - 1, random.Random(name))]

    def seeds_of(self, name: str) -> list[int]:
        """Return the seeds of a method's final runs."""
        return self.methods[name].seeds or self.seeds

    @property
    def rivals(self) -> list[str]:
        """The methods that are compared with each other: those without a length of their own."""
        return [name for name, method in self.methods.items() if method.iterations is None]

    @property
    def final_splits(self) -> dict[str, Options]:
        """The splits on which final runs are evaluated, with their overrides."""
        return {split: self.splits[split] for split in self.judge_on or self.splits}


def _latin_hypercube(space: dict[str, list[Any]], count: int, rng: random.Random) -> list[Options]:
    """Return different combinations of values, in which the values of each key come about equally often.

    Args:
        space: Key → values.
        count: Number of combinations. There are fewer if the space has fewer.
        rng: Decides which.
    """
    found: list[Options] = []
    count = min(count, math.prod(map(len, space.values())))
    while len(found) < count:
        columns = []
        for values in space.values():
            rounds = range(-(-count // len(values)))
            column = [value for _ in rounds for value in rng.sample(values, len(values))]
            columns.append(rng.sample(column[:count], count))
        for row in zip(*columns, strict=True):
            setting = dict(zip(space, row, strict=True))
            if setting not in found and len(found) < count:
                found.append(setting)
    return found


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
