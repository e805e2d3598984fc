"""From an error deep inside a library to the key of the config, or the module, that it comes from."""

import inspect
import pickle
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.registry import Registry, build_from_cfg
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from bdd_seg.errors import ConfigError, similar_to

# Functions that build something, and which of their variables holds its settings.
_BUILDERS = {build_from_cfg.__code__: 'cfg', Runner.build_dataloader.__code__: 'dataloader'}

# Which of a config's train_*, val_* and test_* settings are meant when one of these is at work.
_MODES = {
    Runner.train.__code__: 'train',
    Runner.build_val_loop.__code__: 'val',
    Runner.test.__code__: 'test',
}

# The keys of a config that these read.
_READERS = {
    Runner.setup_env.__code__: 'env_cfg or launcher',
    Runner.set_randomness.__code__: 'randomness',
    Runner.build_logger.__code__: 'log_level',
    Runner.build_visualizer.__code__: 'visualizer',
    Runner.build_optim_wrapper.__code__: 'optim_wrapper',
    Runner.scale_lr.__code__: 'auto_scale_lr',
    Runner.build_param_scheduler.__code__: 'param_scheduler',
    Runner.build_evaluator.__code__: 'evaluator',
    Runner.wrap_model.__code__: 'model_wrapper_cfg',
}

_UNEXPECTED = re.compile(r"(?:(\w+)\.)?\w+\(\) got an unexpected keyword argument '(\w+)'")
_MISSING = re.compile(r"\(\) missing \d+ required (?:keyword-only|positional) arguments?: ('.*)")

_HINTS = {
    'SyncBatchNorm layers only work with GPU modules': 'On several CPU processes set norm_cfg.type=BN in '
    'model.backbone, model.decode_head and model.auxiliary_head',
    'caused by a remote worker': 'Another process of the job has died: look further up, or at what its '
    'machine printed',
    # Of 1×1 pixels, to which PSPNet pools, a batch of one image has one.
    'Expected more than 1 value per channel': 'Raise train_dataloader.batch_size, or set '
    'train_dataloader.drop_last=True if it is the last batch that has a single image',
    'out of memory': 'Lower the batch_size of the data loader or the crop, or train with --amp',
}


