"""What the tools left in their work dirs."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any


def read_scores(work_dir: Path) -> dict[str, Any]:
    """mIoU, aAcc and mAcc in percent and the classes' IoU, of the latest run of tools/test.py."""
    file = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    result = json.loads(file.read_text().splitlines()[-1])
    classes = {key.removeprefix('IoU.'): value for key, value in result.items() if key.startswith('IoU.')}
    classes = {name: None if math.isnan(value) else value for name, value in classes.items()}
    return {**{key: result[key] for key in ('mIoU', 'aAcc', 'mAcc')}, 'classes': classes}


def read_log(work_dir: Path) -> Iterator[dict[str, Any]]:
    """What tools/train.py logged, over all its sessions."""
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.open():
            record = json.loads(line)
            if 'loss' in record:
                yield record


def seconds_per_iteration(work_dir: Path) -> float:
    """The median over the log intervals of a training, all its sessions taken together."""
    return median(record['time'] for record in read_log(work_dir))
