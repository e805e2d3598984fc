"""Training stops where a loss is not a finite number, or leaves that step out."""

import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.fileio import put
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.utils import is_list_of
from mmseg.registry import HOOKS
from torch import Tensor, nn
from torch.optim import Optimizer

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.runtime.upstream.models import unwrapped

_COUNT = 'nonfinite_steps_skipped'  # in the message hub, which checkpoints keep


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Looks at each loss before its backward pass, and stops the training where one is NaN or infinite.

    The losses are what the model returns in mode ``'loss'`` under keys that contain ``loss``. Whatever
    happens then, the batch is written to ``WORK_DIR/nonfinite/iter_N_rank_R.pth``: a dict of plain data for
    ``torch.load(weights_only=True)`` with ``iteration``, ``rank``, ``losses``, ``image_paths``, and ``batch``
    as the data loader gave it, before the model's normalisation: ``batch['inputs']`` are the images,
    ``batch['data_samples'][0]['gt_sem_seg']['data']`` is the first label map.

    With ``max_skips`` an iteration may be left out instead: weights, optimizer state and buffers (the
    statistics of BatchNorm) stay what they were, on all processes together, and schedules go on. The log's
    means go without it. Where several iterations accumulate gradients, that iteration's are missing. This
    costs a copy of the buffers in each iteration, and among processes a reduction of one number.

    Gradients are not looked at: those that overflow float16 while the loss is finite are ``GradScaler``'s
    business. It would also pass over a loss that is not finite, but leave the statistics of BatchNorm spoilt.

    Args:
        max_skips: How many iterations may be left out, counted over a training and its resumption. The next
            one stops it. So does one whose weights are not finite, since no skipping mends them.

    Raises:
        ConfigError: ``max_skips`` is no whole number ≥ 0. While training: a loss is not finite. It names the
            terms, the iteration as logged (from 1), the images, the file with the batch, and the newest
            checkpoint whose weights are finite.
    """

    priority = 'HIGHEST'  # what it takes out of an iteration's log has not been seen by others

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
        model = unwrapped(runner.model)
        self._handles = [model.register_forward_hook(partial(self._after_forward, runner), with_kwargs=True)]
        if self.max_skips:
            if not isinstance(runner.optim_wrapper, OptimWrapper):
                raise ConfigError('FiniteLossHook: max_skips works with one optimizer only; set it to 0')
            optimizer = runner.optim_wrapper.optimizer
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._batch = data_batch
        if self.max_skips:
            self._buffers = [buffer.clone() for buffer in unwrapped(runner.model).buffers()]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        if self._left_out and outputs is not None:
            for name in [name for name, value in outputs.items() if not value.isfinite()]:
                del outputs[name]

    def after_train(self, runner: Runner) -> None:
        for handle in self._handles:
            handle.remove()
        self._batch, self._buffers = None, []

    def _after_forward(
        self, runner: Runner, model: nn.Module, args: tuple, kwargs: dict[str, Any], losses: Any
    ) -> dict[str, Any] | None:
        """Check the losses. What is returned replaces them."""
        terms = _terms(losses) if kwargs.get('mode') == 'loss' else {}
        if not terms:
            return None
        total = torch.stack([*terms.values()]).sum()  # not finite if a term is not, or if it overflows itself
        bad = (~total.isfinite()).int()
        if self.max_skips:
            all_reduce(bad, 'max')
        # The one time that the host waits for the device here. mmengine waits in each iteration, too, though
        # after the step: RuntimeInfoHook puts the losses into the message hub, which takes their item().
        self._left_out = bool(bad.item())
        if not self._left_out:
            self._nothing_to_apply = False
            return None
        report = None if total.isfinite() else self._report(runner, terms, total)
        if not self.max_skips:
            raise ConfigError(f'{report}. {_way_out(runner)}')
        reports = '; '.join(report for report in all_gather_object(report) if report is not None)
        self._count(runner, reports)
        return self._leave_out(model, losses, terms)

    def _report(self, runner: Runner, terms: dict[str, Tensor], total: Tensor) -> str:
        """Write the batch, and say what is wrong with it."""
        values = {name: float(value) for name, value in terms.items()}
        bad = [f'{name} is {value}' for name, value in values.items() if not math.isfinite(value)]
        bad = bad or [f'the sum of the losses is {float(total)}']
        iteration, rank = runner.iter + 1, get_rank()
        batch = _plain(self._batch)
        paths = _image_paths(batch)
        content = {
            'iteration': iteration,
            'rank': rank,
            'losses': values,
            'image_paths': paths,
            'batch': batch,
        }
        path = Path(runner.work_dir) / 'nonfinite' / f'iter_{iteration}_rank_{rank}.pth'
        buffer = io.BytesIO()
        torch.save(content, buffer)
        try:
            put(buffer.getvalue(), path)
            where = f'the batch is in {str(path)!r}'
        except (ConfigError, OSError) as error:
            where = f'the batch could not be written ({error})'
        images = ', '.join(map(repr, paths[:4])) or 'of unknown paths'
        more = f' and {len(paths) - 4} more' if len(paths) > 4 else ''
        return f'iteration {iteration}: {", ".join(bad)}; images {images}{more}; {where}'

    def _count(self, runner: Runner, reports: str) -> None:
        count = runner.message_hub.get_info(_COUNT, 0) + 1
        runner.message_hub.update_info(_COUNT, count)
        if count > self.max_skips:
            raise ConfigError(
                f'{reports}. max_skips={self.max_skips} were left out before. {_way_out(runner)}'
            )
        if not _weights_are_finite(runner):
            raise ConfigError(f'{reports}. {_way_out(runner)}')
        runner.logger.warning(f'FiniteLossHook: left out ({count} of at most {self.max_skips}) {reports}')

    @torch.no_grad()
    def _leave_out(
        self, model: nn.Module, losses: dict[str, Any], terms: dict[str, Tensor]
    ) -> dict[str, Any]:
        """The same losses with gradients of zeros, for which DDP, GradScaler and clipping work as ever."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for buffer, kept in zip(model.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)
        if all(parameter.grad is None for parameter in parameters):  # nothing has been accumulated
            self._nothing_to_apply = True
        with torch.enable_grad():
            zero = sum(parameter.flatten()[:0].sum() for parameter in parameters)
            name = next(iter(terms))
            return {**losses, **terms, name: terms[name] + zero}

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._nothing_to_apply:  # gradients of zeros would still decay weights and move by momentum
            optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _terms(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """The terms of the total loss, scalars as mmengine's ``parse_losses`` makes them."""
    terms = {}
    for name, value in losses.items():
        values = [value] if isinstance(value, Tensor) else value
        if 'loss' in name and values and is_list_of(values, Tensor):  # parse_losses complains about others
            terms[name] = torch.stack([tensor.mean() for tensor in values]).sum()
    return terms


def _plain(value: Any) -> Any:
    """The same as tensors on the CPU, dicts, lists and scalars, which loading takes as data."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # without the rest of the storage that it may be a view of
    if isinstance(value, np.ndarray):
        return _plain(torch.from_numpy(value) if value.dtype.kind in 'biuf' else value.tolist())
    if isinstance(value, BaseDataElement):
        return _plain(dict(value.all_items()))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def _image_paths(batch: Any) -> list[str]:
    samples = batch.get('data_samples') or [] if isinstance(batch, dict) else []
    return [sample['img_path'] for sample in samples if isinstance(sample, dict) and 'img_path' in sample]


def _weights_are_finite(runner: Runner) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in unwrapped(runner.model).parameters())


def _way_out(runner: Runner) -> str:
    """What to go on from, and how."""
    checkpoint = _last_good_checkpoint(runner)
    ways = 'other data, clipped gradients (optim_wrapper.clip_grad)'
    before = ''
    if _weights_are_finite(runner):
        ways += ', or default_hooks.finite.max_skips=K, which leaves out up to K such iterations'
    else:
        before = 'The weights were not finite before it, so leaving it out does not help. '
    lr = 'a lower learning rate (optim_wrapper.optimizer.lr)'
    if checkpoint is None:
        return f'{before}Last good checkpoint: none yet. Begin again with {lr}, {ways}'
    # A resumed optimizer and its schedule have the old learning rate, whatever the config says.
    return (
        f'{before}Last good checkpoint: {checkpoint!r}. Resume from it (--resume --cfg-options '
        f'load_from=FILE) with {ways}; or begin with its weights (load_from without --resume) and {lr}'
    )


def _last_good_checkpoint(runner: Runner) -> str | None:
    """The newest one of this training whose weights are finite: a loss shows too late that they are not."""
    noted = runner.message_hub.get_info('last_ckpt')
    if noted is None:
        return None
    folders = {Path(noted).parent, Path(runner.work_dir)}
    others = [
        path for folder in folders for kind in ('iter', 'epoch') for path in folder.glob(f'{kind}_*.pth')
    ]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    names = [name for name, _ in unwrapped(runner.model).named_parameters()]
    for path in dict.fromkeys([Path(noted), *others]):
        try:
            state = load_checkpoint(path).get('state_dict', {})
        except ConfigError:  # gone, or cut short
            continue
        if all(bool(state[name].isfinite().all()) for name in names if name in state):
            return str(path)
    return None
