"""A teacher that replays cached outputs, warped to each crop."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor

from bdd_seg.distill.taps import named_tap
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.teachers.base import Answer, Teacher
from bdd_seg.teachers.cached.store import Manifest, TeacherCache
from bdd_seg.teachers.classes import check_number_of_classes, number_of_classes
from bdd_seg.teachers.network import NetworkTeacher


@MODELS.register_module()
class CachedTeacher(Teacher):
    """Answers from a cache that ``tools/cache_teacher.py`` wrote, at next to no cost.

    Its answers differ from a live teacher's, which sees the resized, cropped and coloured image: the cached
    ones are for the whole image as it was loaded. Positions outside the image are unknown, and left out.

    It needs a data pipeline that brings the cached outputs along. ``tools/train.py`` sees to that; elsewhere
    call :func:`bdd_seg.teachers.cached.read_teacher_cache` on the config.

    Args:
        cache: The folder.
        check_class_names: As for :class:`~bdd_seg.teachers.Teacher`.
        class_map: As for :class:`~bdd_seg.teachers.Teacher`.
        **teacher: Arguments of the live teacher, as they remain in a config that inherits from one with it.
            The cache must then come from that very teacher.
    """

    gives_masks = True

    def __init__(
        self,
        cache: str,
        check_class_names: bool = True,
        class_map: Mapping[str, str | None] | str | None = None,
        **teacher: Any,
    ) -> None:
        super().__init__(check_class_names, class_map)
        self.cache = TeacherCache(cache)
        self._live = teacher
        self.taps: list[str] = []

    @property
    def is_built(self) -> bool:
        """True once :meth:`build` was called."""
        return bool(self.taps)

    def describe(self) -> str:
        """Return the cache's folder."""
        return f'cache {str(self.cache.folder)!r}'

    def summary(self) -> str:
        """Return the cache's folder, its number of images, and its taps."""
        manifest = self.cache.manifest
        return f'{self.describe()}, {len(manifest.images)} images, {", ".join(self.taps)}'

    def check(self, student: Mapping[str, Any], classes: Sequence[str] = ()) -> None:
        """Check that the cache is complete, and holds the classes that the student has.

        Raises:
            ConfigError: There is no cache, it is not complete, or has another number of classes.
        """
        manifest = self._complete_manifest()
        if classes:
            self._take_class_names(manifest)
            self.check_classes(classes)
        number = number_of_classes(student)
        if number is not None and manifest.num_classes is not None and not self.maps_classes:
            check_number_of_classes(manifest.num_classes, number, self.describe())

    def map_channels(self, tap: str | None) -> int:
        """Return the number of channels, from the cache's first image.

        Raises:
            ConfigError: There is no cache, it is not complete, or lacks the tap.
        """
        manifest = self._complete_manifest()
        name = named_tap(tap, manifest.logits_tap)
        self._check_taps([name])
        return len(self.cache.read_file(next(iter(manifest.images)), [name]).outputs[name])

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        """Check that the cache holds what ``student`` is to learn from.

        Raises:
            ConfigError: There is no cache, it is not complete, lacks a tap, or comes from another teacher.
        """
        manifest = self._complete_manifest()
        if manifest.num_classes is not None and not self.maps_classes:
            check_number_of_classes(manifest.num_classes, student.out_channels, self.describe())
        self._check_fingerprint(manifest.teacher)
        wanted = sorted(
            {named_tap(tap, manifest.logits_tap) for tap in taps}
            | {manifest.logits_tap} & {*manifest.strides}
        )
        self._check_taps(wanted)
        self.taps = wanted
        self.logits_tap = manifest.logits_tap
        self._take_class_names(manifest)

    def __call__(self, inputs: Tensor, data_samples: SampleList) -> Answer:
        """Answer with the cached outputs, resampled to the crops.

        Args:
            inputs: (N, C, H, W), for the size of the crops and the device.
            data_samples: N samples of a :class:`~bdd_seg.teachers.cached.ReadTeacherCache` pipeline.

        Raises:
            ConfigError: The samples bring no outputs of this cache.
        """
        if any(sample.get('teacher_cache') != str(self.cache.folder) for sample in data_samples):
            raise ConfigError(
                f'the training data brings no cached outputs of {self.describe()}. Train with the '
                'tools/train.py of this package, or wrap the pipeline: '
                'dict(type="ReadTeacherCache", cache=FOLDER, transforms=[...])'
            )
        manifest = self.cache.manifest
        crop = inputs.shape[2:]
        outputs, masks = {}, {}
        for tap in self.taps:
            size = [-(-length // stride) for length, stride in zip(crop, manifest.strides[tap], strict=True)]
            # Coordinates that run from -1 to 1 over an image, as torch resamples in.
            from_cells = np.linalg.inv(_normalisation(crop, manifest.align_corners))
            read_from, lie_at = [], []
            for sample in data_samples:
                to_input = _normalisation(sample.teacher_input_shape, manifest.align_corners)
                to_image = _normalisation(sample.loaded_shape, align_corners=False)
                read_from.append(to_input @ sample.teacher_geometry @ from_cells)
                lie_at.append(to_image @ sample.geometry @ from_cells)
            grids = _grids(read_from, size, manifest.align_corners).to(inputs)
            outputs[tap] = torch.cat(
                [
                    F.grid_sample(
                        sample.get(f'teacher/{tap}')[None].to(inputs.dtype),
                        grid[None],
                        padding_mode='border',
                        align_corners=manifest.align_corners,
                    )
                    for sample, grid in zip(data_samples, grids, strict=True)
                ]
            )
            inside = _grids(lie_at, size, manifest.align_corners).abs().amax(dim=-1) <= 1
            masks[tap] = inside.to(inputs.device)
        return Answer(outputs, masks)

    def _complete_manifest(self) -> Manifest:
        manifest = self.cache.manifest
        if not manifest.images:
            raise ConfigError(f'{self.describe()} is not complete; run tools/cache_teacher.py again')
        return manifest

    def _take_class_names(self, manifest: Manifest) -> None:
        self.class_names = None if manifest.class_names is None else tuple(manifest.class_names)

    def _check_taps(self, wanted: Iterable[str]) -> None:
        strides, wanted = self.cache.manifest.strides, sorted(wanted)
        for tap in wanted:
            if tap not in strides:
                raise ConfigError(
                    f'{self.describe()} holds {", ".join(strides)}, not {tap!r}; make another: '
                    f'tools/cache_teacher.py CONFIG --out ANOTHER_FOLDER --taps {" ".join(wanted)}'
                )

    def _check_fingerprint(self, cached: dict[str, Any]) -> None:
        """Compare with the live teacher that the config names, as far as it is on this machine."""
        if not self._live:
            return
        # Looked up here and not by build(), which imports what a dotted name in a foreign file says.
        name = cached.get('type', 'MMSegTeacher')
        kind = MODELS.module_dict.get(name)
        if kind is None or not issubclass(kind, NetworkTeacher):
            raise ConfigError(
                f'{self.describe()} comes from a {name}, which is no teacher here. Import the module of that '
                "class by custom_imports, or make a cache of the config's teacher"
            )
        try:
            teacher = kind(**self._live)
        except TypeError as error:
            raise ConfigError(
                f'{self.describe()} comes from a {name}, and the config gives it other arguments than that '
                f"takes: {first_line(error)}. Correct them, or make a cache of the config's teacher"
            ) from None
        fresh = teacher.fingerprint()
        for key in sorted({*fresh, *cached}):
            expected = fresh.get(key)
            if key == 'checkpoint' and expected is None:
                continue
            if cached.get(key) != expected:
                raise ConfigError(
                    f'{self.describe()} comes from another teacher than the config names '
                    f'({teacher.describe()}): its {key} is '
                    f'{_short(cached.get(key))}, not {_short(expected)}. Make a cache of this teacher'
                )


def _normalisation(shape: Sequence[int], align_corners: bool) -> np.ndarray:
    """Return the (3, 3) matrix from pixels to -1 … 1, between outer pixel centres or outer pixel edges."""
    matrix = np.eye(3)
    for axis, length in enumerate((shape[1], shape[0])):
        span = max(length - 1, 1) if align_corners else length
        matrix[axis, axis] = 2 / span
        matrix[axis, 2] = -1 if align_corners else 1 / span - 1
    return matrix


def _grids(matrices: list[np.ndarray], size: Sequence[int], align_corners: bool) -> Tensor:
    """Return (N, h, w, 2) where each cell comes from, by N matrices between coordinates from -1 to 1."""
    theta = torch.from_numpy(np.stack(matrices)[:, :2])
    return F.affine_grid(theta, [len(matrices), 1, *size], align_corners=align_corners)


def _short(value: Any) -> str:
    return f'{value[:12]}...' if isinstance(value, str) and len(value) == 64 else repr(value)
