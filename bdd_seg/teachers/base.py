"""What a distiller asks of a teacher, whatever it answers with: a network, or a cache of its outputs."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from mmengine.logging import MessageHub, print_log
from mmseg.models import BaseSegmentor
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from mmseg.utils import SampleList
from torch import Tensor

from bdd_seg.errors import ConfigError


class Teacher(ABC):
    """Deliberately not an ``nn.Module``: an attribute of this type appears in no ``state_dict()``,
    ``parameters()``, optimizer, DDP or EMA copy.

    Args:
        check_class_names: Whether the classes the teacher was trained for must be named as those of the
            student's data set.
    """

    gives_masks = False
    """Whether answers can be unknown somewhere, so that losses must take a mask."""

    def __init__(self, check_class_names: bool = True) -> None:
        self.check_class_names = check_class_names
        self.logits_tap = ''
        self.class_names: tuple[str, ...] | None = None
        self._data_checked = False
        self._watch: _GuessWatch | None = _GuessWatch()  # None again once it has seen its batches

    @property
    @abstractmethod
    def is_built(self) -> bool:
        """Whether :meth:`build` was called."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for messages: which teacher this is."""

    @abstractmethod
    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Get ready to teach ``student``; called when training starts, never for testing.

        Args:
            student: The mmseg segmentor that will learn.
            taps: Dotted names of the modules whose outputs are wanted, None for the logits.

        Raises:
            ConfigError: This teacher cannot teach that student.
        """

    @abstractmethod
    def __call__(
        self, inputs: Tensor, data_samples: SampleList
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the teacher says about a batch.

        Args:
            inputs: (N, 3, H, W) images as the student receives them.
            data_samples: What the data pipeline tells of the N images.

        Returns:
            Tap name → output (N, C, h, w), without gradient; the logits are always among them. And tap
            name → (N, h, w) bool, True where the teacher's answer is known, for outputs with positions
            where it is not.
        """

    def accuracy(self, logits: Tensor, seg_label: Tensor, ignore_index: int) -> Tensor:
        """Pixel accuracy at the logits' resolution; warns once where it is no better than guessing.

        Args:
            logits: (N, C, h, w), the teacher's.
            seg_label: (N, H, W) class indices.
            ignore_index: The label that does not count.

        Returns:
            The accuracy in percent, shape (1,).
        """
        label = resize(seg_label[:, None].float(), logits.shape[2:], mode='nearest')[:, 0].long()
        result = accuracy(logits, label, ignore_index=ignore_index)
        if self._watch is not None:
            self._watch.update(result, label[label != ignore_index], logits.shape[1])
            if self._watch.done:
                self._watch.judge(self.describe())
                self._watch = None
        return result

    def check_data(self) -> None:
        """Compare class names with the training data's; called on each batch, does so on the first.

        Only then has the Runner told what the training data is.

        Raises:
            ConfigError: The teacher was trained for other classes than the student's data set has.
        """
        if self._data_checked:
            return
        self._data_checked = True
        dataset_meta = MessageHub.get_current_instance().get_info('dataset_meta') or {}
        expected = tuple(dataset_meta.get('classes') or ())
        if not expected or not self.check_class_names or self.class_names in (None, expected):
            return
        differing = [
            f'{i}: {theirs!r} against {ours!r}'
            for i, (theirs, ours) in enumerate(zip(self.class_names, expected, strict=False))
            if theirs != ours
        ]
        raise ConfigError(
            f'the teacher ({self.describe()}) was trained for other classes than the data set has: '
            f'{len(self.class_names)} against {len(expected)}, first differences '
            f'{"; ".join(differing[:3])}. '
            'If they only have other names, set teacher.check_class_names=False'
        )

    def _check_number_of_classes(self, student: BaseSegmentor, own: int) -> None:
        if own != student.out_channels:
            raise ConfigError(
                f'the teacher ({self.describe()}) predicts {own} classes, the student '
                f'{student.out_channels}. Teacher and student must be trained for the same classes'
            )


class _GuessWatch:
    """Warns once if over the first batches the teacher is no better than guessing."""

    BATCHES = 5
    MIN_SKILL = 0.2  # share of the way from always guessing the commonest class (0) to no mistake (1)

    def __init__(self) -> None:
        self._accuracies: list[Tensor] = []
        self._histograms: list[Tensor] = []

    @property
    def done(self) -> bool:
        return len(self._accuracies) == self.BATCHES

    def update(self, accuracy: Tensor, labels: Tensor, num_classes: int) -> None:
        self._accuracies.append(accuracy)
        self._histograms.append(torch.bincount(labels, minlength=num_classes))

    def judge(self, teacher: str) -> None:
        accuracy = torch.cat(self._accuracies).mean().item()
        histogram = torch.stack(self._histograms).sum(0)
        guessing = 100 * (histogram.max() / histogram.sum().clamp(min=1)).item()
        if accuracy < guessing + self.MIN_SKILL * (100 - guessing):
            print_log(
                f'{"!" * 80}\nThe teacher ({teacher}) is hardly better than guessing: it labels '
                f'{accuracy:.1f}% of the pixels of the first {self.BATCHES} batches correctly, always '
                f'guessing the commonest class {guessing:.1f}%.\nIs it trained? Are its classes in the order '
                f'of the data set? Does its config normalise images as it was trained '
                f'(bgr_to_rgb, mean, std)?\n{"!" * 80}',
                logger='current',
                level=logging.WARNING,
            )
