"""Check a whole config before anything is built."""

import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.fileio import exists, list_dir_or_file
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, Runner
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATA_SAMPLERS, DATASETS, LOOPS, TRANSFORMS

from bdd_seg.cli.parts import check_parts
from bdd_seg.errors import ConfigError, similar_to
from bdd_seg.runtime.guards.data import build_lazily
from bdd_seg.runtime.guards.heads import check_heads
from bdd_seg.runtime.guards.settings import class_of
from bdd_seg.runtime.upstream.configs import leaf_datasets, walk

# The keys that mmengine's Runner and the tools read: arguments of the Runner, and what is looked up by name.
KNOWN_KEYS = {
    *inspect.signature(Runner).parameters,
    *inspect.signature(FlexibleRunner).parameters,
    *('activation_checkpointing', 'check_data', 'compile', 'custom_imports', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'resource_limit', 'runner_type', 'sync_bn'),
    *('tta_model', 'tta_pipeline'),
}

_MODES = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}

# The parts of a config that training and testing build, and those that both do.
_PARTS = {
    'train': (
        *('model', 'train_dataloader', 'val_dataloader', 'train_cfg', 'val_cfg', 'val_evaluator'),
        *('optim_wrapper', 'param_scheduler', 'runner_type'),
    ),
    'test': ('model', 'test_dataloader', 'test_cfg', 'test_evaluator', 'tta_model', 'tta_pipeline'),
}
_ALWAYS = ('default_hooks', 'custom_hooks', 'visualizer', 'log_processor', 'model_wrapper_cfg')

_IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'}


def check_config(cfg: Config, mode: str) -> None:
    """Check before anything is built that a config has all that is needed, and nothing that is misspelt.

    A key that resembles one which is there, too, may be the user's own. It causes a warning.

    Args:
        cfg: The whole config.
        mode: ``'train'`` or ``'test'``. It decides which parts of the config are needed and checked.

    Raises:
        ConfigError: A key is missing, misspelt, of another kind, or a number out of its range; or a type, or
            an argument of one, does not exist; or parts contradict each other: an epoch that never ends, or
            heads whose losses or padded labels cannot work. The message begins with the key.
    """
    _check_unknown_keys(cfg)
    _check_needed_keys(cfg, mode)
    for key in (
        'model',
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'optim_wrapper',
        'train_cfg',
    ):
        _check_dict(cfg.get(key), key)
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(key) is not None:
            if 'dataset' not in cfg[key]:
                raise ConfigError(f'{key} has no dataset')
            _check_dict(cfg[key].dataset, f'{key}.dataset')
    _check_dict((cfg.get('optim_wrapper') or {}).get('optimizer'), 'optim_wrapper.optimizer')
    _check_lengths(cfg.get('train_cfg') or {})
    check_parts(cfg, [*_PARTS[mode], *_ALWAYS], train=mode == 'train')
    if mode == 'train':
        _check_epochs_end(cfg)
        check_heads(cfg.model)


def _check_unknown_keys(cfg: Config) -> None:
    for key, value in cfg.items():
        if key in KNOWN_KEYS or not isinstance(value, dict | list):
            continue
        similar = get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.9)
        if similar:
            problem = f"the config's key {key} is not used. Did you mean {similar[0]}?"
            if cfg.get(similar[0]) is None:
                advice = f'If it is a name of your own, take another, or pass --cfg-options {key}=None'
                raise ConfigError(f'{problem} {advice}')
            print_log(problem, 'current', logging.WARNING)


def _check_needed_keys(cfg: Config, mode: str) -> None:
    for key in ('model', *_MODES[mode]):
        if cfg.get(key) is None:
            hint = similar_to(key, {*cfg} - KNOWN_KEYS)
            raise ConfigError(f'the config has no {key}, needed to {mode}.{hint}')
    for keys in _MODES.values():
        lacking = [key for key in keys if cfg.get(key) is None]
        if 0 < len(lacking) < len(keys):
            raise ConfigError(
                f'the config has no {" and no ".join(lacking)}: {", ".join(keys)} belong together. Give '
                'all of them, or set all to None'
            )


def _check_lengths(train_cfg: Mapping[str, Any]) -> None:
    for key in ('max_iters', 'max_epochs', 'val_interval'):
        value = train_cfg.get(key, 1)
        if key == 'val_interval' and value == float('inf'):  # no validation before the end
            continue
        if not isinstance(value, int | float) or value < 1 or value % 1:  # 8e4 is a float
            raise ConfigError(f'train_cfg.{key} must be a whole number from 1 on, got {value!r}')


