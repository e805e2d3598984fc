"""The config of a student for others: plain mmseg, one flat file, no path of this machine."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import Registry
from mmseg import registry
from mmseg.registry import DATASETS

from bdd_seg.datasets.camvid import CamVidDataset
from bdd_seg.deploy.about import test_pipeline
from bdd_seg.distill.student import plain_config
from bdd_seg.runtime.guards.data import without_checks
from bdd_seg.runtime.guards.settings import argument, class_of
from bdd_seg.runtime.upstream.configs import type_name, walk

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')

# What plain mmseg reads, without what belongs to one run or machine: work_dir, load_from, launcher and such.
_KEPT = (
    *('default_scope', 'custom_imports', 'model', 'test_pipeline', *_LOADERS, 'tta_pipeline', 'tta_model'),
    *('optim_wrapper', 'param_scheduler', 'train_cfg', 'val_cfg', 'test_cfg', 'val_evaluator'),
    *('test_evaluator', 'default_hooks', 'custom_hooks', 'auto_scale_lr', 'randomness', 'env_cfg'),
    *('log_processor', 'log_level', 'vis_backends', 'visualizer'),
)

# Parts that are left out together where one of them needs this package.
_GROUPS = (
    ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'),
    ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ('test_dataloader', 'test_cfg', 'test_evaluator'),
    ('tta_pipeline', 'tta_model'),
    ('visualizer', 'vis_backends'),
)

# Types of this package that stand for one of mmseg's or mmengine's, which does the same to a student alone.
_PLAIN = {
    'BFloat16OptimWrapper': 'OptimWrapper',
    'ClassIoUMetric': 'IoUMetric',
    'MixedSampler': 'InfiniteSampler',
}
_EXTRA_ARGUMENTS = {'MixedSampler': ('unlabelled',)}


class Portable(NamedTuple):
    """A config for others.

    Attributes:
        settings: Its content, plain data.
        changes: Sentences on what differs from the training's, for readers.
    """

    settings: dict[str, Any]
    changes: list[str]


def portable_config(cfg: Config) -> Portable:
    """Return a config in which the student stands alone, flat, for plain mmseg.

    Teacher, losses, hooks and checks of this package are left out. Its data sets and samplers are replaced by
    mmseg's own. Weights that the training began with are not fetched again. Absolute paths become
    ``data/NAME``, different ones different names. Where a part still needs this package, the part is left
    out; where the model does, the config imports it.

    Args:
        cfg: The whole config, that of a distiller or of a plain network. It stays as it is.
    """
    changes: list[str] = []
    plain = plain_config(cfg)
    plain.test_pipeline = list(test_pipeline(plain))  # from which mmseg's inference_model takes it
    settings = {key: _as_data(plain[key]) for key in _KEPT if plain.get(key) is not None}
    _without_pretrained(settings['model'])
    for key in _LOADERS:
        if key in settings:
            settings[key]['dataset'] = _plain_dataset(settings[key]['dataset'], changes)
    settings = {key: _plain_types(value, changes) for key, value in settings.items()}
    own = own_types()
    for key in ('default_hooks', 'custom_hooks'):
        if key in settings:
            settings[key] = _without_hooks(settings[key], own)
    for group in _GROUPS:
        found = sorted({name for key in group for name in _types(settings.get(key)) if name in own})
        if found:
            changes.append(f'{", ".join(group)} are left out: they need bdd_seg ({", ".join(found)})')
            settings = {key: value for key, value in settings.items() if key not in group}
    if 'custom_imports' in settings:
        settings['custom_imports'] = _imports(settings, own)
        if not settings['custom_imports']['imports']:
            del settings['custom_imports']
    settings.setdefault('default_scope', 'mmseg')
    settings = _relative(settings, _places(_absolute_paths(settings)), changes)
    return Portable({key: settings[key] for key in _KEPT if key in settings}, list(dict.fromkeys(changes)))


def config_text(settings: Mapping[str, Any]) -> str:
    """Return the text of a config file."""
    return Config(dict(settings)).pretty_text


def own_types() -> set[str]:
    """Return the names of all that this package registers with mmseg."""
    nodes = [node for node in vars(registry).values() if isinstance(node, Registry)]
    return {
        name
        for node in nodes
        for name, kind in node.module_dict.items()
        if kind.__module__.split('.')[0] == 'bdd_seg'
    }


def _as_data(value: Any) -> Any:
    """Return settings as dicts, lists, tuples and plain values, with names in place of classes.

    This package's scope, which mmengine notes in parts that a config inherits by ``bdd_seg::…``, is left out:
    all types have their names in mmseg's.
    """
    if isinstance(value, Mapping):
        return {key: _as_data(item) for key, item in value.items() if (key, item) != ('_scope_', 'bdd_seg')}
    if isinstance(value, list | tuple):
        return type(value)(_as_data(item) for item in value)
    return value.__name__ if isinstance(value, type) else value


def _without_pretrained(model: dict[str, Any]) -> None:
    """Remove what would fetch weights that the checkpoint replaces."""
    for _, part in walk(model, 'model'):
        assert isinstance(part, dict)
        part.pop('pretrained', None)
        inits = part.get('init_cfg')
        if any(
            type_name(init) == 'Pretrained' for init in (inits if isinstance(inits, list) else [inits or {}])
        ):
            del part['init_cfg']


def _plain_dataset(settings: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Return a data set's settings without checks, caches and images without labels."""
    kind = type_name(settings)
    if kind == 'WithUnlabelled':
        changes.append('images without labels, on which it was distilled as well, are left out')
        return _plain_dataset(settings['dataset'], changes)
    if isinstance(settings.get('dataset'), dict):
        settings = {**settings, 'dataset': _plain_dataset(settings['dataset'], changes)}
    if isinstance(settings.get('datasets'), list):
        settings = {**settings, 'datasets': [_plain_dataset(one, changes) for one in settings['datasets']]}
    if 'pipeline' in settings:
        settings = {**settings, 'pipeline': _plain_pipeline(settings['pipeline'])}
    found = class_of(settings, DATASETS)
    if found is not None and issubclass(found, CamVidDataset):
        suffixes = {key: argument(settings, found, key) for key in ('img_suffix', 'seg_map_suffix')}
        return {**suffixes, 'metainfo': _as_data(found.METAINFO), **settings, 'type': 'BaseSegDataset'}
    return settings


