"""Check a distiller's settings, and build its teacher and losses."""

import inspect
from collections.abc import Iterable
from typing import Any

from mmseg.registry import MODELS
from torch import nn

from bdd_seg.distill.arguments import refused, taken
from bdd_seg.distill.taps import tap_name
from bdd_seg.errors import ConfigError, similar_to
from bdd_seg.losses import DistillLoss

DEFAULT_TEACHER = 'MMSegTeacher'


def checked_teacher(settings: Any) -> dict[str, Any]:
    """Return a copy of ``model.teacher`` with its type; a list becomes an ensemble.

    Raises:
        ConfigError: It is missing or no dict, or a cache lacks its type.
    """
    if isinstance(settings, list | tuple):
        settings = {'type': 'EnsembleTeacher', 'teachers': [*settings]}
    if settings is None:
        raise ConfigError('the model has no teacher: give it teacher=dict(config=..., checkpoint=...)')
    settings = {'type': DEFAULT_TEACHER, **_checked_dict(settings, 'model.teacher')}
    if 'cache' in settings and settings['type'] == DEFAULT_TEACHER:
        raise ConfigError('model.teacher cannot be built. A cache needs type="CachedTeacher" beside it')
    return settings


def checked_losses(settings: Any) -> list[dict[str, Any]]:
    """Return copies of ``model.distill_losses``.

    Raises:
        ConfigError: It is empty or no list of dicts, or a tap is neither a name nor a function.
    """
    key = 'model.distill_losses'
    if not isinstance(settings, list | tuple):
        raise ConfigError(f'{key} must be a list of dicts, got {settings!r}')
    if not settings:
        raise ConfigError('distill_losses is empty: give it at least one loss, such as dict(type="BDDLoss")')
    losses = [_checked_dict(loss, f'{key}.{i}') for i, loss in enumerate(settings)]
    for i, loss in enumerate(losses):
        for tap in ('student_tap', 'teacher_tap'):
            if loss.get(tap) is not None:
                loss[tap] = tap_name(loss[tap], f'{key}.{i}.{tap}')
    return losses


def build(settings: dict[str, Any], key: str) -> Any:
    """Build a teacher or a loss from its settings.

    Raises:
        ConfigError: It refuses them with a ``ValueError`` or ``TypeError``. The message begins with ``key``.
    """
    try:
        return MODELS.build(settings)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:  # a wrong value, or an argument that it does not take
        kind = settings['type']
        where = f'{key} ({getattr(kind, "__name__", kind)})'
        found = MODELS.get(kind) if isinstance(kind, str) else kind
        unknown = refused(found, settings)
        if unknown:
            names = taken(found)
            hint = similar_to(unknown[0], names, cutoff=0.4)
            raise ConfigError(
                f'{where} takes no argument {unknown[0]!r}; it takes {", ".join(names)}.{hint}'
            ) from error
        raise ConfigError(f'{where}: {error}') from error


def check_losses(losses: Iterable[nn.Module], teacher: Any) -> None:
    """Check that losses can be logged and called.

    Args:
        losses: The distillation losses.
        teacher: Their teacher, whose answers may be unknown somewhere.

    Raises:
        ConfigError: A ``loss_name`` does not contain ``loss`` or is not unique, or a loss takes no mask.
    """
    losses = list(losses)
    names = [getattr(loss, 'loss_name', None) for loss in losses]
    for loss, name in zip(losses, names, strict=True):
        kind = type(loss).__name__
        if not isinstance(name, str) or 'loss' not in name:
            raise ConfigError(
                f"{kind} needs a loss_name that contains 'loss', or mmengine leaves it out of the total; "
                f'got {name!r}'
            )
        if teacher.gives_masks and not isinstance(loss, DistillLoss) and not _takes_mask(loss):
            raise ConfigError(
                f'{kind}.forward takes no mask, which says where the {type(teacher).__name__} knows '
                'an answer. Give it that argument, or use a live teacher'
            )
    if len(set(names)) < len(names):
        raise ConfigError(f'each of distill_losses needs a loss_name of its own, got {names}')


def _takes_mask(loss: nn.Module) -> bool:
    parameters = inspect.signature(loss.forward).parameters.values()
    return any(one.name == 'mask' or one.kind is one.VAR_KEYWORD for one in parameters)


def _checked_dict(settings: Any, key: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise ConfigError(f'{key} must be a dict of settings, got {settings!r}')
    return dict(settings)
