"""Run a study: trainings and evaluations by tools/train.py and tools/test.py, then tables and plots of them.

A study file names methods, their settings to choose from, seeds, and what is measured; benchmarks/studies
holds examples, bdd_seg/study/settings.py explains every key. Safe to interrupt: the same command goes on
where it stopped, or does what a changed file asks for in addition.
"""

import argparse
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from statistics import mean, median
from typing import Any

import torch

from bdd_seg.cli.errors import one_line_errors
from bdd_seg.runtime.upstream.atomic_files import write_json
from bdd_seg.study.machine import describe_machine
from bdd_seg.study.report import write_report
from bdd_seg.study.runs import (
    Run,
    StoppedError,
    check_comparable,
    is_prepared,
    iterations_of,
    make_run,
    prepare,
    reference_runs,
    train_and_test,
)
from bdd_seg.study.settings import Options, Study, load_study


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=Path, help='study file (YAML)')
    parser.add_argument(
        '--work-dir', type=Path, help='folder of runs and results (default: work_dirs/studies/NAME)'
    )
    parser.add_argument(
        '--jobs', type=int, help='runs at once (default: one a GPU; without a GPU, one a CPU core)'
    )
    parser.add_argument(
        '--time-limit', type=float, metavar='MINUTES', help='stop then; the same command goes on from there'
    )
    parser.add_argument('--list', action='store_true', help='say what there is to do, and do nothing')
    parser.add_argument(
        '--report', action='store_true', help='write tables and plots of what is finished, only'
    )
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: no run is to be left behind
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    study = load_study(args.study)
    check_comparable(study)
    session = Session(study, args)
    if args.list:
        session.list_runs()
    elif args.report:
        session.report()
    else:
        session.run()


