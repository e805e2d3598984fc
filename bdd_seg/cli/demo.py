"""The whole job on generated street scenes: a teacher, a student alone, the same student distilled.

Runs the study bdd_seg/study/demo.yaml, prints one table, and writes a page that shows what was gained. Safe
to interrupt: the same command goes on where it stopped, and reuses what is finished.
"""

import argparse
import json
import math
import os
import shlex
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from mmengine.registry import DefaultScope
from prettytable import PrettyTable

import bdd_seg.study
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.scenes import draw
from bdd_seg.deploy.load import build_plain, inference_config
from bdd_seg.errors import ConfigError
from bdd_seg.report import cost
from bdd_seg.report.collect import Options, collect
from bdd_seg.report.page import check_packages, write_page
from bdd_seg.runtime.guards.work_dir import hold_work_dir
from bdd_seg.runtime.upstream.atomic_files import write_json
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.runtime.upstream.console import quiet_libraries
from bdd_seg.runtime.upstream.last_checkpoint import latest_checkpoint
from bdd_seg.study.configs import reference_runs
from bdd_seg.study.logs import seconds_per_iteration
from bdd_seg.study.progress import ProgressLine, Step, seconds_left
from bdd_seg.study.session import Session, say
from bdd_seg.study.settings import Preparation, Reference, Study, find_file, load_study
from bdd_seg.teachers.segmentors import run as run_segmentor

