"""Check the parts of a config that are built from registries, before anything is built."""

import copy
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import mmseg.registry
import torch
from mmcv.transforms import Compose, KeyMapper, RandomApply, RandomChoice, TestTimeAug
from mmengine import registry as registries
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel, ExponentialMovingAverage
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapperDict, ZeroRedundancyOptimizer
from mmengine.registry import DefaultScope, Registry
from mmengine.visualization import MLflowVisBackend, TensorboardVisBackend, WandbVisBackend
from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
from torch import nn
from torch.utils.data import DataLoader

from bdd_seg.cli.errors import reason
from bdd_seg.cli.signatures import accepted_arguments, missing_arguments, unexpected_argument
from bdd_seg.distill.segmentor import SegDistiller
from bdd_seg.distill.settings import checked_losses, checked_teacher
from bdd_seg.distill.student import DISTILLERS_KEYS
from bdd_seg.errors import ConfigError, similar_to
from bdd_seg.runtime.upstream.configs import walk
from bdd_seg.teachers.mmseg import MMSegTeacher

# What Runner.build_dataloader reads beside the arguments of a DataLoader.
_LOADER_KEYS = {'num_batch_per_epoch', 'disable_subprocess_warning'}

# Transforms whose "transforms" are built from the same registry. Other classes, such as Albu, have others.
_WRAPPERS = (Compose, KeyMapper, RandomApply, RandomChoice, TestTimeAug)

# Where a training can send its log, and the package that it takes: an extra of the same name.
_TRACKERS = {
    TensorboardVisBackend: 'tensorboard',
    WandbVisBackend: 'wandb',
    MLflowVisBackend: 'mlflow',
}

# The parts of a segmentor that are built with exactly the settings that the config gives.
_MODEL_PARTS = ('data_preprocessor', 'backbone', 'neck', 'decode_head', 'auxiliary_head')

# Where a module's own settings may find layers, norms, samplers and initialisers: all of mmseg's registries.
_REGISTRIES = [registry for registry in vars(mmseg.registry).values() if isinstance(registry, Registry)]


def check_parts(cfg: Config, keys: Collection[str], train: bool) -> None:
    """Check that the parts of a config name things that exist, with arguments that those have.

    Args:
        cfg: The whole config.
        keys: The parts to check, such as ``'model'``. Those that the config lacks are left out.
        train: Whether the model is to be trained. If so, the teacher's own config is checked, too.

    Raises:
        ConfigError: A name is not registered, an argument is unknown or missing, or a class refuses its
            settings. The message begins with the dotted key.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        for key in keys:
            if cfg.get(key) is None:
                continue
            if key in ('model', 'tta_model'):
                _check_model(cfg[key], key, train)
            elif key == 'tta_pipeline':
                _check_pipeline(cfg[key], key)
            else:
                _CHECKS[key](cfg[key], key)


def described(settings: Mapping[str, Any], key: str, default: Any = None) -> str:
    """Return a key with the type that stands there, such as ``'model.neck (FPN)'``."""
    name = settings.get('type', default)
    return f'{key} ({getattr(name, "__name__", name)})'


def check_built(
    settings: Any,
    key: str,
    registry: Registry,
    *,
    default: str | None = None,
    supplied: Collection[str] = (),
    others: Collection[str] = (),
) -> Any:
    """Check settings that are built from a registry.

    Args:
        settings: The settings, with a ``type``. What is no dict is not checked.
        key: Their dotted key in the config.
        registry: The registry.
        default: The type where none is given.
        supplied: Arguments that are added as it is built.
        others: Keys that are taken out before it is built.

    Returns:
        The class or function that the type names, None if the settings are no dict.

    Raises:
        ConfigError: There is no such type, or it has other arguments.
    """
    if not isinstance(settings, Mapping):
        return None
    kind = _find(settings, key, registry, default)
    where = described(settings, key, default)
    names = [name for name in settings if name not in ('type', '_scope_') and name not in others]
    problem = unexpected_argument(kind, names)
    if problem is not None:
        raise ConfigError(f'{where}: {problem}')
    missing = missing_arguments(kind, {*names, *supplied})
    if missing:
        raise ConfigError(f'{where} lacks {" and ".join(map(repr, missing))}')
    return kind


def _find(settings: Mapping[str, Any], key: str, registry: Registry, default: str | None = None) -> Any:
    """Return what the type of some settings names.

    Raises:
        ConfigError: It is not given, or not registered.
    """
    name = settings.get('type', default)
    if name is None:
        raise ConfigError(f'{key} has no type')
    if not isinstance(name, str):
        if not callable(name):
            raise ConfigError(f'{key}.type must be a name or a class, got {name!r}')
        return name
    scope = settings.get('_scope_')
    kind = _look_up(name, registry, scope)
    if kind is None:
        noun = 'loss' if 'loss' in key else registry.name
        problem = _unknown(name, f'no {noun}', _names(registry, scope))
        raise ConfigError(f'{described(settings, key, default)}: {problem}')
    return kind


def _look_up(name: str, registry: Registry, scope: str | None = None) -> Any:
    """Return what a name stands for, None if it is not registered."""
    with registry.switch_scope_and_registry(scope) as scoped:
        try:
            return scoped.get(name)
        except (RuntimeError, ImportError):  # the dotted name of no module, or of one that is broken
            return None


def _absent_package(name: str) -> str | None:
    """Return the scope of a name such as ``mmdet.ResNet`` if no package of that name is installed."""
    scope, dot, _ = name.partition('.')
    if not (dot and scope.isidentifier()) or scope in sys.modules:
        return None
    return scope if importlib.util.find_spec(scope) is None else None


def _names(registry: Registry, scope: str | None = None) -> set[str]:
    """Return the names that are registered in a scope, and in those it inherits from."""
    names: set[str] = set()
    with registry.switch_scope_and_registry(scope) as scoped:
        found: Registry | None = scoped
        while found is not None:
            names |= {*found.module_dict}
            found = found.parent
    return names


def _unknown(name: str, kind: str, names: Collection[str]) -> str:
    scope = _absent_package(name)
    if scope is not None:
        return f'{kind} is called {name!r}, since no package {scope!r} is installed'
    advice = 'If it is your own, name its module in custom_imports'
    return f'{kind} is called {name!r}.{similar_to(name, names)} {advice}'


def _each(value: Any, key: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the dict that a key holds, or those of a list, however nested, each with its dotted key."""
    if isinstance(value, Mapping):
        yield value, key
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _each(part, f'{key}.{i}')


