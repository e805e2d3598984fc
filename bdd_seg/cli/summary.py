"""The lines that a training or a test begins with: what runs, on what, and where it writes."""

from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from bdd_seg.deploy.exported import ExportedSegmentor
from bdd_seg.distill.segmentor import SegDistiller
from bdd_seg.distill.student import PLAIN_TYPES
from bdd_seg.runtime.upstream.configs import leaf_datasets, type_name
from bdd_seg.runtime.upstream.console import QuietRunner
from bdd_seg.runtime.upstream.models import unwrapped

_LOSSES = 3  # that have a line each; any others share the last one


class SummaryHook(Hook):
    """Logs the summary once all is built, and lets the console show what is logged from then on."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Log the summary of a training."""
        self._log(runner, train=True)

    def before_test(self, runner: Runner) -> None:
        """Log the summary of a test."""
        self._log(runner, train=False)

    def _log(self, runner: Runner, train: bool) -> None:
        if isinstance(runner, QuietRunner):
            runner.open_console()
        runner.logger.info('\n'.join([runner.experiment_name, *summarize(runner, train)]))


def summarize(runner: Runner, train: bool) -> list[str]:
    """Return at most ten lines that say what a runner is about to do.

    Args:
        runner: A runner whose model and loops are built.
        train: Whether it trains; else it tests.
    """
    facts = _training(runner) if train else _testing(runner)
    facts += [
        ('device', _device(runner)),
        ('work dir', runner.work_dir),
        ('log', str(Path(runner.log_dir) / f'{runner.timestamp}.log')),
    ]
    return [f'  {name:<11} {text}' for name, text in facts]


def _training(runner: Runner) -> list[tuple[str, str]]:
    model = unwrapped(runner.model)
    facts = [('student', network_text(model))]
    if isinstance(model, SegDistiller):
        facts += [('teacher', model.teacher.summary()), *_losses(model)]
    loader = runner.train_dataloader
    batch_size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', '?')
    batch = f'batch size {batch_size} × {get_world_size()} process{"es" * (get_world_size() > 1)}'
    facts.append(('data', f'{_data(runner.cfg.train_dataloader, loader)}, {batch}'))
    facts.append(('iterations', _iterations(runner)))
    return facts


def _testing(runner: Runner) -> list[tuple[str, str]]:
    model, data = unwrapped(runner.model), _data(runner.cfg.test_dataloader, runner.test_dataloader)
    if isinstance(model, ExportedSegmentor):
        return [('model', model.exported.describe()), ('data', data)]
    return [('model', network_text(model)), ('checkpoint', str(runner._load_from)), ('data', data)]


def network_text(model: nn.Module) -> str:
    """Return the classes of a segmentor's backbone and head, and its number of parameters."""
    names = []
    for part in ('backbone', 'decode_head'):
        module = getattr(model, part, None)
        if isinstance(module, nn.ModuleList) and len(module):  # the heads of a cascade
            module = module[-1]
        if module is not None:
            names.append(type(module).__name__)
    losses = [*model.distill_losses.parameters()] if isinstance(model, SegDistiller) else []
    parameters = _count(model.parameters()) - _count(losses)
    kind = PLAIN_TYPES.get(type(model).__name__, type(model).__name__)
    parts = f' of {" and ".join(names)}' if names else ''
    return f'{kind}{parts}, {parameters / 1e6:.2f} M parameters'


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def weighted_kind(loss: nn.Module) -> str:
    """Return a loss's class with its weight, if it has one, such as ``'BDDLoss, weight 3'``."""
    weight, kind = getattr(loss, 'loss_weight', None), type(loss).__name__
    return f'{kind}, weight {weight:g}' if isinstance(weight, int | float) else kind


def own_parameters(loss: nn.Module) -> str:
    """Return the end of a line that tells the number of a loss's parameters, empty where it has none."""
    own = _count(loss.parameters())
    return f', with {own:,} parameters of its own' if own else ''


def _losses(model: SegDistiller) -> list[tuple[str, str]]:
    lines = []
    for loss, student_tap, teacher_tap in model.comparisons:
        taps = f'{student_tap} of both'
        if student_tap != teacher_tap:
            taps = f"{student_tap} and the teacher's {teacher_tap}"
        kind = weighted_kind(loss)
        lines.append(('loss', f'{kind}, distill.{loss.loss_name}, on {taps}{own_parameters(loss)}'))
    if len(lines) > _LOSSES:
        names = [f'distill.{loss.loss_name}' for loss in model.distill_losses]
        lines[_LOSSES - 1 :] = [('losses', ', '.join(names[_LOSSES - 1 :]))]
    return lines


def _data(settings: dict[str, Any], loader: Any) -> str:
    """Return the class of a data set, its folder, and its number of images, repeated ones included."""
    leaves = [leaf for leaf, _ in leaf_datasets(settings['dataset'], '')]
    others = f' and {len(leaves) - 1} more' if len(leaves) > 1 else ''
    root = leaves[0].get('data_root')
    place = '' if root is None else f' in {root}'
    images = f', {len(loader.dataset)} images' if hasattr(loader.dataset, '__len__') else ''
    return f'{type_name(leaves[0])}{place}{others}{images}'


def _iterations(runner: Runner) -> str:
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        text = f'epochs {runner.epoch + 1} to {runner.max_epochs}, {runner.max_iters} iterations'
    else:
        text = f'{runner.iter + 1} to {runner.max_iters}'
    if runner.iter >= runner.max_iters:
        text = f'all {runner.max_iters} are done'
    origin = ''
    if runner._load_from and runner.iter:
        origin = f', resumed from {runner._load_from}'
    elif runner._load_from:
        origin = f', beginning with the weights of {runner._load_from}'
    return f'{text}, seed {runner.seed}{origin}'


def _device(runner: Runner) -> str:
    device = get_device()
    if device == 'cuda':
        where = torch.cuda.get_device_name()
    elif device == 'cpu':
        threads = torch.get_num_threads()
        where = f'CPU, {threads} thread{"s" * (threads > 1)}'
    else:
        where = device
    wrapper = type(runner.optim_wrapper).__name__
    precision = {'AmpOptimWrapper': ', mixed precision', 'BFloat16OptimWrapper': ', bfloat16'}
    return where + precision.get(wrapper, '')