def _check_epochs_end(cfg: Config) -> None:
    loop = cfg.train_cfg
    by_epoch = 'type' not in loop and loop.get('by_epoch')
    kind = EpochBasedTrainLoop if by_epoch else class_of(loop, LOOPS)
    sampler = class_of(cfg.train_dataloader.get('sampler'), DATA_SAMPLERS)
    if kind is None or sampler is None:
        return
    if issubclass(kind, EpochBasedTrainLoop) and issubclass(sampler, InfiniteSampler):
        raise ConfigError(
            f'train_dataloader.sampler ({sampler.__name__}) never ends, so that train_cfg ({kind.__name__}) '
            'would stay in its first epoch for ever. Write train_dataloader=dict(sampler=dict(_delete_=True, '
            "type='DefaultSampler', shuffle=True)), or keep the sampler and count iterations: "
            "train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=..., val_interval=...)"
        )


def _check_dict(value: Any, key: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f'{key} must be a dict, got {value!r}')


def check_datasets(cfg: Config, *dataloaders: str) -> None:
    """Check before anything is built that the data sets of a config are there.

    Images in a data set's folder whose names do not end as it expects cause a warning.

    Args:
        cfg: The whole config.
        *dataloaders: Which of its keys to look at, such as ``'train_dataloader'``.

    Raises:
        ConfigError: A folder is missing, holds no image, or an image has no label map where a data pipeline
            loads them.
    """
    for key in dataloaders:
        if cfg.get(key) is not None:
            pipelines = [part['pipeline'] for _, part in walk(cfg[key].dataset, '') if 'pipeline' in part]
            # A class may have a pipeline by default.
            labels = not pipelines or any(map(_loads_labels, pipelines))
            for settings, where in leaf_datasets(cfg[key].dataset, f'{key}.dataset'):
                _check_dataset(settings, where, labels)


def _loads_labels(pipeline: Any) -> bool:
    steps = [class_of(part, TRANSFORMS) for _, part in walk(pipeline, '')]
    return any(kind is not None and issubclass(kind, LoadAnnotations) for kind in steps)


def _check_dataset(settings: dict[str, Any], where: str, labels: bool) -> None:
    kind = DATASETS.get(settings['type']) if isinstance(settings.get('type'), str) else None
    if kind is None or not issubclass(kind, BaseSegDataset):
        return
    advice = f'put the data set there, or pass --cfg-options {where}.data_root=FOLDER'
    try:
        dataset = build_lazily(settings)
        if dataset is None:
            return
        samples = dataset.load_data_list()
    except FileNotFoundError as error:
        raise ConfigError(f'{where}: folder {str(error.filename)!r} does not exist; {advice}') from error
    except OSError as error:
        raise ConfigError(f'{where}: {str(error.filename)!r}: {error.strerror}; {advice}') from error
    except AssertionError as error:  # mmseg's data sets assert that files are there
        raise ConfigError(f'{where}: cannot be read ({error!r}); {advice}') from error
    images = dataset.data_prefix.get('img_path')
    if not samples:
        raise ConfigError(f'{where}: no image ending in {dataset.img_suffix!r} in {str(images)!r}; {advice}')
    if dataset.backend_args is not None:  # it may be slow to ask
        samples = samples[:1]
    elif not dataset.ann_file and isinstance(dataset.img_suffix, str):  # no list says which images it wants
        _tell_of_other_suffixes(images, dataset.img_suffix, samples, where)
    lacking = [
        sample
        for sample in samples
        if labels
        and sample.get('seg_map_path') is not None
        and not exists(sample['seg_map_path'], backend_args=dataset.backend_args)
    ]
    if lacking:
        raise ConfigError(
            f'{where}: image {lacking[0]["img_path"]!r} has no label map {lacking[0]["seg_map_path"]!r}'
            + (f', and so {len(lacking) - 1} others' if len(lacking) > 1 else '')
        )


def _tell_of_other_suffixes(folder: str, suffix: str, samples: list[dict[str, Any]], where: str) -> None:
    """Warn of image files in a data set's folder that it leaves out because they end otherwise."""
    # Label maps may be in the same folder.
    labels = {PurePath(sample['seg_map_path']) for sample in samples if sample.get('seg_map_path')}
    taken = PurePath(suffix).suffix or suffix  # '.png' of both '.png' and '_leftImg8bit.png'
    files = [PurePath(folder, file) for file in list_dir_or_file(folder, list_dir=False, recursive=True)]
    found = Counter(file.suffix for file in files if file.suffix != taken and file not in labels)
    others = [
        f'{number} {ending}' for ending, number in sorted(found.items()) if ending.lower() in _IMAGE_SUFFIXES
    ]
    if others:
        print_log(
            f'{where}: takes the {len(samples)} images ending in {suffix!r} and leaves out others in '
            f'{folder!r}: {", ".join(others)}. To use all, make a data set for each suffix, and join them by '
            'a ConcatDataset',
            'current',
            logging.WARNING,
        )
