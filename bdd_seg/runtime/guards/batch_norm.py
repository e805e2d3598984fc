"""Name the BatchNorm that cannot train on a batch of one image."""

from functools import partial
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.models import unwrapped


@HOOKS.register_module()
class BatchNormHook(Hook):
    """Names the BatchNorm that would see one value per channel, and says how to avoid it.

    A network that pools to a single pixel, as PSPNet does, leaves one value per channel of a batch of one
    image. torch cannot train BatchNorm on it, and its message does not say where that happens. The hook adds
    forward pre-hooks to the BatchNorm modules when the first batch of one image arrives, and none before.

    Raises:
        ConfigError: While training, a BatchNorm is given one value per channel.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Add the pre-hooks if the batch has one image."""
        images = data_batch.get('inputs') if isinstance(data_batch, dict) else None
        if self._handles or images is None or len(images) != 1:
            return
        for name, module in unwrapped(runner.model).named_modules():
            # SyncBatchNorm computes its statistics over all processes.
            if isinstance(module, nn.SyncBatchNorm) and get_world_size() > 1:
                continue
            if isinstance(module, _BatchNorm):
                self._handles.append(module.register_forward_pre_hook(partial(_check_values, name)))

    def after_train(self, runner: Runner) -> None:
        """Remove the pre-hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _check_values(name: str, module: _BatchNorm, args: tuple[Tensor, ...]) -> None:
    features = args[0]
    uses_batch = module.training or module.running_mean is None
    if uses_batch and features.numel() == features.shape[1]:
        raise ConfigError(
            f'model.{name}: Expected more than 1 value per channel, got an input of shape '
            f'{tuple(features.shape)}: a batch of one image, pooled to one pixel. '
            'Raise train_dataloader.batch_size, or set train_dataloader.drop_last=True if it is the last '
            'batch that has a single image'
        )
