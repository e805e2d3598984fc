"""Compare the settings of a config with the signature of the class that they are for."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from bdd_seg.errors import similar_to

# Likeness from which a name counts as misspelt where others may be accepted.
_MISSPELT = 0.85


class Accepted(NamedTuple):
    """The keyword arguments that a class or function accepts.

    Attributes:
        names: The arguments that are known by name.
        owner: The class or function that refuses any other argument; None if that is not known.
        closed: Whether others are refused for certain. A ``**kwargs`` may be handed on to a base class or be
            used for something else, which no signature says.
    """

    names: frozenset[str]
    owner: str | None
    closed: bool


def unexpected_argument(kind: Callable[..., Any], settings: Collection[str]) -> str | None:
    """Return what is wrong with the first setting that ``kind`` does not accept, or None.

    Where it may accept others, a setting is unexpected only if its name is nearly that of an argument.

    Args:
        kind: The class or function that is called with the settings.
        settings: Names of the settings.
    """
    accepted = accepted_arguments(kind)
    for name in sorted(set(settings) - accepted.names) if accepted.owner else ():
        if accepted.closed or similar_to(name, accepted.names, cutoff=_MISSPELT):
            hint = similar_to(name, accepted.names)
            return f'unexpected keyword argument {name!r} of {accepted.owner}.{hint}'
    return None


def missing_arguments(kind: Callable[..., Any], settings: Collection[str]) -> list[str]:
    """List the arguments that ``kind`` requires and that are not among ``settings``.

    Arguments that only its base classes require are left out, since the class may supply them.
    """
    function = next(_constructors(kind), None) if inspect.isclass(kind) else kind
    return [
        parameter.name
        for parameter in _parameters(function) or ()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in settings
    ]


@functools.cache
def accepted_arguments(kind: Callable[..., Any]) -> Accepted:
    """Return the keyword arguments of a class or function.

    A constructor with ``**kwargs`` also takes those of the next class in the method resolution order.
    """
    names: set[str] = set()
    functions = [*_constructors(kind)] if inspect.isclass(kind) else [kind]
    for position, function in enumerate(functions):
        parameters = _parameters(function)
        if parameters is None:
            break
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {parameter.name for parameter in parameters if parameter.kind in kinds}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            owner = function.__qualname__.removesuffix('.__init__').rpartition('.')[2]
            return Accepted(frozenset(names), owner, closed=position == 0)
    return Accepted(frozenset(names), None, closed=False)


def _constructors(kind: type) -> Iterator[Callable[..., None]]:
    """Yield the constructors of a class and its bases, in the order in which ``super()`` calls them."""
    for base in kind.__mro__[:-1]:
        if '__init__' in vars(base):
            yield vars(base)['__init__']


def _parameters(function: Callable[..., Any] | None) -> list[inspect.Parameter] | None:
    """List the parameters of a function but ``self``; None if they are not known.

    A decorator may accept other arguments than the function that it wraps.
    """
    if function is None or hasattr(function, '__wrapped__'):
        return None
    try:
        parameters = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):  # a class written in C
        return None
    return parameters[1:] if function.__name__ == '__init__' else parameters
