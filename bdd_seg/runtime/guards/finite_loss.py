"""Stop a training, or leave out a step, where a loss is not a finite number."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor, nn
from torch.optim import Optimizer

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.nonfinite import (
    describe_nonfinite,
    image_paths,
    last_finite_checkpoint,
    loss_terms,
    plain_data,
    weights_are_finite,
    without_gradients,
    write_batch,
)
from bdd_seg.runtime.upstream.models import unwrapped

_COUNT = 'nonfinite_steps_skipped'  # in the message hub, which checkpoints keep


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Checks each loss before its backward pass, and stops the training where one is NaN or infinite.

    The losses are what the model returns in mode ``'loss'`` under keys that contain ``loss``. If one is not
    finite, the batch is written to ``WORK_DIR/nonfinite/iter_N_rank_R.pth``: a dict of plain data for
    ``torch.load(weights_only=True)`` with ``iteration``, ``rank``, ``losses``, ``image_paths``, and ``batch``
    as the data loader gave it, before the model's normalisation: ``batch['inputs']`` are the images,
    ``batch['data_samples'][0]['gt_sem_seg']['data']`` is the first label map.

    With ``max_skips`` the iteration may be left out instead. Weights, optimizer state and buffers (the
    statistics of BatchNorm) then stay as they were, on all processes together. Schedules go on. The means in
    the log are taken without that iteration. Where several iterations accumulate gradients, those of the
    skipped one are missing. This costs a copy of the buffers in each iteration, and with several processes a
    reduction of one number.

    Gradients are not checked: ``GradScaler`` handles those that overflow float16 while the loss is finite.
    It would also pass over a loss that is not finite, but it leaves the statistics of BatchNorm spoilt.

    Args:
        max_skips: The number of iterations that may be left out, counted over a training and its resumption.
            The next one stops it, and so does any one that begins with weights that are not finite, since
            leaving it out does not mend them.

    Raises:
        ConfigError: ``max_skips`` is no whole number ≥ 0. While training: a loss is not finite. The message
            names the terms, the iteration as logged (from 1), the images, the file with the batch, and the
            newest checkpoint whose weights are finite.
    """

    priority = 'HIGHEST'  # values that it takes out of an iteration's log have not been seen by others

    def __init__(self, max_skips: int = 0) -> None:
        if not isinstance(max_skips, int) or max_skips < 0:
            raise ConfigError(
                f'FiniteLossHook: max_skips must be a whole number from 0 on, got {max_skips!r}'
            )
        self.max_skips = max_skips
        self._batch: Any = None
        self._buffers: list[Tensor] = []
        self._left_out = False  # this iteration
        self._nothing_to_apply = False  # all iterations since the last step were left out

    def before_train(self, runner: Runner) -> None:
        """Add the hooks to the model and the optimizer."""
        model = unwrapped(runner.model)
        self._handles = [model.register_forward_hook(partial(self._after_forward, runner), with_kwargs=True)]
        if self.max_skips:
            if not isinstance(runner.optim_wrapper, OptimWrapper):
                raise ConfigError('FiniteLossHook: max_skips works with one optimizer only; set it to 0')
            optimizer = runner.optim_wrapper.optimizer
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the batch, and with ``max_skips`` the buffers, until the loss is known."""
        self._batch = data_batch
        if self.max_skips:
            self._buffers = [buffer.clone() for buffer in unwrapped(runner.model).buffers()]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        """Take values that are not finite out of the log."""
        if self._left_out and outputs is not None:
            for name in [name for name, value in outputs.items() if not value.isfinite()]:
                del outputs[name]

    def after_train(self, runner: Runner) -> None:
        """Remove the hooks from the model and the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._batch, self._buffers = None, []

    def _after_forward(
        self, runner: Runner, model: nn.Module, args: tuple, kwargs: dict[str, Any], losses: Any
    ) -> dict[str, Any] | None:
        """Check the losses, and return others in their place if the iteration is left out."""
        terms = loss_terms(losses) if kwargs.get('mode') == 'loss' else {}
        if not terms:
            return None
        total = torch.stack([*terms.values()]).sum()  # not finite if a term is not, or if it overflows itself
        bad = (~total.isfinite()).int()
        if self.max_skips:
            all_reduce(bad, 'max')
        # The only place here where the host waits for the device. mmengine waits in each iteration, too,
        # after the step: RuntimeInfoHook puts the losses into the message hub, which takes their item().
        self._left_out = bool(bad.item())
        if not self._left_out:
            self._nothing_to_apply = False
            return None
        report = None if total.isfinite() else self._report(runner, terms, total)
        if not self.max_skips:
            raise ConfigError(f'{report}. {_recovery_advice(runner)}')
        reports = '; '.join(report for report in all_gather_object(report) if report is not None)
        self._count(runner, reports)
        return self._leave_out(model, losses, terms)

    def _report(self, runner: Runner, terms: dict[str, Tensor], total: Tensor) -> str:
        """Write the batch, and return what is wrong with it."""
        values = {name: float(value) for name, value in terms.items()}
        iteration, rank = runner.iter + 1, get_rank()
        batch = plain_data(self._batch)
        paths = image_paths(batch)
        where = write_batch(
            Path(runner.work_dir) / 'nonfinite' / f'iter_{iteration}_rank_{rank}.pth',
            {'iteration': iteration, 'rank': rank, 'losses': values, 'image_paths': paths, 'batch': batch},
        )
        images = ', '.join(map(repr, paths[:4])) or 'of unknown paths'
        more = f' and {len(paths) - 4} more' if len(paths) > 4 else ''
        bad = describe_nonfinite(values, float(total))
        return f'iteration {iteration}: {bad}; images {images}{more}; {where}'

    def _count(self, runner: Runner, reports: str) -> None:
        """Count an iteration that is left out, and stop if it is one too many or if it does not help."""
        count = runner.message_hub.get_info(_COUNT, 0) + 1
        runner.message_hub.update_info(_COUNT, count)
        if count > self.max_skips:
            raise ConfigError(
                f'{reports}. max_skips={self.max_skips} were left out before. {_recovery_advice(runner)}'
            )
        if not weights_are_finite(unwrapped(runner.model)):
            raise ConfigError(f'{reports}. {_recovery_advice(runner)}')
        runner.logger.warning(f'FiniteLossHook: left out ({count} of at most {self.max_skips}) {reports}')

    @torch.no_grad()
    def _leave_out(
        self, model: nn.Module, losses: dict[str, Any], terms: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Restore the buffers, and return losses whose gradients are zeros."""
        for buffer, kept in zip(model.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)
        if all(p.grad is None for p in model.parameters() if p.requires_grad):  # nothing was accumulated
            self._nothing_to_apply = True
        return without_gradients(losses, terms, model)

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._nothing_to_apply:  # gradients of zeros would still decay weights and move by momentum
            optimizer.zero_grad(set_to_none=True)


def _recovery_advice(runner: Runner) -> str:
    """Return the checkpoint to go on from, and the settings to change."""
    model = unwrapped(runner.model)
    checkpoint = last_finite_checkpoint(runner.message_hub.get_info('last_ckpt'), runner.work_dir, model)
    changes = 'other data, clipped gradients (optim_wrapper.clip_grad)'
    before = ''
    if weights_are_finite(model):
        changes += ', or default_hooks.finite.max_skips=K, which leaves out up to K such iterations'
    else:
        before = 'The weights were not finite before it, so leaving it out does not help. '
    lr = 'a lower learning rate (optim_wrapper.optimizer.lr)'
    if checkpoint is None:
        return f'{before}Last good checkpoint: none yet. Begin again with {lr}, {changes}'
    # A resumed optimizer and its schedule have the old learning rate, whatever the config says.
    return (
        f'{before}Last good checkpoint: {checkpoint!r}. Resume from it (--resume --cfg-options '
        f'load_from=FILE) with {changes}; or begin with its weights (load_from without --resume) and {lr}'
    )
