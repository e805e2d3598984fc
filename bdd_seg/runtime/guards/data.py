"""Reject unusable images and labels at load time, naming the file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmcv.transforms import (
    Compose,
    KeyMapper,
    LoadAnnotations,
    LoadImageFromFile,
    RandomApply,
    RandomChoice,
    TestTimeAug,
)
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmseg.datasets.transforms import RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.registry import DATASETS, METRICS, TRANSFORMS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards import checked_transforms  # noqa: F401  registers what this module writes
from bdd_seg.runtime.guards.heads import heads_of
from bdd_seg.runtime.guards.settings import argument, class_of
from bdd_seg.runtime.upstream.configs import leaf_datasets, type_name, walk

LOADERS = {'train': ('train_dataloader', 'val_dataloader'), 'test': ('test_dataloader',)}

_WRAPPERS = ('CheckedLoading', 'CheckedCrop')

# Transforms that hold others of the same registry: mmcv's, and this package's.
_NESTING = (Compose, KeyMapper, RandomApply, RandomChoice, TestTimeAug)
_FOLLOWERS = ('FixedViews', 'FollowGeometry', 'ReadTeacherCache')


def check_data(cfg: Config, mode: str) -> None:
    """Write checks of each image and label map into the data pipelines of a config.

    A label beyond the classes would end a training on a GPU with a device assert that names no file, and
    mmseg's ``IoUMetric`` leaves it out without a warning. mmseg also cuts label maps of 16 bits to 8. The
    checks run in the data loader's processes. Labels are left alone where the loss or the metric may read
    something else from them: for heads with a ``loss_by_feat`` of their own, and metrics other than
    ``IoUMetric``.

    Calling it again replaces the checks, so that a config dumped by an earlier run may be given. With
    ``check_data = False`` in the config they are taken out. ``tools/train.py`` and ``tools/test.py`` call
    this function; mmseg's own tools do not, and check nothing.

    Args:
        cfg: The whole config, changed in place. Nothing else that changes its pipelines may come later.
        mode: ``'train'``, for the training and validation data, or ``'test'``.

    Raises:
        ConfigError: The training data set has more classes than a head of the model. Later, while images are
            loaded, and with the file's name: one cannot be read; a label is beyond the classes; a label map
            has several channels, or values that 8 bits cannot hold, or is loaded twice, or is of another
            size than its image where training crops both, where the data pipeline ends, or where mmseg
            evaluates.
    """
    wanted = cfg.get('check_data', True)
    for key in LOADERS[mode]:
        if cfg.get(key) is None:
            continue
        dataset = cfg[key].dataset
        labels = _label_check(cfg, key, dataset) if wanted else None
        for settings in _with_pipelines(dataset):
            pipeline = settings['pipeline']
            if wanted:
                # MultiImageMixDataset leaves out transforms by the type that its settings name.
                left_out = set(settings.get('skip_type_keys') or ())
                steps = [
                    step if isinstance(step, Mapping) and type_name(step) in left_out else _with_checks(step)
                    for step in without_checks(pipeline)
                ]
                settings['pipeline'] = [*steps, *([] if labels is None else [labels])]
            else:
                settings['pipeline'] = without_checks(pipeline)


def _with_pipelines(dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of a data set and of those that it wraps, where they have a pipeline.

    A data set's class may have one by default.
    """
    leaves = [settings for settings, _ in leaf_datasets(dataset, '') if 'pipeline' in settings]
    wrappers = [
        settings
        for _, settings in walk(dataset, '')
        if isinstance(settings, dict) and 'pipeline' in settings and class_of(settings, DATASETS) is not None
    ]
    return [*{id(settings): settings for settings in (*leaves, *wrappers)}.values()]


def name_files(pipeline: Sequence[Any]) -> list[Any]:
    """Return the settings of a data pipeline that names the file where one cannot be read.

    Args:
        pipeline: Settings of transforms. They are left as they are.
    """
    return list(_with_checks(without_checks(pipeline)))


def without_checks(value: Any) -> Any:
    """Return a data pipeline, or a part of one, without what :func:`check_data` wrote into it."""
    if isinstance(value, list | tuple):
        kept = [
            item for item in value if not (isinstance(item, Mapping) and type_name(item) == 'CheckLabels')
        ]
        return type(value)(map(without_checks, kept))
    if not isinstance(value, Mapping):
        return value
    if type_name(value) in _WRAPPERS:
        return without_checks(value['transform'])
    return {key: without_checks(item) for key, item in value.items()}


