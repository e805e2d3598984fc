"""Train and evaluate one run of a study with the commands that users type."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict

import bdd_seg
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.runtime.upstream.last_checkpoint import latest_checkpoint
from bdd_seg.study.configs import Run, class_iou_evaluator
from bdd_seg.study.logs import read_log, read_scores, seconds_per_iteration
from bdd_seg.study.machine import describe_machine
from bdd_seg.study.processes import command_line, run_command
from bdd_seg.study.results import RunResult, Scores
from bdd_seg.study.settings import Options, Study, expand_aliases


def train_and_test(
    run: Run,
    folder: Path,
    study: Study,
    environment: dict[str, str],
    stop: Callable[[], bool],
    follow: Callable[[], None] | None = None,
    recordings: Path | None = None,
) -> RunResult:
    """Train and evaluate with the project's own commands, and return the result.

    An interrupted training goes on from its latest checkpoint, also where the folder has been moved. After a
    finished run its logs remain, and after a final one the student's weights in half precision, too.

    Args:
        run: The run.
        folder: Its folder.
        study: The study that it belongs to.
        environment: Environment variables, such as the GPU to use.
        stop: Returns True to stop. Called several times a second.
        follow: Called several times a second while the run trains.
        recordings: A folder for recordings of teachers, which other runs may use at the same time.

    Raises:
        ConfigError: A command failed. The message names the log.
        StoppedError: ``stop`` returned True.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = run.provenance(study).to_json()
    checkpoint = run.checkpoint
    run.training_config(recordings).dump(folder / 'config.py')
    if checkpoint is None:
        iterations, usage = run.cfg.train_cfg.max_iters, folder / 'usage.json'
        checkpoint, latest = folder / f'iter_{iterations}.pth', latest_checkpoint(folder)
        if latest != checkpoint and half_precision_path(folder).exists():
            checkpoint = half_precision_path(folder)
        elif latest != checkpoint:
            if latest is None:
                usage.unlink(missing_ok=True)
            line = command_line('train', folder / 'config.py', '--work-dir', folder, '--resume')
            run_command([*line, *study.train_flags], folder / 'train.log', environment, stop, follow, usage)
        facts |= {'iterations': iterations, **json.loads(usage.read_text()), **_logged(folder)}
    scores = {
        split: _evaluate(run, split, options, checkpoint, folder, environment, stop)
        for split, options in run.splits.items()
    }
    if run.checkpoint is None:
        _tidy(folder, checkpoint, keep=run.stage == 'final')
    finished = time.strftime('%Y-%m-%dT%H:%M:%S%z')
    here = describe_machine(torch.cuda.is_available())
    machine = str(here['gpu'] or here['cpu'])
    return RunResult(**facts, scores=scores, git_revision=_revision(), machine=machine, finished=finished)


def half_precision_path(folder: Path) -> Path:
    """Return the file in which a finished run leaves its student's weights in half precision."""
    return folder / 'student_float16.pth'


def _evaluate(
    run: Run,
    split: str,
    options: Options,
    checkpoint: Path,
    folder: Path,
    environment: dict[str, str],
    stop: Callable[[], bool],
) -> Scores:
    cfg = Config(ConfigDict(run.cfg.to_dict()))
    cfg.merge_from_dict(expand_aliases(options))
    cfg.test_evaluator = class_iou_evaluator(cfg)
    cfg.dump(folder / f'{split}.py')
    line = command_line('test', folder / f'{split}.py', checkpoint, '--work-dir', folder / split)
    run_command(line, folder / f'{split}.log', environment, stop)
    return read_scores(folder / split)


def _logged(folder: Path) -> dict[str, float]:
    facts = {'seconds_per_iteration': seconds_per_iteration(folder)}
    memory = [record['memory'] for record in read_log(folder) if 'memory' in record]  # of the GPU
    return {**facts, 'peak_memory_mb': max(memory)} if memory else facts


def _tidy(folder: Path, checkpoint: Path, keep: bool) -> None:
    """Remove the checkpoints, and keep the weights in half precision if asked to."""
    if keep and checkpoint != half_precision_path(folder):
        content = load_checkpoint(checkpoint)
        weights = {
            key: value.half() if value.is_floating_point() else value
            for key, value in content['state_dict'].items()
        }
        meta = {'dataset_meta': content['meta'].get('dataset_meta')}
        torch.save({'state_dict': weights, 'meta': meta}, half_precision_path(folder))
    for path in folder.glob('iter_*.pth'):
        path.unlink()
    if not keep:
        half_precision_path(folder).unlink(missing_ok=True)


def _revision() -> str:
    """Return the commit of this package's checkout, with ``-dirty`` where files differ from it.

    Without one, or without git, it is the package's version.
    """
    root = Path(bdd_seg.__file__).parents[1]
    if not (root / '.git').exists() or shutil.which('git') is None:
        return bdd_seg.__version__
    line = ['git', '-C', str(root), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