@contextmanager
def naming_the_cause(cfg: Mapping[str, Any], prefix: str = '') -> Iterator[None]:
    """Turn what goes wrong inside into a ``ConfigError`` that says where in the config to look.

    That is found in the traceback: what was being built from which settings, which module of the model
    ran, which transform on which image. Where the error is no usual complaint about a setting, the
    traceback is printed first, since it may well be a bug.

    Args:
        cfg: The config that what happens inside is told by.
        prefix: What the message begins with.

    Raises:
        ConfigError: Instead of any other exception.
    """
    try:
        yield
    except (ConfigError, pickle.UnpicklingError):  # what these say is enough
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if frames[-1].f_code is Runner.call_hook.__code__ and isinstance(error.__context__, Exception):
            error = error.__context__  # of which mmengine hides the traceback
            frames += [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        problem = _usual_problem(error, frames, cfg)
        if problem is None:
            traceback.print_exception(error)
            problem = f'{_place(frames, cfg)}{type(error).__name__}: {_reason(error)}'
        raise ConfigError(f'{prefix}{problem}') from error


def _usual_problem(error: Exception, frames: list[FrameType], cfg: Mapping[str, Any]) -> str | None:
    """What is wrong with the settings of what was being built, if it is a usual thing."""
    if _hint(str(error)):
        return f'{_place(frames, cfg)}{_reason(error)}'
    position = max((i for i, frame in enumerate(frames) if frame.f_code in _BUILDERS), default=None)
    if position is None:
        return None
    builder = frames[position]
    settings = builder.f_locals[_BUILDERS[builder.f_code]]
    if not isinstance(settings, Mapping):
        return f'{_place(frames, cfg)}expected a dict of settings, got {settings!r}'
    key = _key_of(settings, cfg, frames)
    where = f'{"" if key else _place(frames[:position], cfg)}{_described(key, settings)}'
    registry = builder.f_locals.get('registry')
    kind = builder.f_locals.get('obj_cls') if registry is not None else DataLoader
    name = settings.get('type')
    if isinstance(registry, Registry) and builder is frames[-1] and kind is None:
        if name is None:
            return f'{where} has no type'
        if isinstance(name, str):
            similar = similar_to(name, _names(registry))
            return (
                f'{where}: no {registry.name} is called {name!r}.{similar} If it is your own, name its '
                'module in custom_imports'
            )
    unexpected = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    if unexpected is not None and unexpected[2] in settings:
        similar = similar_to(unexpected[2], _arguments(kind))
        return f'{where}: unexpected keyword argument {unexpected[2]!r} of {unexpected[1]}.{similar}'
    missing = _MISSING.search(str(error)) if isinstance(error, TypeError) else None
    if missing is not None and builder is frames[-1]:
        return f'{where} lacks {missing[1]}'
    complaint = isinstance(error, ValueError | AssertionError | OSError | ImportError)
    if complaint and (builder is frames[-1] or _refuses(kind, frames[-1], error)):
        return f'{where}: {_reason(error)}'
    return None


def _refuses(kind: Any, frame: FrameType, error: Exception) -> bool:
    """Whether it is the class itself that refuses its settings. What fails further down may be a bug."""
    owner = frame.f_locals.get('self')  # a DataLoader leaves some of its settings to a BatchSampler
    itself = inspect.isclass(kind) and isinstance(owner, kind | BatchSampler)
    ours = str(frame.f_globals.get('__name__')).startswith('bdd_seg.')  # functions that several classes use
    line = traceback.extract_tb(error.__traceback__)[-1].line or ''
    return (itself or ours) and re.match(r'(raise|assert)\b', line) is not None


def _place(frames: list[FrameType], cfg: Mapping[str, Any]) -> str:
    """The innermost thing with a name, followed by a colon; nothing where there is none."""
    place, root, building = '', None, False
    for frame in frames:
        owner = frame.f_locals.get('self')
        if frame.f_code in _BUILDERS:
            settings, building = frame.f_locals[_BUILDERS[frame.f_code]], True
            if isinstance(settings, Mapping):
                place = _described(_key_of(settings, cfg, frames), settings)
        elif frame.f_code in _READERS:
            place = _READERS[frame.f_code]
        elif frame.f_code is Runner.call_hook.__code__:
            place = type(frame.f_locals.get('hook')).__name__
        elif isinstance(owner, nn.Module) and not building:
            if root is None or owner not in root.modules():
                root, place = owner, type(owner).__name__
            else:
                name = next(name for name, module in root.named_modules() if module is owner)
                place = f'model.{name}' if name else type(owner).__name__
        elif isinstance(owner, BaseTransform):
            results = frame.f_locals.get('results')
            path = results.get('img_path') if isinstance(results, dict) else None
            place = type(owner).__name__ + (f' on image {path!r}' if path else '')
    return f'{place}: ' if place else ''


def _key_of(settings: Mapping[str, Any], cfg: Mapping[str, Any], frames: list[FrameType]) -> str | None:
    """Where in the config these settings stand. Libraries copy them, and sometimes add to the copy."""
    mode = next((_MODES[frame.f_code] for frame in reversed(frames) if frame.f_code in _MODES), '')
    used = [key for key in inspect.signature(Runner).parameters if key in cfg]
    used.sort(key=lambda key: not key.startswith(mode))
    places = [place for key in used for place in _walk(cfg[key], key)]
    same = [key for key, value in places if value is settings]
    same = same or [key for key, value in places if _equal(value, settings)]
    alike = [key for key, value in places if 'type' in settings and value.get('type') == settings['type']]
    return same[0] if same else alike[0] if len(alike) == 1 else None


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    try:
        return one == other
    except (ValueError, RuntimeError):  # of arrays and tensors there is no telling
        return False


def _walk(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield key, value
        for name, part in value.items():
            yield from _walk(part, f'{key}.{name}')
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _walk(part, f'{key}.{i}')


def _described(key: str | None, settings: Mapping[str, Any]) -> str:
    name = settings.get('type')
    name = getattr(name, '__name__', name)
    return f'{key} ({name})' if key and name else str(key or name or dict(settings))


def _reason(error: Exception) -> str:
    """What an error says, on one line."""
    text = str(error).strip()
    if 'Original Traceback' in text:  # from a data loader's process
        text = text.splitlines()[-1]
    if not text:  # an assertion without words
        text = f'{traceback.extract_tb(error.__traceback__)[-1].line} does not hold'
    reason = ' '.join(text.split())
    hint = _hint(reason)
    return f'{reason}. {hint}' if hint else reason


def _hint(reason: str) -> str | None:
    return next((hint for words, hint in _HINTS.items() if words in reason), None)


def _names(registry: Registry) -> set[str]:
    """What is registered, in this registry and those it inherits from."""
    inherited = set() if registry.parent is None else _names(registry.parent)
    return {*registry.module_dict, *inherited}


def _arguments(kind: Any) -> set[str]:
    """What a class takes, and what its bases take, where it hands arguments on."""
    bases = kind.__mro__[:-1] if inspect.isclass(kind) else [kind] if callable(kind) else []
    return {name for base in bases for name in inspect.signature(base).parameters}
