"""Read the logged scalars and scores in the work dirs of ``tools/train.py`` and ``tools/test.py``."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mmengine.config import Config

from bdd_seg.runtime.json_lines import read_json_lines
from bdd_seg.study.results import Scores


class Progress(NamedTuple):
    """The progress of a training.

    Attributes:
        done: Iterations done, as far as they are logged.
        total: All iterations.
        seconds_left: Time left at the pace of the latest log intervals.
    """

    done: int
    total: int
    seconds_left: float


def read_scores(work_dir: Path) -> Scores:
    """Read the result of the latest evaluation with ``ClassIoUMetric`` in a work dir, in percent."""
    file = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    result = json.loads(file.read_text().splitlines()[-1])
    classes = {key.removeprefix('IoU.'): value for key, value in result.items() if key.startswith('IoU.')}
    classes = {name: None if math.isnan(value) else value for name, value in classes.items()}
    return Scores.model_validate({**result, 'classes': classes})


def read_scalars(work_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield all that a training logged as scalars, validations included, over all its sessions."""
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        yield from read_json_lines(path)


def read_log(work_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the scalars that each log interval of a training left, over all its sessions."""
    return (record for record in read_scalars(work_dir) if 'loss' in record)


def seconds_per_iteration(work_dir: Path) -> float:
    """Return the median over the log intervals of a training, all its sessions taken together."""
    return median(record['time'] for record in read_log(work_dir))


def read_progress(work_dir: Path) -> Progress | None:
    """Read the progress of a training from what its latest session logged.

    The number of all iterations is that of the config which mmengine keeps beside the scalars.

    Returns:
        The progress, None if the session has logged nothing yet or does not count iterations.
    """
    session = max(work_dir.glob('*/vis_data'), default=None)
    if session is None or not all((session / name).exists() for name in ('scalars.json', 'config.py')):
        return None
    cfg = Config.fromfile(session / 'config.py', import_custom_modules=False)
    total, latest = cfg.get('train_cfg', {}).get('max_iters'), list(read_log(work_dir))[-10:]
    if total is None or not latest:
        return None
    left = total - latest[-1]['step']
    return Progress(total - left, total, left * median(record['time'] for record in latest))
