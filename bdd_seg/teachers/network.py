"""Teachers that run a network: what all kinds of them share."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmseg
import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.models import BaseSegmentor
from mmseg.utils import SampleList
from torch import Tensor, nn

from bdd_seg.distill.taps import LOGITS, check_map, check_taps, named_tap
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream import bfloat16
from bdd_seg.runtime.upstream.checkpoints import weights_digest
from bdd_seg.teachers.base import Answer, Teacher
from bdd_seg.teachers.classes import check_number_of_classes
from bdd_seg.teachers.frozen import PRECISIONS, FrozenModule
from bdd_seg.teachers.normalise import Normalisation, as_data, renormalise
from bdd_seg.teachers.recording import Recording


@dataclass(frozen=True)
class Network:
    """A trained network, and what is to be known of it.

    Attributes:
        model: The network, with its weights.
        forward: Called as ``forward(model, images)`` to run it, images being (N, bands, H, W) normalised as
            it expects. Returns the class logits (N, C, h, w) where ``logits_tap`` is ``'logits'``; else what
            it returns is not used.
        logits_tap: ``'logits'``, or the module that puts them out; None for a network without classes.
        num_classes: C, None where there are none.
        normalisation: That of its input.
        class_names: None where nothing tells.
        input_size: (H, W) if it takes images of this size only.
        bands: The number of channels of its images, None where nothing tells.
        align_corners: How its cells relate to pixels.
        read: Called as ``read(model, images, name, output)`` to make a map (N, C, h, w) of what a tapped
            module put out, such as tokens; None where modules put out maps.
    """

    model: nn.Module
    forward: Callable[[nn.Module, Tensor], Any]
    logits_tap: str | None
    num_classes: int | None
    normalisation: Normalisation = field(default_factory=Normalisation)
    class_names: tuple[str, ...] | None = None
    input_size: tuple[int, int] | None = None
    bands: int | None = None
    align_corners: bool = False
    read: Callable[[nn.Module, Tensor, str, Any], Any] | None = None


class NetworkTeacher(Teacher):
    """A teacher that runs a frozen network on each batch; a kind of network writes :meth:`load`.

    Copying or pickling copies the settings, not the network.

    Args:
        check_class_names: As for :class:`~bdd_seg.teachers.Teacher`.
        class_map: As for :class:`~bdd_seg.teachers.Teacher`.
        precision: None for the student's, that of the autocast it runs in, if any. ``'bf16'`` for bfloat16
            autocast with weights kept in bfloat16, which changes the answers slightly.
        compile: Whether to run through ``torch.compile``. Worth the wait on long runs; where it cannot
            compile, a warning says so and the teacher runs without.
        input_size: (H, W), or one number for both, to which its images are resized, for networks that take
            one size only. Known by itself where the network tells.
        channels: Which channels of the student's images it gets, in the order in which it expects them, such
            as ``[0, 1, 2]`` of five bands. All by default.
        record: A folder in which its answers are recorded, and from which they are replayed where the images
            are the same, as in trainings with one seed. Exact to float16. See
            :class:`~bdd_seg.teachers.recording.Recording`.

    Raises:
        ConfigError: An unknown precision, or a size or channels that are none.
    """

    def __init__(
        self,
        check_class_names: bool = True,
        class_map: Mapping[str, str | None] | str | None = None,
        precision: str | None = None,
        compile: bool = False,
        input_size: int | Sequence[int] | None = None,
        channels: Sequence[int] | None = None,
        record: str | Path | None = None,
    ) -> None:
        super().__init__(check_class_names, class_map)
        if precision not in PRECISIONS:
            raise ConfigError(f"teacher.precision must be None or 'bf16', got {precision!r}")
        self.precision = precision
        self.compile = compile
        self.input_size = _checked_size(input_size)
        if channels is not None and (
            not channels or not all(isinstance(c, int) and c >= 0 for c in channels)
        ):
            raise ConfigError(
                f'teacher.channels must be a list of channel numbers from 0 on, got {channels!r}'
            )
        self.input_channels = None if channels is None else list(channels)
        self.record = record
        self._recording: Recording | None = None
        self._weights = ''
        self.network: FrozenModule | None = None
        self._facts: Network | None = None
        self._source = Normalisation()
        self._has_answered = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), 'network': None, '_facts': None, '_recording': None}

    @abstractmethod
    def load(self, taps: Sequence[str | None]) -> Network:
        """Build the network and load its weights, drawing no random numbers of the run.

        Args:
            taps: The maps that are wanted, None for the logits.

        Raises:
            ConfigError: It cannot be built, or the weights do not fit.
        """

    @property
    def is_built(self) -> bool:
        """True once :meth:`build` was called."""
        return self.network is not None

    @property
    def model(self) -> Any:
        """The network, once it is built."""
        assert self.network is not None, 'build() comes first'
        return self.network.model

    @property
    def facts(self) -> Network:
        """Facts about the network, known once it is built."""
        assert self._facts is not None, 'build() comes first'
        return self._facts

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(H, W) to which its images are resized, None if they are not; known once it is built."""
        return self.input_size or self.facts.input_size

    @property
    def taps(self) -> list[str]:
        """Names of the maps it answers with, once it is built."""
        assert self.network is not None, 'build() comes first'
        return self.network.taps

    def title(self) -> str:
        """Return what the summary begins with: which network, which weights."""
        return self.describe()

    def summary(self) -> str:
        """Return the title, the parameters, and the precision."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        precision = "the student's precision" if self.precision is None else self.precision
        compiled = ', compiled' if self.compile else ''
        recorded = '' if self.record is None else f', recorded in {str(self.record)!r}'
        size = f'{parameters / 1e6:.2f} M parameters'
        return f'{self.title()}, {size}, {precision}{compiled}{self._resized()}{recorded}'

    def _resized(self) -> str:
        """Return the end of a summary, which tells the size to which images are resized."""
        size = self.fixed_size
        return f', images resized to {size[0]}×{size[1]}' if size else ''

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Load the network, and check that it can teach ``student``.

        Raises:
            ConfigError: As :meth:`load`; or a tap names nothing in it, the logits of a network without
                classes are wanted, it predicts another number of classes, or takes other channels.
        """
        taps = list(taps)
        facts = self.load(taps)
        if facts.logits_tap is None and {None, LOGITS} & {*taps}:
            raise ConfigError(
                f'teacher ({self.describe()}): it has no class logits. Compare features: give each loss '
                "student_tap and teacher_tap, such as teacher_tap='...'"
            )
        if facts.num_classes is not None and not self.maps_classes:
            check_number_of_classes(facts.num_classes, student.out_channels, self.describe())
        self._check_bands(facts.bands, input_bands(student))
        self.class_names = facts.class_names
        self.logits_tap = facts.logits_tap or ''
        wanted = {named_tap(tap, self.logits_tap) for tap in taps}
        if self.logits_tap:  # for the accuracy, wanted or not
            wanted.add(self.logits_tap)
        check_taps(facts.model, wanted - {LOGITS}, f'teacher ({self.describe()})')
        self._source = Normalisation.of(student.data_preprocessor)
        self._facts = facts
        if self.record is not None:  # now, since BatchNorm is folded before the first answer
            self._weights = weights_digest(facts.model.state_dict())
        self.network = FrozenModule(
            facts.model, wanted, facts.forward, self.precision, self.compile, facts.read
        )
        if self.precision == 'bf16':
            bfloat16.warn_if_slow(
                "model.teacher.precision='bf16'",
                'A training step was measured there at 12.4 times one without a teacher. Use precision=None, '
                'or a CachedTeacher',
            )

    def __call__(self, inputs: Tensor, data_samples: SampleList | None = None) -> Answer:
        """Answer with the tapped maps, known everywhere.

        Args:
            inputs: (N, C, H, W) images as the student receives them. They are normalised anew where the
                teacher was trained with another normalisation. The teacher follows them to their device and
                dtype.
            data_samples: Not needed.

        Raises:
            ConfigError: The network fails on its first images, or a tap puts out what is no map of them.
        """
        if self.record is None or not torch.is_grad_enabled():  # such as a first look at whole images
            return Answer(self._run(inputs))
        if self._recording is None:
            self._recording = Recording(self.record, self._conditions(inputs.device.type))
        return Answer(self._recording.answer(inputs, self.taps, self._run))

    def _run(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the maps that the network answers with."""
        assert self.network is not None, 'build() comes first'
        images = self.prepare(inputs)
        try:
            maps = self.network(images)
        except (ConfigError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if self._has_answered:
                raise
            raise ConfigError(
                f'teacher ({self.describe()}): it fails on images {tuple(images.shape)} '
                f'({first_line(error)}). If it takes images of one size, or of certain '
                'multiples, set teacher.input_size'
            ) from error
        self._has_answered = True
        for tap, output in maps.items():
            check_map(output, images, self.network.model, tap, f'teacher ({self.describe()})')
        return maps

    def _conditions(self, device: str) -> dict[str, Any]:
        """Return what its answers depend on beside the images, as plain data."""
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        return {
            **self.fingerprint(),
            'weights': self._weights,
            'images_normalised': as_data(self._source),
            'device': device,
            'autocast': autocast,
            'compile': self.compile,
            'versions': {module.__name__: module.__version__ for module in (torch, mmseg)},
        }

    def prepare(self, inputs: Tensor) -> Tensor:
        """Return the student's images (N, C, H, W) as the teacher's network expects them."""
        images = renormalise(inputs, self._source, self.facts.normalisation, self.input_channels)
        size = self.fixed_size
        if size is not None and tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode='bilinear', align_corners=False)
        return images

    @property
    def renormalises(self) -> bool:
        """True if its images are normalised in another way than the student's, once it is built."""
        return self._source != self.facts.normalisation

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the answers of this teacher from those of another, as plain data."""
        changes = {'input_size': self.input_size, 'channels': self.input_channels}
        kind = {} if type(self).__name__ == 'MMSegTeacher' else {'type': type(self).__name__}
        return {
            **kind,
            'precision': self.precision,
            **{key: list(value) for key, value in changes.items() if value is not None},
        }

    def _check_bands(self, own: int | None, images: int | None) -> None:
        if self.input_channels is not None:
            if images is not None and max(self.input_channels) >= images:
                raise ConfigError(
                    f"teacher.channels={self.input_channels}: the student's images have {images} channels, "
                    f'numbered from 0 to {images - 1}'
                )
            images = len(self.input_channels)
        if own is not None and images is not None and own != images:
            advice = (
                f'. Choose {own} of them with teacher.channels={list(range(own))}' if own < images else ''
            )
            raise ConfigError(
                f'the teacher ({self.describe()}) takes images of {own} channels, and gets {images}{advice}'
            )


def input_bands(model: nn.Module) -> int | None:
    """Return the number of channels of a network's images, that of its first convolution."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), None)


def _checked_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else (*size, 0, 0)[:2]
    if not all(isinstance(length, int) and length > 0 for length in (height, width)):
        raise ConfigError(f'teacher.input_size must be a number of pixels or (height, width), got {size!r}')
    return height, width
