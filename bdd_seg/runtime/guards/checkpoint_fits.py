"""Refuse the checkpoint of another network, or one that a training cannot go on from."""

from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.checkpoints import (
    AUXILIARY,
    NO_TENSOR,
    load_and_report_mismatch,
    load_checkpoint,
    weights_of,
)
from bdd_seg.runtime.upstream.models import unwrapped


@HOOKS.register_module()
class CheckpointFitsHook(Hook):
    """Refuses the checkpoint of another network, for which mmengine only warns.

    For testing, all weights must fit except those of auxiliary heads, which do not run then. For resuming,
    all must fit, and the state of the optimizer must be there: without it mmengine begins with a fresh
    optimizer at the learning rate of the beginning. A training that begins with ``load_from`` takes the
    weights that fit, at least one of which must.

    Raises:
        ConfigError: When the checkpoint is loaded: it does not fit, holds no weights, or, for resuming, no
            state of the optimizer. The message names the newest checkpoint beside it that has one.
    """

    priority = 'LOWEST'  # after EMAHook, which chooses among the checkpoint's weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Load the weights once more, and compare them with the model's."""
        where = f'checkpoint {runner._load_from!r}' if runner._load_from else 'the checkpoint'
        weights = weights_of(checkpoint, where)
        model = unwrapped(runner.model)
        testing = not isinstance(runner.optim_wrapper, OptimWrapper | OptimWrapperDict)
        problem = load_and_report_mismatch(model, weights, AUXILIARY if testing else None)
        if testing or runner._resume:
            advice = 'Use the config that it was trained with'
        else:
            weights = {key.removeprefix('module.'): value for key, value in weights.items()}
            own = {key: value for key, value in model.state_dict().items() if not key.endswith(NO_TENSOR)}
            if any(key in weights and weights[key].shape == own[key].shape for key in own if own[key].dim()):
                return  # more than the counters of BatchNorm, which all networks have
            advice = 'None of its weights could be used'
        if problem:
            raise ConfigError(f'{where} does not fit the model: {problem}. {advice}')
        if runner._resume and 'optimizer' not in checkpoint:
            folder = Path(runner._load_from).parent if runner._load_from else Path(runner.work_dir)
            raise ConfigError(
                f'{where} has no optimizer state, as a best_*.pth has none, so --resume cannot go on from '
                f'it. {_resumable(folder)}. Or begin anew with its weights: load_from without --resume'
            )


def _resumable(folder: Path) -> str:
    """Return a text that names the newest checkpoint in a folder that a training can go on from."""
    saved = [*folder.glob('iter_*.pth'), *folder.glob('epoch_*.pth')]
    for path in sorted(saved, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            if 'optimizer' in load_checkpoint(path):
                return f'Resume from {str(path)!r}, which has it (--cfg-options load_from=FILE)'
        except ConfigError:  # cut short
            continue
    return f'No checkpoint in {str(folder)!r} has it'
