"""Hooks of distillation: weights of losses, and diagnostics of the logged iterations."""

import logging
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from mmseg.registry import HOOKS

from bdd_seg.distill.diagnostics import DIAGNOSTICS
from bdd_seg.distill.gradients import GradientBalance
from bdd_seg.distill.segmentor import SegDistiller
from bdd_seg.runtime.upstream.models import unwrapped

_KEY = 'distill_losses'
_FACTORS = 'distill_factors'


@HOOKS.register_module()
class LossStateHook(Hook):
    """Keeps the weights of distillation losses for ``--resume``.

    They are no part of the student, so checkpoints hold them under a key of their own, ``distill_losses``:
    a dict from ``loss_name`` to that loss's ``state_dict()``, and under ``distill_factors`` the factors that
    ``balance_gradients`` chose. Testing and ``load_from`` leave them alone.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[_KEY] = {
            loss.loss_name: weights_to_cpu(loss.state_dict())
            for loss in _distill_losses(runner)
            if loss.state_dict()
        }
        balance = _gradient_balance(runner)
        if balance is not None:
            checkpoint[_FACTORS] = dict(balance.factors)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if not runner._resume:  # mmengine's EMAHook tells resuming from loading by this, too
            return
        balance = _gradient_balance(runner)
        if balance is not None:
            balance.resume(checkpoint.get(_FACTORS, {}))
            if _FACTORS not in checkpoint:
                print_log(
                    'The checkpoint has no factors of balanced gradients, which are chosen anew, late in the '
                    'training. Was it saved without custom_hooks=[dict(type="LossStateHook")]?',
                    logger='current',
                    level=logging.WARNING,
                )
        states = checkpoint.get(_KEY, {})
        for loss in _distill_losses(runner):
            if loss.loss_name in states:
                loss.load_state_dict(states[loss.loss_name])
            elif loss.state_dict():
                print_log(
                    f'The checkpoint has no weights of {loss.loss_name}, which starts with new ones. Was it '
                    'saved without custom_hooks=[dict(type="LossStateHook")]?',
                    logger='current',
                    level=logging.WARNING,
                )


@HOOKS.register_module()
class DiagnosticsHook(Hook):
    """Has a :class:`~bdd_seg.distill.SegDistiller` compute diagnostics in the logged iterations.

    They are ``distill.agreement``, ``distill.forward_kl`` and ``distill.reverse_kl``, see
    :func:`~bdd_seg.distill.diagnostics.logit_diagnostics`. The first iteration has them, too; the others cost
    nothing. A logged value is that of its own iteration, as for ``distill.teacher_acc``, and no mean over a
    window.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Tell the model whether this iteration is logged."""
        model = unwrapped(runner.model)
        if isinstance(model, SegDistiller):
            # The log has values in the order in which they came up: these beside the other ones of the
            # distillation, if the first iteration has them.
            model.diagnose = runner.iter == 0 or _is_logged(runner, batch_idx)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Forget diagnostics of other losses, which a resumed run has in its log and does not compute."""
        if _is_logged(runner, batch_idx):
            for key in DIAGNOSTICS:
                if key not in (outputs or {}):
                    runner.message_hub.log_scalars.pop(f'train/{key}', None)


def _is_logged(runner: Runner, batch_idx: int) -> bool:
    """Return whether a ``LoggerHook`` writes a line after this iteration; its conditions."""
    loader = runner.train_dataloader
    return any(
        hook.every_n_inner_iters(batch_idx, hook.interval)
        or (hook.end_of_epoch(loader, batch_idx) and (not hook.ignore_last or len(loader) <= hook.interval))
        for hook in runner.hooks
        if isinstance(hook, LoggerHook)
    )


def _gradient_balance(runner: Runner) -> GradientBalance | None:
    """Return that of the run's ``SegDistiller``, None where there is none."""
    return getattr(unwrapped(runner.model), 'gradient_balance', None)


def _distill_losses(runner: Runner) -> Sequence[Any]:
    """Return the losses of the run's ``SegDistiller``, none where the model is another."""
    return getattr(unwrapped(runner.model), 'distill_losses', ())
