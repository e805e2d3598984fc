"""The one exception that the tools print as a line, and what messages are made of."""

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """An input of the user cannot work: the message says what, where, and what to do about it.

    The tools print it as one line. Any other exception keeps its traceback.
    """

    def __str__(self) -> str:
        # A data loader's process puts its own traceback in front of the message.
        return super().__str__().rpartition('ConfigError: ')[2].rstrip()


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def similar_to(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `` Did you mean A or B?`` for the names most like ``name``, or an empty string."""
    similar = get_close_matches(name, sorted(names), n=3, cutoff=cutoff)
    return f' Did you mean {" or ".join(similar)}?' if similar else ''
