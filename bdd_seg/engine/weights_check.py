"""Whether the weights of a checkpoint are those of a network."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from torch import Tensor, nn

from bdd_seg.errors import ConfigError

AUXILIARY = 'auxiliary_head'
"""Serves a network's own training only: what infers needs no weights for it, and may be given some."""

_NO_TENSOR = '_extra_state'  # torch's suffix for what modules save besides their weights


def weights_of(checkpoint: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The ``state_dict`` in a checkpoint, or which it is.

    Raises:
        ConfigError: It is no dict of named tensors. The message begins with ``where``.
    """
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and (isinstance(value, Tensor) or key.endswith(_NO_TENSOR))
        for key, value in weights.items()
    ):
        raise ConfigError(f'{where} holds no dict of named tensors')
    return weights


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], without: str | None = AUXILIARY) -> str:
    """Load weights into a network, and tell what does not fit.

    Args:
        model: The network. If something does not fit, it is left with some of the weights.
        weights: Those of a checkpoint; a prefix ``module.``, as wrapped models have it, is taken away.
        without: A module that does not count.

    Returns:
        What is missing, unexpected, or of another shape; an empty string if nothing is.
    """
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    own = model.state_dict()
    misshapen = {
        key: f'{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}'
        for key in sorted(own.keys() & weights.keys())
        if not key.endswith(_NO_TENSOR) and weights[key].shape != own[key].shape
    }
    # Asks the modules themselves, some of which know older names of their weights.
    missing, unexpected = model.load_state_dict(
        {key: own[key] if key in misshapen else value for key, value in weights.items()}, strict=False
    )
    problems = {'missing': missing, 'unexpected': unexpected, 'of another shape': misshapen}
    texts = []
    for problem, found in problems.items():
        keys = [key for key in found if not (without and key.startswith(f'{without}.'))]
        if keys:
            listed = ', '.join(misshapen.get(key, key) for key in keys[:3])
            texts.append(f'{len(keys)} {problem}: {listed}{", ..." if len(keys) > 3 else ""}')
    return '; '.join(texts)


def unwrapped(model: nn.Module) -> nn.Module:
    """The segmentor in what distributes it, or tests it at several scales."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = getattr(model, 'module')  # noqa: B009  typed as any module's attribute otherwise
    return model


@HOOKS.register_module()
class CheckpointFitsHook(Hook):
    """Refuses the checkpoint of another network, which mmengine takes with no more than a warning.

    For testing all weights must fit, but for auxiliary heads, which do not run then; for resuming, all.
    A training that begins with ``load_from`` takes what fits, which must not be nothing.

    Raises:
        ConfigError: When the checkpoint is loaded.
    """

    priority = 'LOWEST'  # after EMAHook, which says which of the checkpoint's weights are loaded

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        where = f'checkpoint {runner._load_from!r}' if runner._load_from else 'the checkpoint'
        weights = weights_of(checkpoint, where)
        model = unwrapped(runner.model)
        testing = not isinstance(runner.optim_wrapper, OptimWrapper | OptimWrapperDict)
        problem = load_weights(model, weights, AUXILIARY if testing else None)
        if testing or runner._resume:
            advice = 'Use the config that it was trained with'
        else:
            weights = {key.removeprefix('module.'): value for key, value in weights.items()}
            own = {key: value for key, value in model.state_dict().items() if not key.endswith(_NO_TENSOR)}
            if any(key in weights and weights[key].shape == own[key].shape for key in own if own[key].dim()):
                return  # more than the counters of BatchNorm, which all networks have
            advice = 'None of its weights could be used'
        if problem:
            raise ConfigError(f'{where} does not fit the model: {problem}. {advice}')
