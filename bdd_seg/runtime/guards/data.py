"""Images and label maps that cannot be trained on are found as they are loaded, and named."""

import os
import traceback
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.datasets.transforms import LoadAnnotations as LoadSegMap
from mmseg.datasets.transforms import RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import HOOKS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.models import unwrapped

# What cv2, Pillow and mmcv raise where a file is missing or broken.
_BROKEN_FILE = OSError, AssertionError, ValueError, SyntaxError, cv2.error, Image.DecompressionBombError


@HOOKS.register_module()
class BatchCheckHook(Hook):
    """Looks at each image and label map as it is loaded, in training, validation and testing.

    A label beyond the classes would end a training on a GPU with no word about where it comes from, and
    mmseg's IoUMetric would leave it out in silence; as silently, mmseg cuts label maps of 16 bits to 8. It
    is the data loader's processes that look; it takes them 0.4 ms for a crop of 512×1024. Labels of heads
    with losses of their own, and of other metrics, may mean something else and are left alone.

    Raises:
        ConfigError: When training starts: the data set has more classes than a head of the model. While
            images are loaded, with the file's name: one cannot be read; a label is beyond the classes; a
            label map has several channels, or values that 8 bits cannot hold, or is of another size than its
            image where training crops both, where the data pipeline ends, or where mmseg evaluates.
    """

    def before_train(self, runner: Runner) -> None:
        classes = _number_of_classes(runner.train_dataloader.dataset)
        heads = {key: head for key, head in _heads(runner.model) if _takes_labels_as_they_are(head)}
        for key, head in heads.items():
            if classes is not None and classes > _number_of_labels(head):
                raise ConfigError(
                    f'{key}.num_classes is {head.num_classes}, but the data set of train_dataloader has '
                    f'{classes} classes. Set {key}.num_classes={classes}, and so for the other heads'
                )
        check = None
        if heads:
            number = min(map(_number_of_labels, heads.values()))
            check = _LabelCheck(number, next(iter(heads.values())).ignore_index, as_large_as_image=True)
        _check_samples(runner.train_dataloader, check)

    def before_val(self, runner: Runner) -> None:
        _check_evaluated(runner.val_dataloader, getattr(runner.val_loop, 'evaluator', None))

    def before_test(self, runner: Runner) -> None:
        _check_evaluated(runner.test_dataloader, getattr(runner.test_loop, 'evaluator', None))


def _check_evaluated(loader: DataLoader, evaluator: Evaluator | None) -> None:
    classes = _number_of_classes(loader.dataset)
    metrics = getattr(evaluator, 'metrics', [])
    ignored = {getattr(metric, 'ignore_index', 255) for metric in metrics}
    check = None
    if classes is not None and len(ignored) == 1 and all(isinstance(one, IoUMetric) for one in metrics):
        check = _LabelCheck(max(classes, 2), ignored.pop(), as_large_as_image=False)
    _check_samples(loader, check)


def _check_samples(loader: DataLoader, check: '_LabelCheck | None') -> None:
    """Let a data loader check what it loads, from its next epoch on."""
    for pipeline in _pipelines(loader.dataset):
        _check_loading([pipeline])
        pipeline.transforms = [step for step in pipeline.transforms if not isinstance(step, _LabelCheck)]
        pipeline.transforms += [] if check is None else [check]


def name_files(dataset: Dataset) -> None:
    """Let a data set name the file where one cannot be read, or is no use."""
    for pipeline in _pipelines(dataset):
        _check_loading([pipeline])


def _pipelines(dataset: Dataset) -> Iterator[Compose]:
    """That of a data set, or of those that it wraps."""
    inner = [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())]
    wrapped = [one for one in inner if isinstance(one, Dataset)]
    pipeline = getattr(dataset, 'pipeline', None)
    if not wrapped and isinstance(pipeline, Compose):
        yield pipeline
    for one in wrapped:
        yield from _pipelines(one)


def _check_loading(steps: list) -> None:
    for i, step in enumerate(steps):
        if isinstance(step, LoadImageFromFile | LoadAnnotations):
            steps[i] = _Loading(step)
        elif isinstance(step, RandomCrop):
            steps[i] = _Cropping(step)
        elif isinstance(step, Compose):
            _check_loading(step.transforms)
        else:  # what wraps others: FollowGeometry, TestTimeAug, mmcv's Compose and RandomChoice
            for name in ('pipeline', 'subroutines', 'transforms'):
                inner = getattr(step, name, [])
                if isinstance(inner, tuple):  # in which none can be replaced
                    inner = list(inner)
                    setattr(step, name, inner)
                _check_loading(inner if isinstance(inner, list) else [inner])


