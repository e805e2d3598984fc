"""A check that images without labels are used, and that the student's own loss ignores them."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import HOOKS
from mmseg.structures import SegDataSample

from bdd_seg.datasets.unlabelled import UnlabelledImages
from bdd_seg.errors import ConfigError

_SIZE = 16  # height and width of the maps that a loss is tried on


@HOOKS.register_module()
class UnlabelledHook(Hook):
    """Warns, when training starts, of unlabelled images that change the student's own loss, or teach nothing.

    Does nothing where the training data has no :class:`~bdd_seg.datasets.UnlabelledImages`.

    Raises:
        ConfigError: A head ignores another label than the images have.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the heads and the distillation losses of the model."""
        leaves = [*_leaves(runner.train_dataloader.dataset)]
        unlabelled = [leaf for leaf in leaves if isinstance(leaf, UnlabelledImages)]
        if not unlabelled:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        heads = {name: head for name, head in model.named_modules() if isinstance(head, BaseDecodeHead)}
        for name, head in heads.items():
            for images in unlabelled:
                if images.ignore_index != head.ignore_index:
                    raise ConfigError(
                        f'UnlabelledImages.ignore_index is {images.ignore_index}, but model.{name} ignores '
                        f'{head.ignore_index}. Give UnlabelledImages ignore_index={head.ignore_index}'
                    )
        counting = [name for name, head in heads.items() if not ignores_unlabelled(head)]
        if counting and len(unlabelled) < len(leaves):
            runner.logger.warning(
                f'The own loss of {", ".join(counting)} changes by images without labels, which should not '
                'count. A CrossEntropyLoss leaves them out of its mean with loss_decode.avg_non_ignore=True'
            )
        losses = getattr(model, 'distill_losses', [])
        if all(
            getattr(loss, 'mask_ignored', False) or getattr(loss, 'needs_labels', False) for loss in losses
        ):
            runner.logger.warning(
                'Images without labels teach nothing here: the model has no distillation loss that counts '
                'positions without a label. Take one such as BDDLoss, with mask_ignored=False'
            )


def ignores_unlabelled(head: BaseDecodeHead) -> bool:
    """Return whether a head's loss stays as it is when an image comes along whose labels are all ignored.

    The loss is tried on random logits. False as well where that cannot be tried: the head computes its loss
    in a way of its own, its loss refuses the trial, or it chooses pixels by their number in the batch
    (``sampler``).
    """
    if type(head).loss_by_feat is not BaseDecodeHead.loss_by_feat or head.sampler is not None:
        return False
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, head.out_channels, _SIZE, _SIZE, generator=generator)
    label = torch.randint(head.num_classes, (1, _SIZE, _SIZE), generator=generator)
    samples = [_sample(label), _sample(torch.full_like(label, head.ignore_index))]
    device = next(head.parameters()).device
    try:
        alone = head.loss_by_feat(logits[:1].to(device), [sample.to(device) for sample in samples[:1]])
        beside = head.loss_by_feat(logits.to(device), [sample.to(device) for sample in samples])
    except Exception:  # of any kind, since losses may be of a user's own
        return False
    return all(torch.allclose(alone[key], beside[key], rtol=1e-3) for key in alone if 'loss' in key)


def _sample(label: torch.Tensor) -> SegDataSample:
    sample = SegDataSample()
    sample.gt_sem_seg = PixelData(data=label)
    return sample


def _leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets that a data set wraps, or itself."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _leaves(part)
    elif hasattr(dataset, 'dataset'):
        yield from _leaves(dataset.dataset)
    else:
        yield dataset
