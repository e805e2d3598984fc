"""Find the evaluations of a checkpoint in the work dir of its training."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.json_lines import read_json_lines
from bdd_seg.runtime.upstream.configs import leaf_datasets, load_config, type_name

UNKNOWN = 'unknown'

SCORES = ('mIoU', 'aAcc', 'mAcc', 'mDice', 'mFscore')
"""Keys of the scores that count, as mmseg's ``IoUMetric`` has them."""

_CLASS_PREFIX = 'IoU.'  # of the keys that ClassIoUMetric logs


class Evaluation(NamedTuple):
    """Scores of a checkpoint, in percent.

    Attributes:
        source: Where they come from.
        data: The images that were evaluated.
        scores: Name → score.
        classes: Class → IoU, None for one that does not occur; empty if they were not logged.
    """

    source: str
    data: str
    scores: dict[str, float]
    classes: dict[str, float | None]


def find_evaluations(checkpoint: Path, meta: Mapping[str, Any], cfg: Config) -> list[Evaluation]:
    """Return the evaluations of a checkpoint that its work dir holds.

    These are the validation at its iteration, the latest ``tools/test.py`` of this very file without
    test-time augmentation, and a study's ``result.json``. Where a later training has replaced a checkpoint,
    tests from before the replacement do not count, nor validations of sessions that began after it.

    Args:
        checkpoint: The checkpoint's file.
        meta: Its metadata.
        cfg: The config of the training.
    """
    folder = checkpoint.parent
    found = []
    validation = _validation(folder, _saved(checkpoint, meta), meta, cfg)
    if validation is not None:
        step, record = validation
        found.append(
            _evaluation(f'validation of the training, at {step}', split_name(cfg, 'val_dataloader'), record)
        )
    test = _test(checkpoint, _saved(checkpoint, meta))
    if test is not None:
        found.append(_evaluation('test of this checkpoint', *test))
    return [*found, *_study_scores(folder, meta)]


def split_name(cfg: Config, loader: str) -> str:
    """Return the data set and the part of it that a loader reads."""
    settings = cfg.get(loader)
    if settings is None:
        return UNKNOWN
    leaf, _ = next(leaf_datasets(settings['dataset'], loader))
    place = (leaf.get('data_prefix') or {}).get('img_path') or leaf.get('ann_file')
    return f'{type_name(leaf)}, {public_name(place)}' if place else type_name(leaf)


def public_name(path: Any) -> str:
    """Return a path or address without the folders of this machine."""
    text = str(path)
    return text if '::' in text or '://' in text or not Path(text).is_absolute() else Path(text).name


def _saved(checkpoint: Path, meta: Mapping[str, Any]) -> str:
    """Return the time at which a checkpoint was saved, written as the names of mmengine's sessions are."""
    noted = meta.get('time')
    return str(noted or time.strftime('%Y%m%d_%H%M%S', time.localtime(checkpoint.stat().st_mtime)))


def _validation(
    folder: Path, saved: str, meta: Mapping[str, Any], cfg: Config
) -> tuple[str, dict[str, Any]] | None:
    """Return the checkpoint's step in words, and the scores of the latest validation at that step."""
    by_epoch = (cfg.get('train_cfg') or {}).get('max_epochs') is not None
    step = meta.get('epoch' if by_epoch else 'iter')
    latest = None
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        if file.parent.parent.name > saved:
            continue
        for record in read_json_lines(file):
            if 'mIoU' in record and record.get('step') == step:
                latest = record
    return None if latest is None else (f'{"epoch" if by_epoch else "iteration"} {step}', latest)


def _test(checkpoint: Path, saved: str) -> tuple[str, dict[str, Any]] | None:
    """Return the images and the scores of the latest test of a checkpoint."""
    for session in sorted(checkpoint.parent.glob('*/vis_data/config.py'), reverse=True):
        folder = session.parent.parent
        records = [record for record in read_json_lines(folder / f'{folder.name}.json') if 'mIoU' in record]
        if folder.name < saved or not records:
            continue
        try:
            cfg = load_config(session)
        except ConfigError:
            continue
        augmented = 'module' in cfg.get('model', {})  # that of mmengine's BaseTTAModel
        if not augmented and _is_named(checkpoint, cfg.get('load_from')):
            return split_name(cfg, 'test_dataloader'), records[-1]
    return None


def _is_named(checkpoint: Path, load_from: Any) -> bool:
    """Return whether a test's ``load_from`` names a checkpoint. The work dir may have moved since."""
    tested = Path(str(load_from))
    if tested.is_absolute() and tested.exists():
        return tested.samefile(checkpoint)
    return tested.parts[-2:] == checkpoint.resolve().parts[-2:]


def _study_scores(folder: Path, meta: Mapping[str, Any]) -> Iterator[Evaluation]:
    try:
        result = json.loads((folder / 'result.json').read_text())
    except (OSError, ValueError):
        return
    if not isinstance(result, dict) or result.get('iterations') != meta.get('iter'):
        return
    for split, scores in (result.get('scores') or {}).items():
        classes = scores.get('classes') or {}
        record = {**scores, **{f'{_CLASS_PREFIX}{key}': value for key, value in classes.items()}}
        yield _evaluation('study', split, record)


def _evaluation(source: str, data: str, record: Mapping[str, Any]) -> Evaluation:
    scores = {key: float(record[key]) for key in SCORES if isinstance(record.get(key), int | float)}
    classes = {
        key.removeprefix(_CLASS_PREFIX): None if value is None or math.isnan(value) else float(value)
        for key, value in record.items()
        if key.startswith(_CLASS_PREFIX)
    }
    return Evaluation(source, data, scores, classes)
