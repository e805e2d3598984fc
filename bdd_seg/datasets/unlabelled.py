"""Images without labels, alone or beside labelled ones."""

import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform, LoadAnnotations
from mmengine.dataset import ConcatDataset, InfiniteSampler
from mmengine.fileio import list_dir_or_file, list_from_file
from mmseg.datasets import BaseSegDataset, MultiImageMixDataset
from mmseg.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS

from bdd_seg.datasets.frames import extract_frames
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import leaf_datasets, type_name

_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@DATASETS.register_module()
class UnlabelledImages(BaseSegDataset):
    """Images without labels: every pixel of their label maps is ignored.

    Any pipeline of a labelled data set works unchanged. Where it loads labels (``LoadAnnotations`` and its
    subclasses), a label map of the image's size that is full of ``ignore_index`` is made instead.

    Args:
        images: A folder, searched with all folders in it; a list of files; a ``.txt`` file with a path in
            each line; or a video.
        pipeline: As for any data set. In a :class:`WithUnlabelled` by default that of the labelled data set.
        stride: Every n-th image, or frame of the video, is taken.
        frames_folder: The folder into which the frames of a video are written, once.
        img_suffix: The suffix, or suffixes, of the files that count in a folder, in small or capital letters.
        data_root: The folder that relative paths in ``images`` start from. By default the current one.
        metainfo: Names and colours of the classes, as for any data set. In a :class:`WithUnlabelled` those
            of the labelled data set.
        ignore_index: The label that the model's heads ignore.
        indices: The first n images, or the positions of those to take, as in mmengine's ``BaseDataset``.
        test_mode: An image that the pipeline rejects is an error, not replaced by another.
        lazy_init: The images are not looked for when this is built.

    Raises:
        ConfigError: ``stride`` or ``ignore_index`` is out of range. When the images are looked for: there is
            none, one does not exist, or the video cannot be read.
    """

    def __init__(
        self,
        images: str | Sequence[str],
        pipeline: Sequence[Any] = (),
        stride: int = 1,
        frames_folder: str = 'work_dirs/frames',
        img_suffix: str | Sequence[str] = _SUFFIXES,
        data_root: str | None = None,
        metainfo: dict | None = None,
        ignore_index: int = 255,
        indices: int | Sequence[int] | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        if not isinstance(stride, int) or stride < 1:
            raise ConfigError(f'UnlabelledImages.stride must be a whole number from 1 on, got {stride!r}')
        if ignore_index not in range(256):
            raise ConfigError(f'UnlabelledImages.ignore_index must be from 0 to 255, got {ignore_index!r}')
        self.images, self.stride, self.frames_folder = images, stride, frames_folder
        super().__init__(
            img_suffix=tuple(
                suffix.lower() for suffix in ([img_suffix] if isinstance(img_suffix, str) else img_suffix)
            ),
            pipeline=[without_labels(transform, ignore_index) for transform in pipeline],
            data_root=data_root,
            metainfo=metainfo,
            ignore_index=ignore_index,
            indices=indices,
            lazy_init=lazy_init,
        )
        self.test_mode = test_mode  # only now: the base class would insist on class names

    @classmethod
    def get_label_map(cls, new_classes: Sequence | None = None) -> None:
        """Return None: there are no labels to be mapped to other classes."""

    def load_data_list(self) -> list[dict]:
        """Return the data set's entries, one for each image.

        Raises:
            ConfigError: See the class.
        """
        paths = self._paths()
        return [{'img_path': path, 'seg_fields': []} for path in paths]

    def _paths(self) -> list[str]:
        root = self.data_root or ''
        if not isinstance(self.images, str | os.PathLike):
            return self._checked([os.path.join(root, path) for path in self.images], 'its list')
        source = os.path.join(root, self.images)
        if os.path.isdir(source):
            files = list_dir_or_file(source, list_dir=False, recursive=True)
            found = sorted(file for file in files if file.lower().endswith(self.img_suffix))
            if not found:
                raise ConfigError(f'UnlabelledImages: no image ({", ".join(self.img_suffix)}) in {source!r}')
            return [os.path.join(source, path) for path in found[:: self.stride]]
        if not os.path.exists(source):
            raise ConfigError(
                f'UnlabelledImages: images={source!r} does not exist. Give a folder, a list of files, a .txt '
                'file with a path in each line, or a video'
            )
        if source.endswith('.txt'):
            lines = [line.strip() for line in list_from_file(source)]
            return self._checked([os.path.join(root, line) for line in lines if line], repr(source))
        return extract_frames(source, self.stride, self.frames_folder)

    def _checked(self, paths: list[str], origin: str) -> list[str]:
        """Return every n-th of some listed paths, which must exist."""
        if not paths:
            raise ConfigError(f'UnlabelledImages: {origin} names no image')
        absent = [path for path in paths if not os.path.isfile(path)]
        if absent:
            raise ConfigError(
                f'UnlabelledImages: {len(absent)} of {len(paths)} images that {origin} names do not exist, '
                f'the first: {absent[0]!r}. Paths start from data_root, or from the current folder'
            )
        return paths[:: self.stride]


def without_labels(transform: Any, ignore_index: int) -> Any:
    """Return a transform's settings with :class:`IgnoreAll` in place of whatever loads labels.

    Args:
        transform: Settings of a transform, of several, or of a part of one. What is built already stays.
        ignore_index: The label to write.
    """
    if isinstance(transform, list | tuple):
        return type(transform)(without_labels(item, ignore_index) for item in transform)
    if not isinstance(transform, Mapping):
        return transform
    # The check that names a label map which cannot be read goes with what it checks.
    inner = transform['transform'] if type_name(transform) == 'CheckedLoading' else transform
    kind = inner.get('type')
    kind = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    if isinstance(kind, type) and issubclass(kind, LoadAnnotations):
        return {'type': 'IgnoreAll', 'ignore_index': ignore_index}
    return {key: without_labels(item, ignore_index) for key, item in transform.items()}


@TRANSFORMS.register_module()
class IgnoreAll(BaseTransform):
    """A label map in which every pixel is ignored, (H, W) uint8 for an image (H, W, channels).

    Args:
        ignore_index: The label to write.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        """Write ``results['gt_seg_map']``, and name it among the ``seg_fields``."""
        results['gt_seg_map'] = np.full(results['img'].shape[:2], self.ignore_index, np.uint8)
        results['seg_fields'].append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.ignore_index})'


@DATASETS.register_module()
class WithUnlabelled(ConcatDataset):
    """A labelled data set, and images without labels after it. :class:`MixedSampler` draws from both.

    Args:
        dataset: Settings of the labelled data set.
        unlabelled: Settings of one or several :class:`UnlabelledImages`. Their classes, and by default their
            pipeline, are those of the labelled data set.
        lazy_init: The images are not looked for when this is built.

    Raises:
        ConfigError: The labelled data set mixes several images into one, and ``unlabelled`` has no pipeline;
            or ``unlabelled`` is another data set.
    """

    def __init__(self, dataset: dict, unlabelled: dict | list[dict], lazy_init: bool = False) -> None:
        several = unlabelled if isinstance(unlabelled, list) else [unlabelled]
        first, _ = next(leaf_datasets(dataset, ''))
        pipeline = first.get('pipeline', [])
        labelled = DATASETS.build(dataset)
        if isinstance(labelled, MultiImageMixDataset) and any(
            one.get('pipeline', pipeline) == pipeline for one in several
        ):
            raise ConfigError(
                'WithUnlabelled: the labelled data set mixes several images into one (MultiImageMixDataset). '
                'Give unlabelled a pipeline of its own'
            )
        # mmengine's own __init__ refuses data sets that are built already and wrap others.
        self.datasets = [labelled]
        for one in several:
            images = DATASETS.build({'pipeline': pipeline, **one, 'metainfo': labelled.metainfo})
            if not isinstance(images, UnlabelledImages):  # its labels would count
                raise ConfigError(
                    f'WithUnlabelled: unlabelled.type must be UnlabelledImages, got {type(images).__name__}'
                )
            self.datasets.append(images)
        self._metainfo = labelled.metainfo
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()


@DATA_SAMPLERS.register_module()
class MixedSampler(InfiniteSampler):
    """Draws labelled and unlabelled images in a fixed ratio, without end.

    The share holds in each batch of each process, to one image, whatever the batch size. Both kinds are
    shuffled on their own, by the seed; each image comes once before any of its kind comes again.

    Args:
        dataset: A :class:`WithUnlabelled`.
        unlabelled: The share of images without labels, from 0 to 1.
        shuffle: Whether to shuffle each kind.
        seed: By default the run's.

    Raises:
        ConfigError: The share is out of range, or the data set is no :class:`WithUnlabelled`.
    """

    def __init__(
        self, dataset: Any, unlabelled: float = 0.5, shuffle: bool = True, seed: int | None = None
    ) -> None:
        if not isinstance(unlabelled, int | float) or not 0 <= unlabelled <= 1:
            raise ConfigError(f'MixedSampler.unlabelled must be a share from 0 to 1, got {unlabelled!r}')
        if not isinstance(dataset, WithUnlabelled):
            raise ConfigError(
                'MixedSampler: the data set has no images without labels, it is a '
                f'{type(dataset).__name__}. Give it type="WithUnlabelled", or take an InfiniteSampler'
            )
        super().__init__(dataset, shuffle, seed)
        # Exact, and what was meant: 0.29 * 100 is less than 29, and the float 2 / 3 less than two thirds.
        self.share = Fraction(unlabelled).limit_denominator(1000)
        self.num_labelled = len(dataset.datasets[0])

    def _infinite_indices(self) -> Iterator[int]:
        """Yield the indices for all processes; each takes every n-th."""
        labelled = self._shuffled(range(self.num_labelled), self.seed)
        unlabelled = self._shuffled(range(self.num_labelled, self.size), self.seed + 1)
        numerator, denominator = self.share.as_integer_ratio()
        for position in count():  # in the sequence of each process
            before, after = (n * numerator // denominator for n in (position, position + 1))
            yield from islice(unlabelled if after > before else labelled, self.world_size)

    def _shuffled(self, indices: range, seed: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            if self.shuffle:
                yield from (indices[i] for i in torch.randperm(len(indices), generator=generator).tolist())
            else:
                yield from indices