def _check_model(model: Any, key: str, train: bool) -> None:
    if not isinstance(model, Mapping):
        return
    kind = _find(model, key, registries.MODELS)
    distils = _is_class(kind, SegDistiller)
    is_wrapper = _is_class(kind, BaseTTAModel)
    given = [name for name in DISTILLERS_KEYS if name in model]
    if _is_class(kind, EncoderDecoder) and unexpected_argument(kind, given):
        distiller = 'CascadeSegDistiller' if _is_class(kind, CascadeEncoderDecoder) else 'SegDistiller'
        raise ConfigError(f'{described(model, key)} takes no {given[0]}: write type={distiller!r} beside it')
    # A SegDistiller says itself which class a cascade needs.
    check_built(
        model,
        key,
        registries.MODELS,
        supplied={'module'} if is_wrapper else (),
        others={'num_stages'} if distils else (),
    )
    if is_wrapper:
        _check_model(model.get('module'), f'{key}.module', train)
        return
    if distils:
        _check_teacher(checked_teacher(model.get('teacher')), key, train)
        losses = checked_losses(model.get('distill_losses', ()))
        for loss, where in _each(losses, f'{key}.distill_losses'):
            check_built(loss, where, registries.MODELS, others={'student_tap', 'teacher_tap', 'schedule'})
    exact: set[str] = {key, f'{key}.teacher'}
    for name in _MODEL_PARTS if _is_class(kind, EncoderDecoder) else ():
        for part, where in _each(model.get(name), f'{key}.{name}'):
            check_built(part, where, registries.MODELS)
            exact.add(where)
            for loss, place in _each(part.get('loss_decode'), f'{where}.loss_decode'):
                check_built(loss, place, registries.MODELS)
                _check_number(loss, 'loss_weight', place)
                exact.add(place)
    apart = {name: part for name, part in model.items() if not (distils and name == 'teacher')}
    for settings, where in ((part, where) for where, part in walk(apart, key) if where not in exact):
        _check_module(settings, where)


def _check_module(settings: Mapping[str, Any], key: str) -> None:
    """Check that the type of a module's own settings, such as a ``norm_cfg``, is registered somewhere.

    A class may have a ``type`` of its own among its settings. A name counts as misspelt only if it is nearly
    that of something registered.
    """
    name = settings.get('type')
    if not isinstance(name, str):
        return
    scope = settings.get('_scope_')
    if any(_look_up(name, registry, scope) is not None for registry in _REGISTRIES):
        return
    names = {known for registry in _REGISTRIES for known in _names(registry, scope)}
    if _absent_package(name) or similar_to(name, names, cutoff=0.8):
        raise ConfigError(f'{described(settings, key)}: {_unknown(name, "nothing registered", names)}')