class Session:
    """One call of this tool: which runs are missing, on which device each goes, and until when.

    Args:
        study: The study.
        args: The command line.
    """

    def __init__(self, study: Study, args: argparse.Namespace) -> None:
        self.study = study
        self.command = f'python tools/study.py {args.study}'
        self.folder: Path = args.work_dir or Path('work_dirs/studies') / args.study.stem
        gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
        self.jobs: int = args.jobs or gpus or cores
        self.threads = max(1, cores // self.jobs)  # of each run
        self.devices: SimpleQueue[dict[str, str]] = SimpleQueue()
        visible = os.environ.get('CUDA_VISIBLE_DEVICES', ','.join(map(str, range(gpus)))).split(',')
        for job in range(self.jobs):
            gpu = {'CUDA_VISIBLE_DEVICES': visible[job % gpus]} if gpus else {}
            self.devices.put({'OMP_NUM_THREADS': str(self.threads), **gpu})
        self.deadline = time.monotonic() + 60 * args.time_limit if args.time_limit else float('inf')
        self.interrupted = threading.Event()
        self.made: dict[str, Run] = {}
        self.measured = False  # something, by this call

    def run(self) -> None:
        """Everything that is missing, in the order in which one thing needs another."""
        try:
            prepare(self.study, self.folder, self.must_stop, say)
            self.do('teacher', reference_runs(self.study))
            self.do('search', self.search_runs())
            self.do('final runs', self.final_runs())
            self.do('equal wall-clock', self.wall_clock_runs())
        except StoppedError:
            say('stopped; the same command goes on from here')
        finally:
            self.report()

    def list_runs(self) -> None:
        """What :meth:`run` does, as far as it is known before the search is over."""
        for step in self.study.prepare:
            print(f'{"done " if is_prepared(step) else "to do"}  {step.run}')
        for run in [*reference_runs(self.study), *self.search_runs(), *self.final_runs()]:
            print(f'{"to do" if self.stored(run) is None else "done "}  {run}')

    def search_runs(self) -> list[Run]:
        """Every setting of every method: with the first seed all, then with the second."""
        return [
            self.make(name, 'search', seed, setting)
            for seed in self.study.search_seeds
            for name, method in self.study.methods.items()
            for setting in method.search
        ]

    def final_runs(self) -> list[Run]:
        """Every method with its chosen setting, seed by seed."""
        chosen = {name: self.chosen(name) for name in self.study.methods}
        return [
            self.make(name, 'final', seed, setting)
            for seed in self.study.seeds
            for name, setting in chosen.items()
        ]

    def wall_clock_runs(self) -> list[Run]:
        """As long as one method's runs take, in steps of 10%, so that timing noise starts nothing anew."""
        study = self.study
        if 'wall_clock' not in study.equal:
            return []
        iterations = iterations_of(study)
        pace: dict[str, list[float]] = {name: [] for name in study.methods}
        for run in self.final_runs():
            facts = self.stored(run)
            if facts is not None:
                pace[run.method].append(facts['seconds_per_iteration'])
        if not all(pace.values()):
            return []
        wall_clock = median(pace[study.wall_clock_of or study.control])
        chosen = {name: self.chosen(name) for name in study.methods}
        tenths = {name: max(1, round(10 * wall_clock / median(pace[name]))) for name in study.methods}
        return [
            self.make(name, 'final', seed, setting, 'wall_clock', round(iterations * tenths[name] / 10))
            for seed in study.seeds
            for name, setting in chosen.items()
        ]

    def make(self, *about: Any) -> Run:
        """:func:`make_run`, once: reading and digesting a config takes half a second."""
        key = json.dumps(about)
        if key not in self.made:
            self.made[key] = make_run(self.study, *about)
        return self.made[key]

    def chosen(self, name: str) -> Options:
        """The setting of a method that did best in the search, as far as that is finished."""
        scores: dict[int, list[float]] = {}
        for number, setting in enumerate(self.study.methods[name].search):
            for seed in self.study.search_seeds:
                facts = self.stored(self.make(name, 'search', seed, setting))
                if facts is not None:
                    scores.setdefault(number, []).append(facts['scores'][self.study.select_on]['mIoU'])
        if not scores:
            return {}
        return self.study.methods[name].search[max(scores, key=lambda number: mean(scores[number]))]

    def stored(self, run: Run) -> dict[str, Any] | None:
        """What came out of a run, None if it is not finished or was measured on something else."""
        file = self.folder / run.name / 'result.json'
        if not file.exists():
            return None
        facts = json.loads(file.read_text())
        same = run.circumstances(self.study)
        # Evaluated on more splits is fine; a teacher that is not here any more cannot be compared.
        splits = facts.get('splits', {})
        same['splits'] = {**splits, **same['splits']}
        known = {key: value for key, value in same.items() if value is not None}
        complete = run.splits.keys() <= facts['scores'].keys()
        return (
            facts
            if complete and all(facts.get(key, value) == value for key, value in known.items())
            else None
        )

    def do(self, what: str, runs: list[Run]) -> None:
        """Do what is missing of these runs, several at once."""
        missing = list({run.name: run for run in runs if self.stored(run) is None}.values())
        if not missing:
            return
        say(f'{what}: {len(missing)} of {len(runs)} runs to do, {min(self.jobs, len(missing))} at once')
        durations: list[float] = []
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self.one, run): run for run in missing}
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    (facts, seconds), run = future.result(), futures[future]
                    durations.append(seconds)
                    left = mean(durations) * (len(missing) - done) / self.jobs
                    scores = ', '.join(
                        f'{split} {score["mIoU"]:.2f}' for split, score in facts['scores'].items()
                    )
                    print(
                        f'[{done}/{len(missing)}] {run}: {scores} mIoU; {left / 60:.0f} min left', flush=True
                    )
            except BaseException:
                self.interrupted.set()
                pool.shutdown(cancel_futures=True)
                raise

    def one(self, run: Run) -> tuple[dict[str, Any], float]:
        """What came out of a run, and how many seconds it took."""
        device, start = self.devices.get(), time.monotonic()
        try:
            facts = train_and_test(run, self.folder / run.name, self.study, device, self.must_stop)
        finally:
            self.devices.put(device)
        write_json(self.folder / run.name / 'result.json', facts)
        self.measured = True
        return facts, time.monotonic() - start

    def machine(self) -> dict[str, Any]:
        """What was measured on: with --report, maybe not this machine."""
        file = self.folder / 'machine.json'
        if file.exists() and not self.measured:
            return json.loads(file.read_text())
        here = describe_machine(torch.cuda.is_available())
        here |= {'threads': self.threads, 'jobs': self.jobs}
        if self.measured:
            write_json(file, here)
        return here

    def must_stop(self) -> bool:
        return self.interrupted.is_set() or time.monotonic() > self.deadline

    def report(self) -> None:
        """Write results.json, and the tables and plots made from it."""
        study = self.study
        runs = [*reference_runs(study), *self.search_runs(), *self.final_runs(), *self.wall_clock_runs()]
        finished = [run.described(facts) for run in runs if (facts := self.stored(run)) is not None]
        methods: dict[str, dict[str, Any]] = {
            name: {
                'label': method.label,
                'config': str(method.config),
                'loss': method.options,
                'setting': self.chosen(name),
                'trials': len(method.search),
            }
            for name, method in study.methods.items()
        }
        if study.teacher is not None:
            teacher = {'label': study.teacher.label, 'config': str(study.teacher.config)}
            methods['teacher'] = {**teacher, 'loss': {}, 'setting': {}, 'trials': 0}
        self.folder.mkdir(parents=True, exist_ok=True)
        results = {
            'title': study.title,
            'command': self.command,
            'control': study.control,
            'select_on': study.select_on,
            'splits': list(study.splits),
            'compare': study.compare,
            'wall_clock_of': study.wall_clock_of,
            'methods': methods,
            'runs': finished,
            'environment': self.machine(),
            'notes': study.notes,
        }
        write_json(self.folder / 'results.json', results)
        write_report(results, self.folder)
        say(f'{len(finished)} of {len(runs)} runs finished: {self.folder / "report.md"}')


def say(text: str) -> None:
    print(f'== {text}', flush=True)


if __name__ == '__main__':
    main()
