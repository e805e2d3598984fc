"""Read a class, and an argument with its default, from settings in a config."""

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry


def class_of(settings: Any, registry: Registry) -> type[Any] | None:
    """Return the class that settings are for, or None if there is none of that name."""
    kind = settings.get('type') if isinstance(settings, Mapping) else None
    if isinstance(kind, str):
        kind = registry.get(kind)
    return kind if inspect.isclass(kind) else None


def argument(settings: Mapping[str, Any], kind: type[Any], name: str) -> Any:
    """Return a setting, or its default in the class or the first base that has one, or None."""
    if name in settings:
        return settings[name]
    for base in kind.__mro__:
        init = vars(base).get('__init__')
        parameter = None if init is None else inspect.signature(init).parameters.get(name)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    return None