def _check_teacher(teacher: dict[str, Any], key: str, train: bool) -> None:
    kind = check_built(teacher, f'{key}.teacher', registries.MODELS)
    if not train or not _is_class(kind, MMSegTeacher):
        return
    built = registries.MODELS.build(teacher)
    config = built.model_config()
    try:
        with DefaultScope.overwrite_default_scope('mmseg'):
            _check_model(config, 'model', train)
    except ConfigError as error:
        raise ConfigError(f'teacher ({built.describe()}): {error}') from error


def check_dataset(settings: Any, key: str) -> None:
    """Check the settings of a data set, of those that it wraps, and of their pipelines.

    Raises:
        ConfigError: See :func:`check_parts`.
    """
    if not isinstance(settings, Mapping):
        return
    check_built(settings, key, registries.DATASETS)
    for name in ('dataset', 'datasets', 'unlabelled'):
        for inner, where in _each(settings.get(name), f'{key}.{name}'):
            check_dataset(inner, where)
    _check_pipeline(settings.get('pipeline'), f'{key}.pipeline')


def _check_pipeline(pipeline: Any, key: str) -> None:
    for settings, where in _each(pipeline, key):
        kind = check_built(settings, where, registries.TRANSFORMS)
        if _is_class(kind, _WRAPPERS):
            _check_pipeline(settings.get('transforms'), f'{where}.transforms')
        if kind is not None:
            _build_once(settings, where, registries.TRANSFORMS)


def _build_once(settings: Mapping[str, Any], key: str, registry: Registry, **arguments: Any) -> None:
    """Build something cheap, and discard it.

    Raises:
        ConfigError: Its class refuses the settings. An exception of another kind may be a bug. It is left to
            the run, where it has its traceback.
    """
    try:
        registry.build({**copy.deepcopy(settings), **arguments})  # some replace what is nested in theirs
    except ConfigError:
        raise
    except (AssertionError, ImportError, OSError, ValueError) as error:
        raise ConfigError(f'{described(settings, key)}: {reason(error)}') from error
    except Exception:
        return


def _check_loader(loader: Mapping[str, Any], key: str) -> None:
    problem = unexpected_argument(DataLoader, [name for name in loader if name not in _LOADER_KEYS])
    if problem is not None:
        raise ConfigError(f'{key}: {problem}')
    if 'sampler' not in loader:
        raise ConfigError(f'{key} has no sampler')
    for name, lowest in (('batch_size', 1), ('num_workers', 0)):
        value = loader.get(name)
        if value is not None and (not isinstance(value, int) or value < lowest):
            raise ConfigError(f'{key}.{name} must be a whole number from {lowest} on, got {value!r}')
    check_dataset(loader['dataset'], f'{key}.dataset')
    supplied = {'sampler': {'dataset', 'seed'}, 'batch_sampler': {'sampler', 'batch_size'}}
    for name, names in supplied.items():
        check_built(loader.get(name), f'{key}.{name}', registries.DATA_SAMPLERS, supplied=names)
    for name in ('collate_fn', 'worker_init_fn'):
        if isinstance(loader.get(name), Mapping):
            _find(loader[name], f'{key}.{name}', registries.FUNCTIONS)


def _check_optim_wrapper(wrapper: Mapping[str, Any], key: str) -> None:
    constructor = {'type': wrapper.get('constructor') or 'DefaultOptimWrapperConstructor'}
    kind = _find(constructor, f'{key}.constructor', registries.OPTIM_WRAPPER_CONSTRUCTORS)
    if not _is_class(kind, DefaultOptimWrapperConstructor):
        return
    if wrapper.get('type') in (
        OptimWrapperDict,
        OptimWrapperDict.__name__,
    ):  # several, each with its own keys
        return
    check_built(
        wrapper,
        key,
        registries.OPTIM_WRAPPERS,
        default='OptimWrapper',
        supplied={'optimizer'},
        others={'optimizer', 'constructor', 'paramwise_cfg'},
    )
    optimizer, key = wrapper.get('optimizer'), f'{key}.optimizer'
    if not isinstance(optimizer, Mapping):
        return
    kind = check_built(optimizer, key, registries.OPTIMIZERS, supplied={'params'})
    _check_number(optimizer, 'lr', key)
    if not _is_class(kind, ZeroRedundancyOptimizer):  # needs a process group
        parameter = nn.Parameter(torch.zeros(1, 1))
        _build_once(optimizer, key, registries.OPTIMIZERS, params=[parameter])


