"""The arguments of a loss's constructor, for messages that name them."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from bdd_seg.losses import DistillLoss


def takes(kind: type[DistillLoss], name: str, value: Any) -> bool:
    """Return True if a loss can be built with this one argument, whether or not it likes the value.

    A signature does not tell: a class may set an argument of its base itself.
    """
    try:
        with torch.random.fork_rng(devices=[]), suppress(ValueError):
            kind(**{name: value})
    except TypeError:
        return False
    return True


def refused(kind: type, settings: Mapping[str, Any]) -> list[str]:
    """Return the arguments among a loss's settings that its constructor does not take.

    Returns:
        Their names; none where that cannot be told, as with a class that is no ``DistillLoss``.
    """
    if not (inspect.isclass(kind) and issubclass(kind, DistillLoss)) or not takes(kind, 'loss_weight', 1.0):
        return []
    return [name for name, value in settings.items() if name != 'type' and not takes(kind, name, value)]


def taken(kind: type[DistillLoss]) -> list[str]:
    """Return the names of the arguments that a loss takes: its own, then those of its bases.

    Of a loss that must be given some they are its own and those of ``DistillLoss``.
    """
    certain = takes(kind, 'loss_weight', 1.0)
    bases = kind.__mro__[: kind.__mro__.index(DistillLoss) + 1] if certain else (kind, DistillLoss)
    found: dict[str, None] = {}
    for base in bases:
        for name, parameter in inspect.signature(base).parameters.items():
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if named and name not in found and (not certain or takes(kind, name, parameter.default)):
                found[name] = None
    return [*found]
