"""Tell at the start of a training how good the teacher is on images of the validation set."""

import time
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.evaluation import IoUMetric
from mmseg.models.utils import resize
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample
from torch import Tensor

from bdd_seg.distill.taps import last_head
from bdd_seg.errors import first_line
from bdd_seg.runtime.guards.seeding import random_state_kept
from bdd_seg.teachers.metafile import published


@HOOKS.register_module()
class TeacherFirstLookHook(Hook):
    """Logs the teacher's mIoU on a few validation images before the first iteration.

    A wrong order of channels or classes, or a wrong normalisation, is then seen in the first minute. Beside
    it stands the figure of mmseg's metafile, where the teacher's config is one of mmseg's. Nothing is logged
    without labels, in a resumed training, for a cached teacher, or for a compiled one, which would compile
    for another size of images.

    Args:
        images: How many images, spread evenly over the validation set.
        seconds: No further image is begun after this time.
    """

    priority = 'LOWEST'

    def __init__(self, images: int = 8, seconds: float = 10.0) -> None:
        self.images = images
        self.seconds = seconds

    def before_train_epoch(self, runner: Runner) -> None:  # after the summary, which before_train logs
        """Run the teacher and log one line."""
        model = getattr(runner.model, 'module', runner.model)
        teacher = getattr(model, 'teacher', None)
        if teacher is None or runner.iter or runner.val_loop is None:
            return
        compiles = any(getattr(one, 'compile', False) for one in getattr(teacher, 'teachers', [teacher]))
        if teacher.gives_masks or compiles:
            return
        teacher.check_data()
        if not is_main_process() or not teacher.logits_tap:
            return
        dataset = runner.val_loop.dataloader.dataset
        count = min(self.images, len(dataset))
        begin, areas, seen = time.monotonic(), [], 0
        with random_state_kept():
            for number in range(count):
                try:
                    areas += _areas(model, dataset[number * len(dataset) // count])
                except Exception as error:  # whole images may not fit the memory or the network as crops do
                    runner.logger.info(f'teacher not tried on whole validation images: {first_line(error)}')
                    break
                seen += 1
                if time.monotonic() > begin + self.seconds:
                    break
        if areas:
            intersection, union = torch.stack(areas).sum(0)
            miou = 100 * (intersection / union)[union > 0].mean().item()
            size = getattr(teacher, 'fixed_size', None)
            resized = f', resized to {size[0]}×{size[1]}' if size else ''
            runner.logger.info(
                f'teacher on {seen} of {len(dataset)} validation images{resized}: mIoU {miou:.1f}'
                f'{_promise(teacher)}'
            )


def predict(distiller: Any, batch: dict[str, Any]) -> SegDataSample:
    """Return the prediction of a distiller's teacher for one whole image, made as mmseg makes a segmentor's.

    Args:
        distiller: A ``SegDistiller`` whose teacher is built.
        batch: Of one image, as the data preprocessor returns it.

    Returns:
        Its sample with ``seg_logits`` and ``pred_sem_seg``, without the padding and at the size of the file,
        which the labels have. With a ``class_map`` both are of the classes that both sides know.
    """
    teacher = distiller.teacher
    logits = teacher(batch['inputs'], batch['data_samples']).maps[teacher.logits_tap].float()
    if teacher.class_map is not None:
        logits = teacher.class_map.teacher_logits(logits)
    size = batch['inputs'].shape[2:]
    logits = resize(logits, size, mode='bilinear', align_corners=distiller.align_corners, warning=False)
    (result,) = distiller.postprocess_result(logits, batch['data_samples'])
    return result


def _areas(model: Any, data: dict[str, Any]) -> list[Tensor]:
    """Return areas of intersection and union by class, (2, C), of one image; empty without a label map."""
    with torch.no_grad():
        batch = model.data_preprocessor(pseudo_collate([data]), training=False)
        (sample,) = batch['data_samples']
        if 'gt_sem_seg' not in sample:
            return []
        result = predict(model, batch)
    classes = len(result.seg_logits.data)
    if classes == 1:
        return []  # a binary head decides by a threshold of its own
    label, ignore_index = sample.gt_sem_seg.data, last_head(model).ignore_index
    if model.teacher.class_map is not None:
        label = model.teacher.class_map.labels(label, ignore_index)
    intersection, union, _, _ = IoUMetric.intersect_and_union(
        result.pred_sem_seg.data.cpu(), label.cpu(), classes, ignore_index
    )
    return [torch.stack([intersection, union])]


def _promise(teacher: Any) -> str:
    config = getattr(teacher, 'config', None)
    entry = published(str(config)) if config is not None and not isinstance(config, dict) else None
    return '' if entry is None else f"; mmseg's metafile says {entry.miou:.1f} on {entry.dataset}"
