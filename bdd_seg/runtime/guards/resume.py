"""Bit-exact resume."""

from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import all_gather, get_rank
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from mmseg.registry import HOOKS
from torch.utils.data import DataLoader

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.seeding import SeededDraws, loader_over, seed_step
from bdd_seg.runtime.upstream.checkpoints import unsafe_reason

# The parts of a checkpoint that are large, and tensors only.
_LARGE = {'state_dict', 'ema_state_dict', 'optimizer'}

_SAMPLER_SEED = 'sampler_seed'  # in the message hub, which checkpoints keep


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a resumed training end as an uninterrupted one does, bit for bit on the same machine.

    Checkpoints hold the weights, the optimizer, the schedules, the EMA and the log, and mmengine keeps the
    order of the data. This hook adds

    - random numbers that follow from the seed and from the position in the training only: those of an
      iteration (dropout) from its number, those of a sample (augmentation) from the number of its draw.
      Augmentation therefore does not depend on the number of workers and of processes either;
    - the seed of the interrupted run, where the config sets none;
    - the validation of the checkpoint's iteration. It comes after the saving, so that an interruption may
      have prevented it.

    The gradients of a checkpoint saved amid an accumulation (``accumulative_counts``) are not kept.

    The training loop gets another data loader, with the same settings, over a data set that seeds each draw.

    Raises:
        ConfigError: When training starts, the processes resume at different iterations.
    """

    priority = 'LOWEST'  # nothing draws between its seeding and the step

    def __init__(self) -> None:
        self._content_checked = False

    def before_train(self, runner: Runner) -> None:
        """Seed the draws of the training data."""
        iterations = [int(n) for n in all_gather(torch.tensor(runner.iter))]
        if len(set(iterations)) > 1:
            raise ConfigError(
                f'the processes resume at different iterations, {iterations}: all machines must see the same '
                f'work dir, {runner.work_dir!r}'
            )
        if any(isinstance(hook, CheckpointHook) and hook.max_keep_ckpts == 1 for hook in runner.hooks):
            runner.logger.warning(
                'default_hooks.checkpoint.max_keep_ckpts=1 removes the only checkpoint before it writes the '
                'next. With 2 a run that is stopped in between, or by a full disk, can be resumed'
            )
        loop, loader = runner.train_loop, runner.train_dataloader
        sampler, batch_size = loader.sampler, loader.batch_size
        if (
            not isinstance(loop, IterBasedTrainLoop)
            or not isinstance(sampler, InfiniteSampler)
            or type(loader) is not DataLoader
            or batch_size is None
        ):
            runner.logger.warning(
                'ExactResumeHook: augmentation after a resume will differ from that of an uninterrupted '
                'run. Use an IterBasedTrainLoop with an InfiniteSampler and a plain DataLoader to keep it'
            )
            return
        # The seed of the data's order. Where the config has none mmengine draws one, for a resumed run again.
        if runner.iter:
            sampler.seed = runner.message_hub.get_info(_SAMPLER_SEED, sampler.seed)
        runner.message_hub.update_info(_SAMPLER_SEED, sampler.seed)
        draws = SeededDraws(loader.dataset, sampler, batch_size, runner.iter)
        loop.dataloader = loader_over(loader, draws)
        # The loop has drawn nothing yet. It skips the draws before an interruption after this.
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)

    def before_train_epoch(self, runner: Runner) -> None:
        """Run the validation that an interruption may have prevented."""
        loop, val_loop = runner.train_loop, runner.val_loop
        if not isinstance(loop, IterBasedTrainLoop) or val_loop is None:
            return
        loop._decide_current_val_interval()  # it may change on the way
        if (
            loop.iter > 0
            and loop.iter >= loop.val_begin
            and (loop.iter % loop.val_interval == 0 or loop.iter == loop.max_iters)
        ):
            runner.logger.info(f'Validating at iteration {loop.iter}, as the interrupted run may not have')
            val_loop.run()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Warn once if ``--resume`` will refuse the checkpoints of this run."""
        if self._content_checked:
            return
        self._content_checked = True
        reason = unsafe_reason({key: checkpoint[key] for key in checkpoint.keys() - _LARGE})
        if reason is not None:
            runner.logger.warning(
                f'Checkpoints of this run hold more than data, and --resume will refuse them: {reason}'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the iteration."""
        seed_step(runner.seed, runner.iter, get_rank())
