"""Transforms that name the image or label map that cannot be used.

:func:`bdd_seg.runtime.guards.data.check_data` writes them into the data pipelines of a config.
"""

import os
import traceback
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmseg.datasets.transforms import LoadAnnotations as LoadSegMap
from mmseg.registry import TRANSFORMS
from PIL import Image

from bdd_seg.errors import ConfigError

# Raised by cv2, Pillow and mmcv where a file is missing or broken.
_BROKEN_FILE = OSError, AssertionError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError


class _Wrapper(BaseTransform):
    """A transform that runs one other transform.

    Args:
        transform: Settings of the other transform.
    """

    def __init__(self, transform: dict[str, Any]) -> None:
        self.wrapped = TRANSFORMS.build(transform)

    def __iter__(self) -> Iterator[Any]:
        # mmcv's cache_random_params looks for transforms within transforms by iterating.
        yield self.wrapped

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.wrapped!r})'


@TRANSFORMS.register_module()
class CheckedLoading(_Wrapper):
    """A transform that loads an image or a label map, and names the file if that fails.

    Args:
        transform: Settings of a ``LoadImageFromFile``, a ``LoadAnnotations``, or of a subclass.

    Raises:
        ConfigError: The file cannot be read; the label map has several channels or a single row or column
            of pixels, or was loaded before; or mmseg's ``LoadAnnotations`` would cut its values to 8 bits.
    """

    def __init__(self, transform: dict[str, Any]) -> None:
        super().__init__(transform)
        self._seen: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load the file that ``results['img_path']`` or ``results['seg_map_path']`` names."""
        image = isinstance(self.wrapped, LoadImageFromFile)
        path = results.get('img_path' if image else 'seg_map_path')
        try:
            results = self.wrapped(results)
        except Exception as error:
            if not isinstance(error, _BROKEN_FILE):  # it may be a bug
                traceback.print_exception(error)
            kind = 'image' if image else 'label map'
            raise ConfigError(f'{kind} {path!r} cannot be read: {_reason(error, path)}') from error
        if not image and results is not None:
            self._check_label_map(results, path)
            self._check_loaded_once(results, path)
        return results

    def _check_loaded_once(self, results: dict[str, Any], path: str | None) -> None:
        fields = results.get('seg_fields', [])
        twice = sorted({field for field in fields if fields.count(field) > 1})
        if twice:
            raise ConfigError(
                f'{type(self.wrapped).__name__} loads label map {path!r} a second time: {twice[0]!r} is '
                'twice in seg_fields, and a flip would turn it twice and its image once. Take the transforms '
                'that load out of one of the two pipelines: of the wrapping data set, or of the one within'
            )

    def _check_label_map(self, results: dict[str, Any], path: str | None) -> None:
        labels, size = results.get('gt_seg_map'), results.get('ori_shape')
        if labels is None or size is None:
            return
        if labels.ndim > len(size):
            raise ConfigError(
                f'label map {path!r} has {labels.shape[-1]} channels, as colours have. Give a PNG whose one '
                'channel, or palette index, is the class'
            )
        if labels.ndim < len(size):  # mmseg squeezes them
            raise ConfigError(f'label map {path!r} has a single row or column of pixels, too few for mmseg')
        if type(self.wrapped) is LoadSegMap and path is not None and path not in self._seen:
            self._seen.add(path)
            _check_bits(path)


@TRANSFORMS.register_module()
class CheckedCrop(_Wrapper):
    """A crop that refuses a label map of another size than its image.

    mmseg's ``RandomCrop`` would take the labels from another place than the pixels, without a warning.

    Args:
        transform: Settings of a ``RandomCrop`` or of a subclass.

    Raises:
        ConfigError: The sizes differ.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Crop the image and its label map."""
        labels = results.get('gt_seg_map')
        if labels is not None and labels.shape[:2] != results['img'].shape[:2]:
            raise _sizes_differ(
                results, labels.shape[:2], results['img'].shape[:2], ' where they are cropped'
            )
        return self.wrapped(results)


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """The last step of a data pipeline, which refuses labels that are no classes.

    Args:
        num_classes: The number of classes. Labels are 0 to ``num_classes - 1``.
        ignore_index: The label of pixels that are ignored.
        match_inputs: Compare the size of the label map with the image that the pipeline makes, as training
            needs it. Otherwise compare it with the image file, to whose size mmseg resizes predictions.

    Raises:
        ConfigError: A label is no class, or the sizes differ.
    """

    def __init__(self, num_classes: int, ignore_index: int | None, match_inputs: bool) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.match_inputs = match_inputs

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Check the label maps in ``results``, which is returned unchanged."""
        sample = results.get('data_samples')
        if sample is None:  # not packed yet: a part of an image that is mixed from several
            self._check(results.get('gt_seg_map'), results, size=None)
            return results
        for one in sample if isinstance(sample, list) else [sample]:  # one image at several scales and flips
            labels = one.get('gt_sem_seg')
            made = getattr(results.get('inputs'), 'shape', None)
            size = made if self.match_inputs else one.get('ori_shape')
            self._check(None if labels is None else labels.data.numpy(), one, size)
        return results

    def _check(self, labels: np.ndarray | None, paths: Any, size: Any) -> None:
        if labels is None or labels.dtype.kind not in 'biu':
            return
        # Read as unsigned, negative numbers are large ones. This saves one pass over the labels.
        unsigned = labels.view(f'u{labels.itemsize}')
        wrong = (unsigned >= self.num_classes) & (labels != self.ignore_index)
        if wrong.any():
            values = np.unique(labels[wrong])
            listed = ', '.join(map(str, values[:5])) + (', ...' if len(values) > 5 else '')
            raise ConfigError(
                f'label map {paths.get("seg_map_path")!r} has labels {listed}; the classes are 0 to '
                f'{self.num_classes - 1}, and {self.ignore_index} is ignored'
            )
        if size is not None and tuple(size[-2:]) != labels.shape[-2:]:
            when = ' when the data pipeline is done' if self.match_inputs else ''
            raise _sizes_differ(paths, labels.shape[-2:], size[-2:], when)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.num_classes}, {self.ignore_index}, {self.match_inputs})'


def _sizes_differ(paths: Any, labels: Any, image: Any, when: str) -> ConfigError:
    return ConfigError(
        f'label map {paths.get("seg_map_path")!r} has {_size_text(labels)} pixels, image '
        f'{paths.get("img_path")!r} {_size_text(image)}{when}. Their files differ in size, or a transform '
        'changes one of the two'
    )


def _reason(error: Exception, path: Any) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return 'it is empty'
    text = ' '.join(str(error).split()).removesuffix(f': {path}')
    return f'is it whole, and an image? ({type(error).__name__}: {text})'


def _check_bits(path: str) -> None:
    """Refuse a label map of 16 or 32 bits whose values mmseg's ``LoadAnnotations`` would take modulo 256."""
    try:
        with Image.open(path) as image:
            # The modes of 16 and 32 bits. Of other files only the header is read.
            highest = np.asarray(image).max() if image.mode[0] in 'IF' else 0
    except (OSError, Image.DecompressionBombError):  # not in the file system, or read by another library
        return
    if highest > 255:
        raise ConfigError(
            f'label map {path!r} has values up to {highest:g}, which mmseg cuts to 8 bits. Classes are 0 to '
            '254, and 255 is ignored'
        )


def _size_text(shape: Any) -> str:
    return '×'.join(map(str, shape))