STUDY = Path(bdd_seg.study.__file__).with_name('demo.yaml')
SCENES = (600, 100)  # of the train and the val split
SIZE = (128, 256)
# On two cores: seconds of an iteration, and of the start and the evaluation of a training.
SECONDS_PER_ITERATION = {'teacher': 0.41, 'alone': 0.21, 'distilled': 0.31}
OVERHEAD_SECONDS = 20


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--data', type=Path, default='data/street_scenes', help='folder of the generated scenes'
    )
    parser.add_argument(
        '--work-dir', type=Path, default='work_dirs/demo', help='folder for logs and checkpoints'
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the three trainings')
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    with hold_work_dir(args.work_dir):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Draw the scenes, run the study, and print the table.

    Raises:
        ConfigError: A command failed, or a folder holds something else.
    """
    start = time.monotonic()
    study = load_study(STUDY)
    if study.teacher is None:
        raise ConfigError(f'study {str(STUDY)!r} names no teacher')
    checkpoint = args.work_dir / 'teacher' / study.teacher.checkpoint.name
    study = place(study, study.teacher, args.data, checkpoint, args.seed)
    session = DemoSession(study, args.work_dir, f'python tools/demo.py --seed {args.seed}')
    say(f'[demo] step 1 of {1 + len(session.steps)}: street scenes (generated, in the layout of Cityscapes)')
    draw(args.data, SCENES, SIZE, seed=0, workers=os.cpu_count() or 1)
    claim_teacher(study, checkpoint, args.seed)
    session.run()
    print_table(session, checkpoint, args.seed, time.monotonic() - start)
    write_report(args.work_dir, session.command)


class DemoSession(Session):
    """The demo's study. Lines of progress have the time left of the whole demo.

    Attributes:
        steps: The trainings in their order: the teacher, the student alone and distilled.
    """

    def __init__(self, study: Study, folder: Path, command: str) -> None:
        super().__init__(study, folder, command, jobs=1)
        (teacher,) = reference_runs(study)
        assert teacher.checkpoint is not None
        trainings = [('teacher', teacher.checkpoint.parent, teacher)]
        for run in self.final_runs():
            trainings.append((study.methods[run.method].label, folder / run.name, run))
        self.steps = [
            Step(
                label,
                work_dir,
                run.cfg.train_cfg.max_iters,
                SECONDS_PER_ITERATION[run.method],
                OVERHEAD_SECONDS,
            )
            for label, work_dir, run in trainings
        ]

    def progress_line(self, name: str, work_dir: Path, seconds: float = 10) -> ProgressLine:
        """Return what tells the progress of the training in a work dir, and of all."""
        for number, step in enumerate(self.steps, 2):
            if step.work_dir == work_dir:
                name = f'[demo] step {number} of {1 + len(self.steps)}: {step.label}'
                return ProgressLine(name, work_dir, say, seconds, partial(seconds_left, self.steps))
        return super().progress_line(name, work_dir, seconds)


def place(study: Study, teacher: Reference, data: Path, checkpoint: Path, seed: int) -> Study:
    """Return the study with the scenes, the teacher and the seed that the flags give.

    The preparation is the training of the teacher alone: the scenes are drawn before.
    """
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    roots = {f'{loader}.dataset.data_root': str(data) for loader in loaders}
    flags = [f'{key}={value}' for key, value in {**roots, 'randomness.seed': seed}.items()]
    # Of a flag that is given twice the later one counts.
    training = shlex.split(study.prepare[-1].run)
    training += ['--work-dir', str(checkpoint.parent), '--cfg-options', *flags]
    changes = {
        'seeds': [seed],
        'options': {**study.options, **roots},
        'distilled_options': {**study.distilled_options, 'model.teacher.checkpoint': str(checkpoint)},
        'teacher': teacher.model_copy(update={'checkpoint': checkpoint}),
        'prepare': [Preparation(run=shlex.join(training), creates=checkpoint)],
    }
    return study.model_copy(update=changes)


def claim_teacher(study: Study, checkpoint: Path, seed: int) -> None:
    """Check that the teacher's folder holds no training with other settings, and note those of this one.

    Raises:
        ConfigError: It holds one.
    """
    note = checkpoint.parent / 'demo_settings.json'
    settings = {'config_sha256': reference_runs(study)[0].sha256, 'seed': seed}
    latest = latest_checkpoint(checkpoint.parent)
    if note.exists():
        same = json.loads(note.read_text()) == settings
    else:  # nothing yet, or the training by a study's preparation
        same = latest is None or load_checkpoint(latest)['meta'].get('seed') == seed
    if not same:
        raise ConfigError(
            f'{checkpoint.parent} holds a run with other settings; delete it or choose another --work-dir'
        )
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, settings)


def print_table(session: Session, checkpoint: Path, seed: int, seconds: float) -> None:
    """Print a row for the teacher and each student, and the gain."""
    results = session.results()
    finished = {**results.references(), **results.finished('iterations')}
    table = PrettyTable(['model', 'parameters (M)', 'GFLOPs', 'mIoU (%)', 'seconds per iteration'])
    table.align = 'r'
    table.align['model'] = 'l'
    mious = {}
    for method, runs in finished.items():
        (run,) = runs.values()
        mious[method] = run.scores['val'].miou
        parameters, flops = complexity(find_file(results.methods[method].config))
        pace = run.seconds_per_iteration or seconds_per_iteration(checkpoint.parent)
        numbers = f'{parameters:.2f}', f'{flops:.2f}', f'{mious[method]:.2f}', f'{pace:.3f}'
        table.add_row([results.label(method), *numbers])
    gain = mious['distilled'] - mious['alone']
    print(f'\n{table}')
    print(
        f'synthetic scenes {SIZE[0]}x{SIZE[1]}, seed {seed}; distilled against alone: {gain:+.2f} mIoU; '
        f'{seconds / 60:.1f} minutes'
    )


def write_report(folder: Path, command: str) -> None:
    """Write the report page of the demo, unless the packages that it takes are not installed."""
    quiet_libraries()
    page = folder / 'report.html'
    try:
        check_packages()
        with DefaultScope.overwrite_default_scope('mmseg'):
            write_page(collect([folder], Options(command=command)), page)
    except ConfigError as error:
        print(f'no report page: {error}')
    else:
        print(f'{page}: open it in a browser to see where distillation helped')


def complexity(config: Path) -> tuple[float, float]:
    """Return the parameters in millions and the GFLOPs (multiply-adds) for one scene, those of inference."""
    with warnings.catch_warnings():  # of the losses, which do not run
        warnings.simplefilter('ignore')
        model = build_plain(inference_config(load_config(config))).eval()
    flops, _ = cost.operations(model, run_segmentor, torch.zeros(1, 3, *SIZE))
    return cost.parameters(model) / 1e6, (flops or math.nan) / 1e9


if __name__ == '__main__':
    main()
