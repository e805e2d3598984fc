"""Teacher and student must predict the same classes."""

from mmseg.models import BaseSegmentor

from bdd_seg.errors import ConfigError


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
        'If they only have other names, set teacher.check_class_names=False'
    )


def check_number_of_classes(own: int, student: BaseSegmentor, teacher: str) -> None:
    """Check that a teacher predicts as many classes as the student.

    Raises:
        ConfigError: It does not.
    """
    if own != student.out_channels:
        raise ConfigError(
            f'the teacher ({teacher}) predicts {own} classes, the student {student.out_channels}. Teacher '
            'and student must be trained for the same classes'
        )
