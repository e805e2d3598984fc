"""Teacher and student must predict the same classes."""

from collections.abc import Mapping
from typing import Any

from bdd_seg.errors import ConfigError
from bdd_seg.teachers.class_map import draft


def check_class_names(own: tuple[str, ...], expected: tuple[str, ...], teacher: str) -> None:
    """Check that a teacher's class names are those of the student's data set, in the same order.

    Raises:
        ConfigError: They differ. The message names the first differences.
    """
    if own == expected:
        return
    differing = [
        f'{i}: {theirs!r} against {ours!r}'
        for i, (theirs, ours) in enumerate(zip(own, expected, strict=False))
        if theirs != ours
    ]
    raise ConfigError(
        f'the teacher ({teacher}) was trained for other classes than the data set has: {len(own)} against '
        f'{len(expected)}, first differences {"; ".join(differing[:3])}. '
        'If they only have other names, set teacher.check_class_names=False. Else say which stands for '
        f'which: teacher.class_map={draft(own, expected)}'
    )


def check_number_of_classes(own: int, student: int, teacher: str) -> None:
    """Check that a teacher predicts as many classes as the student.

    Raises:
        ConfigError: It does not.
    """
    if own != student:
        raise ConfigError(
            f'the teacher ({teacher}) predicts {own} classes, the student {student}. Teacher '
            'and student must be trained for the same classes, or give teacher.class_map: name of a '
            "teacher's class → name of the student's. bdd-seg new writes the config of a pair with such a map"
        )


def number_of_classes(model: Mapping[str, Any]) -> int | None:
    """Return how many classes the (last) decode head of a segmentor predicts, None if nothing says so.

    Args:
        model: The segmentor's settings.
    """
    head = model.get('decode_head')
    if isinstance(head, list | tuple) and head:
        head = head[-1]
    if not isinstance(head, Mapping):
        return None
    # One output for two classes. Else out_channels is the number of classes, or Mask2Former's width.
    number = 1 if head.get('out_channels') == 1 else head.get('num_classes')
    return number if isinstance(number, int) else None
