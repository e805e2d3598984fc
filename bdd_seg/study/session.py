"""One call of a study: run the missing runs on the available devices, until it is done or time is up."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import Any

import torch

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_json
from bdd_seg.study.configs import Run, iterations_of, make_run, reference_runs
from bdd_seg.study.machine import describe_machine
from bdd_seg.study.processes import StoppedError, is_prepared, prepare
from bdd_seg.study.progress import ProgressLine
from bdd_seg.study.report import write_report
from bdd_seg.study.results import MethodRecord, Results, RunResult
from bdd_seg.study.runs import train_and_test
from bdd_seg.study.settings import Options, Study


class Session:
    """One call of a study.

    Args:
        study: The study.
        folder: The folder of runs and results.
        command: The command line that makes the results, for the report.
        jobs: Runs at once; by default one for each GPU, without a GPU one for each CPU core.
        time_limit: Minutes after which to stop, by default never.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        command: str,
        jobs: int | None = None,
        time_limit: float | None = None,
    ) -> None:
        self.study = study
        self.folder = folder
        self.command = command
        gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
        self.jobs = jobs or gpus or cores
        self.threads = max(1, cores // self.jobs)  # of each run
        self.devices: SimpleQueue[dict[str, str]] = SimpleQueue()
        visible = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(gpus)))).split(',')
        for job in range(self.jobs):
            gpu = {'CUDA_VISIBLE_DEVICES': visible[job % gpus]} if gpus else {}
            self.devices.put({'OMP_NUM_THREADS': str(self.threads), **gpu})
        self.deadline = time.monotonic() + 60 * time_limit if time_limit else float('inf')
        self.interrupted = threading.Event()
        self.made: dict[str, Run] = {}
        self.measured = False  # True once this call has finished a run
        self.failed: dict[str, ConfigError] = {}  # runs of this call, by what is printed of them

    def run(self) -> None:
        """Run everything that is missing, in the order of dependence, and write the report.

        If a run fails, such as one whose loss becomes infinite, the others go on, unless all that a step
        started at first failed.

        Raises:
            ConfigError: A command failed.
        """
        try:
            prepare(self.study, self.folder, self.must_stop, say, self.progress_line)
            self.run_all('teacher', reference_runs(self.study))
            self.run_all('search', self.search_runs())
            self._forget_recordings(self.study.search_seeds)
            self.run_all('pace', self.pace_runs())
            self.run_all('final runs', self.final_runs())
            self.run_all('equal wall-clock', self.wall_clock_runs())
            self._forget_recordings(seed for name in self.study.methods for seed in self.study.seeds_of(name))
        except StoppedError:
            say('== stopped; the same command goes on from here')
        finally:
            self.report()
        if self.failed:
            raise ConfigError(
                f'{len(self.failed)} of the runs failed: {", ".join(self.failed)}. The report lacks them. '
                f'Run the same command to try them again. The first one: {next(iter(self.failed.values()))}'
            )

    @cached_property
    def recordings(self) -> Path | None:
        """The folder in which runs share recordings of their teachers, by seed; None where no two could."""
        study = self.study
        shares = [
            max(1, len(study.search_of(name)))
            for name in study.methods
            if self.make(name, 'final', study.seeds[0], {}).has_recordable_teacher
        ]
        return self.folder / 'recordings' if study.record and sum(shares) > 1 else None

    def _forget_recordings(self, seeds: Iterable[int]) -> None:
        """Remove the recordings of seeds of which no run is left that would replay them."""
        if self.recordings is not None:
            for seed in {*seeds}:
                shutil.rmtree(self.recordings / f'seed{seed}', ignore_errors=True)

    def list_runs(self) -> None:
        """Print the steps of :meth:`run`, as far as they are known before the search is over."""
        for step in self.study.prepare:
            print(f'{"done " if is_prepared(step) else "to do"}  {step.run}')
        for run in [*reference_runs(self.study), *self.search_runs(), *self.final_runs()]:
            print(f'{"to do" if self.stored(run) is None else "done "}  {run}')

    def search_runs(self) -> list[Run]:
        """Return a run for every setting of every method: all with the first seed, then with the second."""
        return [
            self.make(name, 'search', seed, setting)
            for seed in self.study.search_seeds
            for name in self.study.methods
            for setting in self.study.search_of(name)
        ]

    def final_runs(self) -> list[Run]:
        """Return a run for every method with its chosen setting, seed by seed."""
        return [
            self.make(name, 'final', seed, setting, 'iterations', self.study.methods[name].iterations)
            for seed, name, setting in self._by_seed()
        ]

    def pace_runs(self) -> list[Run]:
        """Return the short runs that measure the pace of each method with a live teacher."""
        if self.recordings is None:
            return []
        return [
            self.make(name, 'pace', self.study.seeds[0], self.chosen(name)) for name in self.study.methods
        ]

    def _by_seed(self) -> list[tuple[int, str, Options]]:
        """Return seed, method and chosen setting of each final run: all with one seed, then the next."""
        chosen = {name: self.chosen(name) for name in self.study.methods}
        seeds = dict.fromkeys(seed for name in chosen for seed in self.study.seeds_of(name))
        return [
            (seed, name, setting)
            for seed in seeds
            for name, setting in chosen.items()
            if seed in self.study.seeds_of(name)
        ]

    def wall_clock_runs(self) -> list[Run]:
        """Return the runs under equal wall-clock, none before all methods have finished final runs.

        Lengths are tenths of the length of a final run, so that noise in the timing makes no new runs.
        """
        study = self.study
        if 'wall_clock' not in study.budgets or study.wall_clock_of is None:
            return []
        iterations = iterations_of(study)
        pace: dict[str, list[float]] = {name: [] for name in study.rivals}
        for run in self.pace_runs() or self.final_runs():
            result = self.stored(run) if run.method in pace else None
            if result is not None and result.seconds_per_iteration is not None:
                pace[run.method].append(result.seconds_per_iteration)
        if not all(pace.values()):
            return []
        wall_clock = median(pace[study.wall_clock_of])
        tenths = {name: max(1, round(10 * wall_clock / median(seconds))) for name, seconds in pace.items()}
        return [
            self.make(name, 'final', seed, setting, 'wall_clock', round(iterations * tenths[name] / 10))
            for seed, name, setting in self._by_seed()
            if name in tenths
        ]

    def make(self, *arguments: Any) -> Run:
        """Return the run that ``make_run`` makes, which takes half a second, from a cache."""
        key = json.dumps(arguments)
        if key not in self.made:
            self.made[key] = make_run(self.study, *arguments)
        return self.made[key]

    def chosen(self, name: str) -> Options:
        """Return the setting of a method that did best in the search, as far as that is finished."""
        scores: dict[int, list[float]] = {}
        settings = self.study.search_of(name)
        for number, setting in enumerate(settings):
            for seed in self.study.search_seeds:
                result = self.stored(self.make(name, 'search', seed, setting))
                if result is not None:
                    scores.setdefault(number, []).append(result.scores[self.study.select_on].miou)
        if not scores:
            return {}
        return settings[max(scores, key=lambda number: mean(scores[number]))]

    def stored(self, run: Run) -> RunResult | None:
        """Return the result of a run, None if it is not finished or had other inputs."""
        file = self.folder / run.name / 'result.json'
        if not file.exists():
            return None
        result = RunResult.model_validate_json(file.read_text())
        complete = run.splits.keys() <= result.scores.keys()
        return result if complete and run.provenance(self.study).agrees_with(result) else None

    def take_over(self, earlier: Results) -> None:
        """Store results of this study from elsewhere, but for the pace, which another machine cannot tell.

        Runs of another teacher than the one that is here are not taken, and run again.

        Raises:
            ConfigError: No run has the config of one of theirs.
        """
        known = {(found.config_sha256, found.stage): found for found in earlier.runs}
        taken: set[str] = set()
        others: set[str] = set()  # with another teacher
        while True:  # what the search chose decides which final runs there are
            before = len(taken)
            for run in self.planned_runs():
                found = known.get((run.sha256, run.stage))
                if found is None or run.stage in ('reference', 'pace') or run.name in taken | others:
                    continue
                splits = {split: found.splits.get(split) for split in run.splits}
                if found.train_flags != self.study.train_flags or splits != run.splits:
                    continue
                result = RunResult.model_validate(found.to_json())
                if not run.provenance(self.study).agrees_with(result):
                    others.add(run.name)
                    continue
                taken.add(run.name)
                if self.stored(run) is None:
                    (self.folder / run.name).mkdir(parents=True, exist_ok=True)
                    write_json(self.folder / run.name / 'result.json', result.to_json())
            if len(taken) == before:
                break
        if not taken | others:
            raise ConfigError(
                '--continue-from: none of its runs has the config of a run of this study. The study, a '
                'config or the versions of the libraries have changed since'
            )
        again = f'; {len(others)} had another teacher or start than the one here' if others else ''
        say(f'== {len(taken)} of {len(earlier.runs)} runs taken from elsewhere{again}')

    def run_all(self, name: str, runs: list[Run]) -> None:
        """Run the missing ones of these runs, several at once.

        Args:
            name: A name for the runs, to be printed.
            runs: The runs.

        Raises:
            ConfigError: All runs that were started at first failed.
            StoppedError: Time was up.
        """
        missing = list({run.name: run for run in runs if self.stored(run) is None}.values())
        if not missing:
            return
        jobs = min(self.jobs, len(missing))
        say(f'== {name}: {len(missing)} of {len(runs)} runs to do, {jobs} at once')
        durations: list[float] = []
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                futures = {pool.submit(self.run_one, run, 10 * jobs): run for run in missing}
                for done, future in enumerate(as_completed(futures), 1):
                    run = futures[future]
                    try:
                        result, seconds = future.result()
                    except ConfigError as error:
                        if len(missing) == len(runs) and done >= jobs and not durations:
                            raise
                        self.failed[str(run)] = error
                        say(f'[{done}/{len(missing)}] {run}: {error}')
                        continue
                    durations.append(seconds)
                    left = mean(durations) * (len(missing) - done) / self.jobs
                    scores = [f'{split} {found.miou:.2f} mIoU' for split, found in result.scores.items()]
                    told = ', '.join(scores) or f'{result.seconds_per_iteration:.3f} s an iteration'
                    say(f'[{done}/{len(missing)}] {run}: {told}; {left / 60:.0f} min left')
            except BaseException:
                self.interrupted.set()
                pool.shutdown(cancel_futures=True)
                raise

    def run_one(self, run: Run, progress_seconds: float) -> tuple[RunResult, float]:
        """Run a run.

        Args:
            run: The run.
            progress_seconds: Time between lines that tell its progress.

        Returns:
            Its result, and the seconds that this took.
        """
        device, start = self.devices.get(), time.monotonic()
        folder = self.folder / run.name
        try:
            follow = self.progress_line(str(run), folder, progress_seconds)
            result = train_and_test(
                run,
                folder,
                self.study,
                device,
                self.must_stop,
                follow,
                self.recordings,
            )
        finally:
            self.devices.put(device)
        write_json(folder / 'result.json', result.to_json())
        self.measured = True
        return result, time.monotonic() - start

    def progress_line(self, name: str, work_dir: Path, seconds: float = 10) -> ProgressLine:
        """Return what tells the progress of a training, every so many seconds."""
        return ProgressLine(name, work_dir, say, seconds)

    def machine(self) -> dict[str, Any]:
        """Return the description of the machine that measured, which may not be this one."""
        file = self.folder / 'machine.json'
        if file.exists() and not self.measured:
            return json.loads(file.read_text())
        here = describe_machine(torch.cuda.is_available())
        here |= {'threads': self.threads, 'jobs': self.jobs}
        if self.measured:
            write_json(file, here)
        return here

    def must_stop(self) -> bool:
        """Return True once the study ends: all first runs failed, Ctrl-C was pressed, or time is up."""
        return self.interrupted.is_set() or time.monotonic() > self.deadline

    def planned_runs(self) -> list[Run]:
        """Return all runs of the study, as far as they are known."""
        planned = [*reference_runs(self.study), *self.search_runs(), *self.final_runs()]
        return [*planned, *self.pace_runs(), *self.wall_clock_runs()]

    def results(self) -> Results:
        """Return the results of all finished runs."""
        study = self.study
        return Results(
            title=study.title,
            command=self.command,
            control=study.control,
            select_on=study.select_on,
            splits=list(study.final_splits),
            compare=study.compare,
            wall_clock_of=study.wall_clock_of,
            methods=self._methods(),
            runs=[run.to_record(result) for run in self.planned_runs() if (result := self.stored(run))],
            environment=self.machine(),
            notes=study.notes,
        )

    def _methods(self) -> dict[str, MethodRecord]:
        methods = {
            name: MethodRecord(
                label=method.label,
                config=str(method.config),
                loss=method.options,
                setting=self.chosen(name),
                trials=len(self.study.search_of(name)),
                iterations=method.iterations,
            )
            for name, method in self.study.methods.items()
        }
        teacher = self.study.teacher
        if teacher is not None:
            methods['teacher'] = MethodRecord(
                label=teacher.label,
                config=str(teacher.config),
                loss={},
                setting={},
                trials=0,
                iterations=None,
            )
        return methods

    def report(self) -> Results:
        """Write ``results.json`` and the report made from it, and return the results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        results = self.results()
        write_json(self.folder / 'results.json', results.to_json())
        write_report(results, self.folder)
        counts = f'{len(results.runs)} of {len(self.planned_runs())} runs finished'
        say(f'== {counts}: {self.folder / "report.md"}')
        return results


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)
