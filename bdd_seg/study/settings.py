"""What a study file (YAML) may say. ``benchmarks/studies`` holds examples."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bdd_seg.errors import ConfigError

# Overrides of a config: dotted keys, where 'loss.' is short for the first distillation loss.
Options = dict[str, Any]
_LOSS = 'model.distill_losses.0.'

Equal = Literal['iterations', 'wall_clock']


class _Settings(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class Preparation(_Settings):
    """A command that comes first, such as the teacher's training; it is left out once its file exists.

    Attributes:
        run: A tool of this project with its arguments.
        creates: The file that is there when it is done.
    """

    run: str
    creates: Path


class Reference(_Settings):
    """A finished network that is evaluated beside the others: the teacher."""

    label: str
    config: Path
    checkpoint: Path


class Method(_Settings):
    """A way to train the student.

    Attributes:
        label: Its name in tables.
        config: The config file that trains it: a path, or ``mmseg::FOLDER/NAME.py``.
        options: Overrides of this method.
        search: Settings to choose from, overrides each. The best on ``select_on`` is taken.
    """

    label: str
    config: Path
    options: Options = {}
    search: list[Options] = []


class Study(_Settings):
    """A study: methods that train one student, each at its best setting, over several seeds.

    Attributes:
        title: What is compared on what, for the report.
        notes: What the results do not show, for the report.
        methods: Name → method.
        control: The method that the others are measured against, the student alone.
        compare: Methods that are also set against every other.
        teacher: Evaluated beside the students.
        seeds: Of the final runs.
        search_seeds: Of the search.
        select_on: The split on which settings are chosen.
        splits: Name → overrides under which ``tools/test.py`` evaluates that split.
        iterations: Of each final run; by default what the control's config says.
        search_iterations: Of each run of the search; by default the same.
        equal: What the methods get the same amount of. With ``wall_clock`` too, those of another speed are
            trained again, as long as ``wall_clock_of`` takes.
        wall_clock_of: The method that sets the wall-clock.
        options: Overrides of every run.
        distilled_options: Overrides of every run that has a teacher.
        train_flags: Further flags of ``tools/train.py``, such as ``--amp``.
        prepare: Commands that come first.
        may_differ: Dotted keys in which the configs of runs may differ although it concerns data, schedule,
            crop or the student.
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
    equal: Annotated[list[Equal], Field(min_length=1)] = ['iterations']
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
            raise ValueError("methods: 'teacher' is the name of what is only evaluated; name it otherwise")
        if self.select_on not in self.splits:
            raise ValueError(f'select_on: {self.select_on!r} is none of the splits {sorted(self.splits)}')
        if self.equal[0] != 'iterations':
            raise ValueError("equal: begins with 'iterations', from which the wall-clock is known")
        if 'wall_clock' in self.equal and self.wall_clock_of is None:
            raise ValueError("equal: 'wall_clock' needs wall_clock_of, the method whose time all get")
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
        ConfigError: It cannot be read, or says something it may not.
    """
    try:
        return Study.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f'study {str(path)!r} cannot be read: {error}') from error
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(map(str, first['loc']))
        message = first['msg'].removeprefix('Value error, ')
        raise ConfigError(f'study {str(path)!r}: {where}{": " if where else ""}{message}') from error


def full_keys(options: Options) -> Options:
    """Overrides with ``loss.`` spelt out."""
    return {
        _LOSS + key.removeprefix('loss.') if key.startswith('loss.') else key: value
        for key, value in options.items()
    }


def in_short(options: Options) -> str:
    """Settings for a table; hooks as they would be called."""
    words = []
    for key, value in options.items():
        if key == 'custom_hooks':
            words += [
                f'{hook["type"]}({", ".join(f"{k}={v}" for k, v in hook.items() if k != "type")})'
                for hook in value
            ]
        else:
            words.append(f'{key.removeprefix("loss.")} {value}')
    return ', '.join(words)