def _plain_pipeline(pipeline: list[Any]) -> list[Any]:
    if pipeline and type_name(pipeline[0]) in ('ReadTeacherCache', 'FollowGeometry'):
        pipeline = pipeline[0]['transforms']
    return without_checks(pipeline)


def _plain_types(value: Any, changes: list[str]) -> Any:
    """Return settings with mmseg's and mmengine's types in place of those of :data:`_PLAIN`."""
    if isinstance(value, list | tuple):
        return type(value)(_plain_types(item, changes) for item in value)
    if not isinstance(value, dict):
        return value
    value = {key: _plain_types(item, changes) for key, item in value.items()}
    kind = type_name(value)
    if kind in _PLAIN:
        changes.append(f'{_PLAIN[kind]} stands for {kind} of bdd_seg')
        dropped = _EXTRA_ARGUMENTS.get(kind, ())
        value = {key: item for key, item in value.items() if key not in dropped}
        value['type'] = _PLAIN[kind]
    return value


def _without_hooks(hooks: Any, own: set[str]) -> Any:
    if isinstance(hooks, dict):
        return {name: hook for name, hook in hooks.items() if hook is None or type_name(hook) not in own}
    return [hook for hook in hooks if type_name(hook) not in own]


def _types(value: Any) -> list[str]:
    return [type_name(part) for _, part in walk(value, '') if 'type' in part]


def _imports(settings: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """Return ``custom_imports`` without this package, unless the model needs it."""
    imports = settings['custom_imports'].get('imports') or []
    modules = [imports] if isinstance(imports, str) else list(imports)
    needed = own.intersection(_types(settings['model']))
    kept = [module for module in modules if needed or module.split('.')[0] != 'bdd_seg']
    return {**settings['custom_imports'], 'imports': kept}


def _absolute_paths(value: Any) -> Iterator[str]:
    """Yield the absolute paths in settings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _absolute_paths(item)
    elif isinstance(value, str) and (os.path.isabs(value) or value.startswith('~')) and len(value) > 1:
        yield value


def _places(paths: Iterable[str]) -> dict[str, str]:
    """Return ``data/NAME`` for each absolute path: its last parts, as few as no other path ends with."""
    parts = {path: Path(os.path.normpath(path)).parts[1:] for path in paths}
    places = {}
    for path, own in parts.items():
        others = {other for other in parts.values() if other != own}
        count = next((n for n in range(1, len(own)) if all(own[-n:] != o[-n:] for o in others)), len(own))
        places[path] = '/'.join(('data', *own[len(own) - count :]))
    return places


def _relative(value: Any, places: Mapping[str, str], changes: list[str]) -> Any:
    """Return settings with its place for each absolute path."""
    if isinstance(value, dict):
        return {key: _relative(item, places, changes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_relative(item, places, changes) for item in value)
    if isinstance(value, str) and value in places:
        changes.append(f'{places[value]} stands for an absolute path: put that data there')
        return places[value]
    return value
