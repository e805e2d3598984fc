"""The whole job on generated street scenes: a teacher, a student alone, the same student distilled.

Everything that is trained or evaluated here runs through tools/train.py and tools/test.py, as a user would
run it. What an earlier call finished is reused, and an interrupted training goes on where it stopped.
"""

import argparse
import hashlib
import logging
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS
from prettytable import PrettyTable

from bdd_seg.cli.errors import one_line_errors
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.study.logs import read_scores, seconds_per_iteration

TOOLS = Path(__file__).parent
CONFIGS = TOOLS.parent / 'configs'
SCENES = ['--train', 600, '--val', 100]
SIZE = (128, 256)
TEACHER = CONFIGS / 'pspnet/pspnet_r50-d8-w16_1xb8-demo_street-scenes-96x192.py'
STUDENT = CONFIGS / 'pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
DISTILLED = CONFIGS / 'bdd/bdd_pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'


@dataclass
class Run:
    """One row of the table."""

    name: str
    config: Path
    work_dir: Path
    options: dict[str, object]

    @property
    def cfg(self) -> Config:
        return load_config(self.config)

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / f'iter_{self.cfg.train_cfg.max_iters}.pth'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--data', default='data/street_scenes', help='folder of the generated scenes')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for logs and checkpoints')
    parser.add_argument('--seed', type=int, default=0, help='seed of the three trainings')
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    start = time.monotonic()
    say('Street scenes (generated, in the layout of Cityscapes)')
    command(TOOLS / 'make_street_scenes.py', '--out', args.data, *SCENES, '--size', *SIZE)
    folder = Path(args.work_dir)
    teacher = Run('teacher PSPNet-R50', TEACHER, folder / 'teacher', {})
    student = Run('student PSPNet-R18, alone', STUDENT, folder / 'student', {})
    distilled = Run(
        'student PSPNet-R18, distilled',
        DISTILLED,
        folder / 'distilled',
        {'model.teacher.checkpoint': teacher.checkpoint},
    )
    rows = []
    for run in (teacher, student, distilled):
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            run.options[f'{loader}.dataset.data_root'] = args.data
        run.options['randomness.seed'] = args.seed
        say(f'{run.name}: train')
        train(run)
        say(f'{run.name}: test')
        rows.append((run, test(run)))
    print_table(rows, args.seed, time.monotonic() - start)


def train(run: Run) -> None:
    """Train, unless this very run is finished already."""
    options = [f'{key}={value}' for key, value in run.options.items()]
    settings = hashlib.sha256((run.cfg.pretty_text + str(options)).encode()).hexdigest()
    stamp = run.work_dir / 'settings.sha256'
    if stamp.exists() and stamp.read_text() != settings:
        raise ConfigError(
            f'{run.work_dir} holds a run with other settings; delete it or choose another --work-dir'
        )
    if run.checkpoint.exists():
        print(f'reusing {run.checkpoint}')
        return
    run.work_dir.mkdir(parents=True, exist_ok=True)
    stamp.write_text(settings)
    command(
        TOOLS / 'train.py', run.config, '--work-dir', run.work_dir, '--resume', '--cfg-options', *options,
        log=run.work_dir / 'train.log',
    )  # fmt: skip


def test(run: Run) -> float:
    """mIoU in percent on the validation scenes, by tools/test.py; that of an earlier call is reused."""
    work_dir = run.work_dir / 'test'
    finished = work_dir.glob('*/*.json')
    if any(path.stat().st_mtime > run.checkpoint.stat().st_mtime for path in finished):
        print(f'reusing {work_dir}')
        return read_scores(work_dir)['mIoU']
    options = [f'{key}={value}' for key, value in run.options.items()]
    command(
        TOOLS / 'test.py', run.config, run.checkpoint, '--work-dir', work_dir, '--cfg-options', *options,
        log=run.work_dir / 'test.log',
    )  # fmt: skip
    return read_scores(work_dir)['mIoU']


def complexity(run: Run) -> tuple[float, float]:
    """Parameters in millions and GFLOPs (multiply-adds) of one scene, of what is left after training."""
    logging.disable(logging.WARNING)  # the analysis tells of each operator that costs nothing
    with DefaultScope.overwrite_default_scope('mmseg'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = revert_sync_batchnorm(MODELS.build(run.cfg.model)).eval()
    info = get_model_complexity_info(model, (3, *SIZE), show_table=False, show_arch=False)
    logging.disable(logging.NOTSET)
    return info['params'] / 1e6, info['flops'] / 1e9


def print_table(rows: list[tuple[Run, float]], seed: int, seconds: float) -> None:
    table = PrettyTable(['model', 'parameters (M)', 'GFLOPs', 'mIoU (%)', 'seconds per iteration'])
    table.align = 'r'
    table.align['model'] = 'l'
    for run, miou in rows:
        parameters, flops = complexity(run)
        numbers = (
            f'{parameters:.2f}',
            f'{flops:.2f}',
            f'{miou:.2f}',
            f'{seconds_per_iteration(run.work_dir):.3f}',
        )
        table.add_row([run.name, *numbers])
    gain = rows[2][1] - rows[1][1]
    print(f'\n{table}')
    print(f'synthetic scenes {SIZE[0]}x{SIZE[1]}, seed {seed}; distilled against alone: '
          f'{gain:+.2f} mIoU; {seconds / 60:.1f} minutes')  # fmt: skip


def command(tool: Path, *arguments: object, log: Path | None = None) -> None:
    """Run one of the tools; with a log only the lines that tell progress are shown, the rest goes there.

    Raises:
        ConfigError: The tool failed.
    """
    line = [sys.executable, str(tool), *map(str, arguments)]
    if subprocess.run(line).returncode if log is None else show_progress(line, log):
        raise ConfigError(f'tools/{tool.name} failed{f"; see {log}" if log else ""}')


def show_progress(line: list[str], log: Path) -> int:
    with log.open('w') as file, subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for text in process.stdout:
            file.write(text)
            if 'Iter(' in text or text.startswith('error: '):
                print(text.rpartition(' - INFO - ')[2].rstrip(), flush=True)
        return process.wait()


def say(text: str) -> None:
    print(f'\n== {text}', flush=True)


if __name__ == '__main__':
    main()