class _Loading:
    """A transform that loads something, which names the file where that fails, or is no use."""

    def __init__(self, transform: LoadImageFromFile | LoadAnnotations) -> None:
        self.transform = transform
        self._seen: set[str] = set()

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        image = isinstance(self.transform, LoadImageFromFile)
        path = results.get('img_path' if image else 'seg_map_path')
        try:
            results = self.transform(results)
        except Exception as error:
            if not isinstance(error, _BROKEN_FILE):  # it may be a bug
                traceback.print_exception(error)
            what = 'image' if image else 'label map'
            raise ConfigError(f'{what} {path!r} cannot be read: {_reason(error, path)}') from error
        if not image and results is not None:
            self._check_label_map(results, path)
        return results

    def __repr__(self) -> str:
        return repr(self.transform)

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
        if type(self.transform) is LoadSegMap and path is not None and path not in self._seen:
            self._seen.add(path)
            _check_bits(path)


class _Cropping:
    """A crop of images and label maps of one size: of a larger map it would take another place in silence."""

    def __init__(self, transform: RandomCrop) -> None:
        self.transform = transform

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        labels = results.get('gt_seg_map')
        if labels is not None and labels.shape[:2] != results['img'].shape[:2]:
            raise _sizes_differ(
                results, labels.shape[:2], results['img'].shape[:2], ' where they are cropped'
            )
        return self.transform(results)

    def __repr__(self) -> str:
        return repr(self.transform)


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
    """mmseg's ``LoadAnnotations`` takes the values of any label map modulo 256."""
    try:
        with Image.open(path) as image:
            # The modes of 16 and 32 bits; most files are done with when their header is read.
            highest = np.asarray(image).max() if image.mode[0] in 'IF' else 0
    except (OSError, Image.DecompressionBombError):  # not in the file system, or read by another library
        return
    if highest > 255:
        raise ConfigError(
            f'label map {path!r} has values up to {highest:g}, which mmseg cuts to 8 bits. Classes are 0 to '
            '254, and 255 is ignored'
        )


class _LabelCheck:
    """The last step of a data pipeline: labels must be classes, or ignored, and as many as pixels.

    Args:
        number: How many classes there are.
        ignore_index: The label that is none.
        as_large_as_image: Whether the image's size is the one that the pipeline makes, as training needs it,
            or the one on disk, to which mmseg resizes what it predicts.
    """

    def __init__(self, number: int, ignore_index: int, as_large_as_image: bool) -> None:
        self.number, self.ignore_index = number, ignore_index
        self.as_large_as_image = as_large_as_image

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        sample = results.get('data_samples')
        if sample is None:  # not packed yet: a part of what will be mixed into one image
            self._check(results.get('gt_seg_map'), results, size=None)
            return results
        for one in sample if isinstance(sample, list) else [sample]:  # one image at several scales and flips
            labels = one.get('gt_sem_seg')
            made = getattr(results.get('inputs'), 'shape', None)
            size = made if self.as_large_as_image else one.get('ori_shape')
            self._check(None if labels is None else labels.data.numpy(), one, size)
        return results

    def _check(self, labels: np.ndarray | None, paths: Any, size: Any) -> None:
        if labels is None or labels.dtype.kind not in 'biu':
            return
        # Seen as unsigned, negative numbers are large ones. One pass less, and twice as fast as in torch.
        unsigned = labels.view(f'u{labels.itemsize}')
        wrong = (unsigned >= self.number) & (labels != self.ignore_index)
        if wrong.any():
            values = np.unique(labels[wrong])
            listed = ', '.join(map(str, values[:5])) + (', ...' if len(values) > 5 else '')
            raise ConfigError(
                f'label map {paths.get("seg_map_path")!r} has labels {listed}; the classes are 0 to '
                f'{self.number - 1}, and {self.ignore_index} is ignored'
            )
        if size is not None and tuple(size[-2:]) != labels.shape[-2:]:
            when = ' when the data pipeline is done' if self.as_large_as_image else ''
            raise _sizes_differ(paths, labels.shape[-2:], size[-2:], when)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.number}, {self.ignore_index})'


def _heads(model: nn.Module) -> Iterator[tuple[str, BaseDecodeHead]]:
    """The model's heads, each with its key in the config."""
    model = unwrapped(model)
    for key in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, key, None)
        if isinstance(heads, nn.ModuleList):
            found = ((f'model.{key}.{i}', head) for i, head in enumerate(heads))
            yield from ((name, head) for name, head in found if isinstance(head, BaseDecodeHead))
        elif isinstance(heads, BaseDecodeHead):
            yield f'model.{key}', heads


def _takes_labels_as_they_are(head: BaseDecodeHead) -> bool:
    """Heads with a loss function of their own may learn something else from them, such as edges."""
    classifies = hasattr(head, 'ignore_index') and hasattr(head, 'num_classes')  # not so heads for depth
    return classifies and type(head).loss_by_feat is BaseDecodeHead.loss_by_feat


def _number_of_labels(head: BaseDecodeHead) -> int:
    return max(head.num_classes, 2)  # one class has a background, too


def _number_of_classes(dataset: Dataset) -> int | None:
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return None if classes is None else len(classes)


def _size_text(shape: Any) -> str:
    return '×'.join(map(str, shape))