def _with_checks(value: Any) -> Any:
    """Return a data pipeline, or a part of one, whose transforms that load and crop are checked."""
    if isinstance(value, list | tuple):
        return type(value)(map(_with_checks, value))
    if not isinstance(value, Mapping):
        return value
    kind = class_of(value, TRANSFORMS) or object
    # Wrapped where they stand: in TestTimeAug and RandomChoice another step would be another alternative.
    if issubclass(kind, LoadImageFromFile | LoadAnnotations):
        return {'type': 'CheckedLoading', 'transform': value}
    if issubclass(kind, RandomCrop):
        return {'type': 'CheckedCrop', 'transform': value}
    # Other classes may build what they hold from another library, which has a RandomCrop, too.
    if issubclass(kind, _NESTING) or type_name(value) in _FOLLOWERS:
        return {key: _with_checks(item) for key, item in value.items()}
    return value


def _label_check(cfg: Config, key: str, dataset: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return settings of the ``CheckLabels`` for a data loader, or None if its labels may mean anything."""
    if key == 'train_dataloader':
        return _training_labels(cfg, dataset)
    classes = class_names(dataset)
    ignored = set()
    for metric in _metrics(cfg.get(key.replace('dataloader', 'evaluator'))):
        kind = class_of(metric, METRICS)
        if kind is None or not issubclass(kind, IoUMetric):
            return None
        ignored.add(argument(metric, kind, 'ignore_index'))
    if classes is None or len(ignored) != 1:
        return None
    return _check_labels(max(len(classes), 2), ignored.pop(), match_inputs=False)


def _training_labels(cfg: Config, dataset: Mapping[str, Any]) -> dict[str, Any] | None:
    heads = [head for head in heads_of(cfg.model) if head.learns_classes and head.num_classes is not None]
    if not heads:
        return None
    # A distiller compares its student's classes with the teacher's, which says more, when it is built.
    names = None if cfg.model.get('teacher') else class_names(dataset)
    classes = None if names is None else len(names)
    numbers = [max(head.num_classes or 0, 2) for head in heads]  # one class has a background, too
    for head, number in zip(heads, numbers, strict=True):
        if classes is not None and classes > number:
            raise ConfigError(
                f'{head.key}.num_classes is {head.num_classes}, but the data set of train_dataloader has '
                f'{classes} classes. Set {head.key}.num_classes={classes}, and so for the other heads'
            )
    return _check_labels(min(numbers), heads[0].ignore_index, match_inputs=True)


def _check_labels(num_classes: int, ignore_index: int | None, match_inputs: bool) -> dict[str, Any]:
    return {
        'type': 'CheckLabels',
        'num_classes': num_classes,
        'ignore_index': ignore_index,
        'match_inputs': match_inputs,
    }


def _metrics(evaluator: Any) -> Iterator[Any]:
    """Yield the metrics that an evaluator's settings name, in any of the forms that mmengine takes."""
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    if isinstance(evaluator, list | tuple):
        yield from evaluator
    elif evaluator is not None:
        yield evaluator


def build_lazily(settings: Mapping[str, Any]) -> BaseDataset | None:
    """Build a data set without reading it; return None if its class does not take ``lazy_init``."""
    try:
        return DATASETS.build({**settings, 'lazy_init': True, 'pipeline': []})
    except TypeError:
        return None


def class_names(dataset: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names of a data set, of the first one if it wraps several; None if nothing tells.

    Args:
        dataset: Its settings.
    """
    classes = dataset_meta(dataset).get('classes')
    return None if classes is None else tuple(classes)


def dataset_meta(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the meta information of a data set, of the first one if it wraps several, as far as it is told.

    Args:
        dataset: Its settings.

    Returns:
        ``classes`` and ``palette`` among others.
    """
    settings, _ = next(leaf_datasets(dict(dataset), ''))
    kind = class_of(settings, DATASETS)
    if kind is None:
        return {}
    if issubclass(kind, BaseDataset):  # its classes may depend on any of its settings
        built = build_lazily(settings)
        return {} if built is None else dict(built.metainfo)
    return dict(getattr(kind, 'METAINFO', {}))
