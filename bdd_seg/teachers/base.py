"""The abstract teacher, and its answer to a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import MessageHub, print_log
from mmseg.models import BaseSegmentor
from mmseg.utils import SampleList
from torch import Tensor

from bdd_seg.errors import ConfigError
from bdd_seg.teachers.class_map import ClassMap
from bdd_seg.teachers.classes import check_class_names
from bdd_seg.teachers.sanity import GuessWatch, pixel_accuracy


@dataclass(frozen=True)
class Answer:
    """The maps of a teacher for one batch.

    Attributes:
        maps: Tap name → (N, C, h, w), without gradient. The logits, if it has any, are always among them.
        known: Tap name → (N, h, w) bool, True where the map is known. Maps that are known everywhere are left
            out.
    """

    maps: dict[str, Tensor]
    known: dict[str, Tensor] = field(default_factory=dict)


class Teacher(ABC):
    """Answers a batch with maps.

    It is no ``nn.Module``, so an attribute of this type appears in no ``state_dict()``, ``parameters()``,
    optimizer, DDP or EMA copy.

    Args:
        check_class_names: Whether the classes the teacher was trained for must be named as those of the
            student's data set. Switch off where the same classes merely have other names.
        class_map: For a teacher of other classes: a dict, name of a teacher's class → name of the student's,
            or None for no class; several may stand for one. Or the name of one of
            :data:`~bdd_seg.teachers.class_map.CLASS_MAPS`. Where the logits are compared, classes of the
            student for which nothing stands are left out.

    Attributes:
        logits_tap: Tap name of the logits, known once the teacher is built; empty if it has none.
        class_names: The classes it was trained for, None where nothing tells.
        class_map: The map between the classes, None where they are the same, known once
            :meth:`check_data` was called.
    """

    gives_masks = False
    """True if answers can be unknown somewhere, so that losses must take a mask."""

    def __init__(
        self, check_class_names: bool = True, class_map: Mapping[str, str | None] | str | None = None
    ) -> None:
        self.check_class_names = check_class_names
        self._class_map = None if class_map is None else ClassMap.named(class_map)
        self.class_map: ClassMap | None = None
        self.logits_tap = ''
        self.class_names: tuple[str, ...] | None = None
        self._data_checked = False
        self._watch = GuessWatch()

    @property
    @abstractmethod
    def is_built(self) -> bool:
        """True once :meth:`build` was called."""

    @abstractmethod
    def describe(self) -> str:
        """Return a few words for messages that say which teacher this is."""

    def summary(self) -> str:
        """Return one line for the start of a training: origin, size, precision. Called once it is built."""
        return self.describe()

    def check(  # noqa: B027  a teacher may have nothing to check
        self, student: Mapping[str, Any], classes: Sequence[str] = ()
    ) -> None:
        """Check what settings and files tell about this teacher, before anything is built.

        Called when a training is prepared. :meth:`build` checks all of it. Does nothing by default.

        Args:
            student: The ``model`` settings of the student.
            classes: The names of the classes of its data, empty where nothing tells.

        Raises:
            ConfigError: This teacher cannot teach that student.
        """

    def map_channels(self, tap: str | None) -> int:
        """Return the number of channels of a tap's map, None for the logits, before the teacher is built.

        Called when the student is built, so that losses can make layers from one number of channels to
        another. Files that only training needs may be missing then.

        Raises:
            ConfigError: They cannot be found out, as by default.
        """
        raise ConfigError(f'{self.describe()} does not tell the channels of its maps')

    @abstractmethod
    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Get ready to teach ``student``. Called when training starts, never for testing.

        Args:
            student: The mmseg segmentor that will learn.
            taps: Dotted names of the modules whose outputs are wanted, None for the logits.

        Raises:
            ConfigError: This teacher cannot teach that student.
        """

    @abstractmethod
    def __call__(self, inputs: Tensor, data_samples: SampleList) -> Answer:
        """Answer a batch.

        Args:
            inputs: (N, C, H, W) images as the student receives them.
            data_samples: N samples of the data pipeline.
        """

    def accuracy(self, logits: Tensor, seg_label: Tensor, ignore_index: int) -> Tensor:
        """Return the pixel accuracy at the logits' resolution; warn once if it is no better than guessing.

        Args:
            logits: (N, C, h, w), the teacher's.
            seg_label: (N, H, W) class indices, resized by nearest neighbour.
            ignore_index: The label that does not count.

        Returns:
            The accuracy in percent, shape (1,).
        """
        result, label = pixel_accuracy(logits, seg_label, ignore_index)
        self._watch.update(result, label, logits.shape[1], self.describe())
        return result

    @property
    def maps_classes(self) -> bool:
        """True if the teacher's classes are mapped to the student's."""
        return self._class_map is not None

    def check_data(self) -> None:
        """Compare class names with the training data's, once; the Runner tells them when training starts.

        Raises:
            ConfigError: The teacher was trained for other classes than the student's data set has, or its
                ``class_map`` does not fit both.
        """
        if self._data_checked:
            return
        self._data_checked = True
        dataset_meta = MessageHub.get_current_instance().get_info('dataset_meta') or {}
        self.check_classes(tuple(dataset_meta.get('classes') or ()))
        if self.class_map is not None:
            print_log(f'Class map: {self.class_map.describe()}', logger='current')

    def check_classes(self, expected: Sequence[str]) -> None:
        """Compare class names with those of the student's data set, or map them.

        Args:
            expected: The names of the student's classes, empty where they are not known.

        Raises:
            ConfigError: As for :meth:`check_data`.
        """
        if self._class_map is not None:
            for names, owner in ((self.class_names, 'teacher'), (expected, "student's data set")):
                if not names:
                    raise ConfigError(
                        f'teacher.class_map needs the names of the classes, and the {owner} '
                        f'has none ({self.describe()})'
                    )
            self.class_map = ClassMap(self._class_map, self.class_names or (), expected)
        elif self.check_class_names and expected and self.class_names is not None:
            check_class_names(self.class_names, tuple(expected), self.describe())