def _check_schedulers(schedulers: Any, key: str) -> None:
    if isinstance(schedulers, Mapping) and 'type' not in schedulers:  # those of several optimizers
        for name, part in schedulers.items():
            _check_schedulers(part, f'{key}.{name}')
        return
    for settings, where in _each(schedulers, key):
        check_built(
            settings,
            where,
            registries.PARAM_SCHEDULERS,
            supplied={'optimizer'},
            others={'convert_to_iter_based'},
        )


def _check_evaluator(evaluator: Any, key: str) -> None:
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        check_built(evaluator, key, registries.EVALUATOR, default='Evaluator')
        evaluator, key = evaluator['metrics'], f'{key}.metrics'
    for settings, where in _each(evaluator, key):
        check_built(settings, where, registries.METRICS)


def _check_loop(loop: Any, key: str) -> None:
    default = {'val_cfg': 'ValLoop', 'test_cfg': 'TestLoop'}.get(key)
    others = set()
    if key == 'train_cfg' and 'type' not in loop and 'by_epoch' in loop:
        default = 'EpochBasedTrainLoop' if loop['by_epoch'] else 'IterBasedTrainLoop'
        others = {'by_epoch'}
    supplied = {'runner', 'dataloader', 'evaluator'}
    check_built(loop, key, registries.LOOPS, default=default, supplied=supplied, others=others)


def _check_hooks(hooks: Any, key: str) -> None:
    # The default ones have names, the others stand in a list.
    places = hooks.items() if isinstance(hooks, Mapping) else enumerate(hooks)
    for name, settings in places:
        where = f'{key}.{name}'
        kind = check_built(settings, where, registries.HOOKS, others={'priority'})
        if _is_class(kind, EMAHook):
            _check_average(kind, settings, where)


def _check_average(hook: Any, settings: Mapping[str, Any], key: str) -> None:
    """Check what an ``EMAHook`` hands on to the average that it keeps."""
    kind = _look_up(str(settings.get('ema_type', ExponentialMovingAverage.__name__)), registries.MODELS)
    own = accepted_arguments(hook).names | {'type', '_scope_', 'priority'}
    problem = (
        None if kind is None else unexpected_argument(kind, [name for name in settings if name not in own])
    )
    if problem is not None:
        raise ConfigError(f'{described(settings, key)}: {problem}')


def _check_visualizer(visualizer: Any, key: str) -> None:
    check_built(visualizer, key, registries.VISUALIZERS, supplied={'name', 'save_dir'})
    if isinstance(visualizer, Mapping):
        for backend, where in _each(visualizer.get('vis_backends'), f'{key}.vis_backends'):
            kind = check_built(backend, where, registries.VISBACKENDS, supplied={'save_dir'})
            for tracker, package in _TRACKERS.items():
                if _is_class(kind, tracker) and not _is_installed(package):
                    raise ConfigError(
                        f"{described(backend, where)} needs {package}: pip install 'bdd-seg[{package}]'"
                    )


def _is_installed(package: str) -> bool:
    """Return whether there is a package. A mere folder of that name, as trackers make, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _check_log_processor(settings: Any, key: str) -> None:
    check_built(settings, key, registries.LOG_PROCESSORS, default='LogProcessor')


def _check_runner_type(name: Any, key: str) -> None:
    _find({'type': name}, key, registries.RUNNERS)


def _check_model_wrapper(settings: Any, key: str) -> None:
    if isinstance(settings, Mapping):
        _find(settings, key, registries.MODEL_WRAPPERS, 'MMDistributedDataParallel')


def _check_number(settings: Mapping[str, Any], name: str, key: str) -> None:
    if isinstance(settings.get(name), str):
        raise ConfigError(f'{key}.{name} must be a number, got {settings[name]!r}')


def _is_class(kind: Any, parents: type | tuple[type, ...]) -> bool:
    return isinstance(kind, type) and issubclass(kind, parents)


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    'train_dataloader': _check_loader,
    'val_dataloader': _check_loader,
    'test_dataloader': _check_loader,
    'train_cfg': _check_loop,
    'val_cfg': _check_loop,
    'test_cfg': _check_loop,
    'val_evaluator': _check_evaluator,
    'test_evaluator': _check_evaluator,
    'optim_wrapper': _check_optim_wrapper,
    'param_scheduler': _check_schedulers,
    'default_hooks': _check_hooks,
    'custom_hooks': _check_hooks,
    'visualizer': _check_visualizer,
    'log_processor': _check_log_processor,
    'model_wrapper_cfg': _check_model_wrapper,
    'runner_type': _check_runner_type,
}
