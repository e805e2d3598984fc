"""Several teachers as one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor

from bdd_seg.distill.settings import build, checked_teacher
from bdd_seg.distill.taps import LOGITS
from bdd_seg.errors import ConfigError
from bdd_seg.teachers.base import Answer, Teacher


@MODELS.register_module()
class EnsembleTeacher(Teacher):
    """Several teachers, whose class probabilities are averaged.

    The softmax of its logits is the mean of the probabilities, on the grid of the first teacher. Their
    logsumexp is the mean of the teachers', so that a teacher averaged with itself stays the same, also where
    logits are compared over the positions. A map of one of them is tapped as ``'0.backbone.layer4'``, its
    number first.

    Args:
        teachers: Settings of two or more teachers, of any kinds but cached ones.
        weights: Their weights in the mean; equal by default.
        check_class_names: As for :class:`~bdd_seg.teachers.Teacher`.
        class_map: As for :class:`~bdd_seg.teachers.Teacher`, of the classes that all of them have.

    Raises:
        ConfigError: There are fewer than two, one is cached or has a class map of its own, or the weights are
            not as many positive numbers.
    """

    def __init__(
        self,
        teachers: Sequence[dict[str, Any]],
        weights: Sequence[float] | None = None,
        check_class_names: bool = True,
        class_map: Mapping[str, str | None] | str | None = None,
    ) -> None:
        super().__init__(check_class_names, class_map)
        if not isinstance(teachers, list | tuple) or len(teachers) < 2:
            raise ConfigError(f'teacher.teachers must be a list of two or more teachers, got {teachers!r}')
        self.teachers: list[Teacher] = [
            build(self._settings(one, class_map, check_class_names), f'model.teacher.teachers.{i}')
            for i, one in enumerate(teachers)
        ]
        if any(teacher.gives_masks for teacher in self.teachers):
            raise ConfigError('teacher.teachers must be live: a CachedTeacher cannot be part of an ensemble')
        if class_map is None and any(teacher.maps_classes for teacher in self.teachers):
            raise ConfigError(
                'teacher.teachers: a class_map is one of the ensemble, whose teachers have the same classes. '
                "Write teacher=dict(type='EnsembleTeacher', teachers=[...], class_map=...)"
            )
        weights = [1.0] * len(teachers) if weights is None else list(weights)
        if len(weights) != len(teachers) or not all(
            isinstance(weight, int | float) and weight > 0 for weight in weights
        ):
            raise ConfigError(
                f'teacher.weights must be {len(teachers)} positive numbers, one a teacher, got {weights}'
            )
        self.weights = [weight / sum(weights) for weight in weights]

    @property
    def is_built(self) -> bool:
        """True once :meth:`build` was called."""
        return all(teacher.is_built for teacher in self.teachers)

    def describe(self) -> str:
        """Return a few words on each teacher."""
        return f'mean of {", ".join(teacher.describe() for teacher in self.teachers)}'

    def summary(self) -> str:
        """Return the summaries of the teachers."""
        return f'mean of {len(self.teachers)}: {"; ".join(teacher.summary() for teacher in self.teachers)}'

    def check(self, student: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Check each teacher.

        Raises:
            ConfigError: One cannot teach that student.
        """
        for teacher in self.teachers:
            teacher.check(student, classes)

    def map_channels(self, tap: str | None) -> int:
        """Return the number of channels of a tap's map.

        Raises:
            ConfigError: They cannot be found out.
        """
        number, inner = self._owner(tap)
        return self.teachers[number].map_channels(inner)

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Build each teacher.

        Raises:
            ConfigError: One cannot teach that student, or they have different classes.
        """
        wanted: list[list[str | None]] = [[None] for _ in self.teachers]
        for tap in taps:
            if tap not in (None, LOGITS):
                number, inner = self._owner(tap)
                wanted[number].append(inner)
        for teacher, its in zip(self.teachers, wanted, strict=True):
            teacher.build(student, its)
        names = {teacher.class_names for teacher in self.teachers} - {None}
        if len(names) > 1:
            first, second = list(names)[:2]
            raise ConfigError(
                f'the teachers of an ensemble must have the same classes in the same order, got {first} and '
                f'{second}'
            )
        self.class_names = names.pop() if names else None
        self.logits_tap = LOGITS

    def __call__(self, inputs: Tensor, data_samples: SampleList) -> Answer:
        """Answer with the mean, and the tapped maps of each teacher.

        Args:
            inputs: (N, C, H, W) images as the student receives them.
            data_samples: N samples of the data pipeline.
        """
        answers = [teacher(inputs, data_samples) for teacher in self.teachers]
        maps: dict[str, Tensor] = {}
        for number, answer in enumerate(answers):
            maps |= {f'{number}.{tap}': output for tap, output in answer.maps.items()}
        taps = [f'{number}.{teacher.logits_tap}' for number, teacher in enumerate(self.teachers)]
        size = maps[taps[0]].shape[2:]
        probabilities = total = torch.zeros((), device=inputs.device)
        for tap, weight in zip(taps, self.weights, strict=True):
            logits = maps[tap].float()
            is_binary = logits.shape[1] == 1  # one channel with a sigmoid stands for the logits 0 and z
            if is_binary:
                logits = torch.cat([torch.zeros_like(logits), logits], 1)
            probabilities = probabilities + weight * _resized(logits.softmax(1), size)
            total = total + weight * _resized(logits.logsumexp(1, keepdim=True), size)
        least = torch.finfo(torch.float32).tiny  # not 0, whose logarithm is infinite
        mean = probabilities.clamp(min=least).log() + total
        maps[LOGITS] = (mean[:, 1:] - mean[:, :1] if is_binary else mean).to(inputs.dtype)
        return Answer(maps)

    @staticmethod
    def _settings(teacher: Any, class_map: Any, check_class_names: bool) -> dict[str, Any]:
        """Return a teacher's settings, with what the ensemble admits."""
        settings = checked_teacher(teacher)
        admitted: dict[str, Any] = {} if class_map is None else {'class_map': class_map}
        return {**settings, **admitted, **({} if check_class_names else {'check_class_names': False})}

    def _owner(self, tap: str | None) -> tuple[int, str | None]:
        """Return the number of the teacher whose map this is, and its own tap."""
        if tap in (None, LOGITS):
            return 0, None
        number, _, inner = str(tap).partition('.')
        if not number.isdigit() or int(number) >= len(self.teachers) or not inner:
            raise ConfigError(
                f'teacher_tap {tap!r}: begin with the number of one of the {len(self.teachers)} teachers, '
                f"such as '0.{tap}'"
            )
        return int(number), inner


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size, mode='bilinear', align_corners=False)
