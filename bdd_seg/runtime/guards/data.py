"""Reject unusable images and labels at load time, naming the file."""

import inspect
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
from mmengine.registry import Registry
from mmseg.datasets.transforms import RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS, METRICS, MODELS, TRANSFORMS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards import checked_transforms  # noqa: F401  registers what this module writes
from bdd_seg.runtime.upstream.configs import leaf_datasets, type_name

LOADERS = {'train': ('train_dataloader', 'val_dataloader'), 'test': ('test_dataloader',)}

_WRAPPERS = ('CheckedLoading', 'CheckedCrop')

# Transforms that hold others of the same registry: mmcv's, and this package's.
_NESTING = (Compose, KeyMapper, RandomApply, RandomChoice, TestTimeAug)
_FOLLOWERS = ('FollowGeometry', 'ReadTeacherCache')


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
            has several channels, or values that 8 bits cannot hold, or is of another size than its image
            where training crops both, where the data pipeline ends, or where mmseg evaluates.
    """
    wanted = cfg.get('check_data', True)
    for key in LOADERS[mode]:
        if cfg.get(key) is None:
            continue
        dataset = cfg[key].dataset
        labels = _label_check(cfg, key, dataset) if wanted else None
        for settings, _ in leaf_datasets(dataset, f'{key}.dataset'):
            if 'pipeline' not in settings:  # its class may have one by default
                continue
            pipeline = settings['pipeline']
            if wanted:
                settings['pipeline'] = [*name_files(pipeline), *([] if labels is None else [labels])]
            else:
                settings['pipeline'] = without_checks(pipeline)


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
    kind = _class_of(value, TRANSFORMS) or object
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
    classes = _number_of_classes(dataset)
    ignored = set()
    for metric in _metrics(cfg.get(key.replace('dataloader', 'evaluator'))):
        kind = _class_of(metric, METRICS)
        if kind is None or not issubclass(kind, IoUMetric):
            return None
        ignored.add(_argument(metric, kind, 'ignore_index'))
    if classes is None or len(ignored) != 1:
        return None
    return _check_labels(max(classes, 2), ignored.pop(), match_inputs=False)


def _training_labels(cfg: Config, dataset: Mapping[str, Any]) -> dict[str, Any] | None:
    heads = list(_heads(cfg.model))
    if not heads:
        return None
    # A distiller compares its student's classes with the teacher's, which says more, when it is built.
    classes = None if cfg.model.get('teacher') else _number_of_classes(dataset)
    for where, num_classes, _ in heads:
        if classes is not None and classes > max(num_classes, 2):
            raise ConfigError(
                f'{where}.num_classes is {num_classes}, but the data set of train_dataloader has '
                f'{classes} classes. Set {where}.num_classes={classes}, and so for the other heads'
            )
    # One class has a background, too.
    number = max(min(num_classes for _, num_classes, _ in heads), 2)
    return _check_labels(number, heads[0][2], match_inputs=True)


def _check_labels(num_classes: int, ignore_index: int | None, match_inputs: bool) -> dict[str, Any]:
    return {
        'type': 'CheckLabels',
        'num_classes': num_classes,
        'ignore_index': ignore_index,
        'match_inputs': match_inputs,
    }


def _heads(model: Mapping[str, Any]) -> Iterator[tuple[str, int, int | None]]:
    """Yield the key, ``num_classes`` and ``ignore_index`` of the model's heads that learn the labels.

    Heads with a loss function of their own may learn something else from them, such as edges or depth.
    """
    for key in ('decode_head', 'auxiliary_head'):
        part: Any = model.get(key)
        heads: dict[str, Any] = (
            {f'model.{key}.{i}': head for i, head in enumerate(part)}
            if isinstance(part, list | tuple)
            else {f'model.{key}': part}
        )
        for where, head in heads.items():
            kind = _class_of(head, MODELS)
            if kind is None or not issubclass(kind, BaseDecodeHead):
                continue
            num_classes = _argument(head, kind, 'num_classes')
            if kind.loss_by_feat is BaseDecodeHead.loss_by_feat and isinstance(num_classes, int):
                yield where, num_classes, _argument(head, kind, 'ignore_index')


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


def _number_of_classes(dataset: Mapping[str, Any]) -> int | None:
    """Return the number of classes of a data set, of the first one if it wraps several."""
    settings, _ = next(leaf_datasets(dict(dataset), ''))
    kind = _class_of(settings, DATASETS)
    if kind is None:
        return None
    if issubclass(kind, BaseDataset):  # its classes may depend on any of its settings
        built = build_lazily(settings)
        classes = None if built is None else built.metainfo.get('classes')
    else:
        classes = getattr(kind, 'METAINFO', {}).get('classes')
    return None if classes is None else len(classes)


def _class_of(settings: Any, registry: Registry) -> type[Any] | None:
    """Return the class that settings are for, or None if there is none of that name."""
    kind = settings.get('type') if isinstance(settings, Mapping) else None
    if isinstance(kind, str):
        kind = registry.get(kind)
    return kind if inspect.isclass(kind) else None


def _argument(settings: Mapping[str, Any], kind: type[Any], name: str) -> Any:
    """Return a setting, or its default in the class or the first base that has one, or None."""
    if name in settings:
        return settings[name]
    for base in kind.__mro__:
        init = vars(base).get('__init__')
        parameter = None if init is None else inspect.signature(init).parameters.get(name)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return None
