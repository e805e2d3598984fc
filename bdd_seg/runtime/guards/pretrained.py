"""Refuse pretrained weights that fill nothing."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseModule, MMFullyShardedDataParallel
from mmengine.runner import CheckpointLoader, Runner
from mmseg.registry import HOOKS
from torch import Tensor, nn

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.models import unwrapped


@HOOKS.register_module()
class PretrainedHook(Hook):
    """Refuses pretrained weights (``init_cfg``) of which none has come into the module that asks for them.

    mmengine warns of keys that do not fit among hundreds of lines, and trains from scratch. Backbones convert
    the keys of their checkpoints in ways of their own, so values are compared and not names: one parameter of
    the module must be equal to a tensor of the checkpoint. Parameters with one axis and constant ones do not
    count, since those of any two networks may be equal.

    Modules are not looked at where other weights are loaded over theirs (``load_from``, ``--resume``, an
    ``init_cfg`` of a module around them), and none is where FSDP has cut the parameters into pieces.

    Raises:
        ConfigError: Before the weights are initialised: the checkpoint has no key with the ``prefix``. Before
            the first iteration: none of the weights came in. Both messages name the module, the checkpoint,
            and the ``prefix`` that would fit if there is one.
    """

    def before_run(self, runner: Runner) -> None:
        """Check the prefixes, on which mmengine has a bare assertion."""
        for where, module, settings in _pretrained(unwrapped(runner.model)):
            prefix = settings.get('prefix')
            if prefix is not None:
                weights = _weights(_read(settings))
                if not any(key.startswith(f'{prefix.removesuffix(".")}.') for key in weights):
                    raise ConfigError(
                        f'{where}.init_cfg: checkpoint {settings["checkpoint"]!r} has no weights that begin '
                        f'with the prefix {prefix!r}. {_advice(module, weights)}'
                    )

    def before_train(self, runner: Runner) -> None:
        """Look for the checkpoints' weights in the modules."""
        if runner._has_loaded or isinstance(runner.model, MMFullyShardedDataParallel):
            return
        covered: tuple[str, ...] = ()
        for where, module, settings in _pretrained(unwrapped(runner.model)):
            if where.startswith(covered):  # mmengine fills a module after those in it
                continue
            covered += (f'{where}.',)
            checkpoint = _read(settings)
            if not _has_some_of(module, checkpoint):
                raise ConfigError(
                    f'{where}.init_cfg: checkpoint {settings["checkpoint"]!r} has filled no weight of this '
                    f'{type(module).__name__}, which would train from scratch. '
                    f'{_advice(module, _weights(checkpoint))}'
                )


def _pretrained(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    """Yield the key and module of each ``init_cfg`` that names a checkpoint, and the ``init_cfg``."""
    for name, module in model.named_modules():
        settings = getattr(module, 'init_cfg', None)
        for one in settings if isinstance(settings, list | tuple) else [settings]:
            if isinstance(one, Mapping) and one.get('checkpoint'):
                yield f'model.{name}' if name else 'model', module, one


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the checkpoint of an ``init_cfg``, from wherever mmengine reads it."""
    return CheckpointLoader.load_checkpoint(settings['checkpoint'], map_location='cpu', logger='silent')


def _tensors(content: Any, key: str = '') -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts, each with its dotted key."""
    if isinstance(content, Tensor):
        yield key, content
    elif isinstance(content, Mapping):
        for name, part in content.items():
            yield from _tensors(part, f'{key}.{name}' if key else str(name))


def _weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: its ``state_dict``, its ``model``, as Swin's have it, or itself."""
    return dict(_tensors(checkpoint.get('state_dict', checkpoint.get('model', checkpoint))))


def _has_some_of(module: nn.Module, checkpoint: Mapping[str, Any]) -> bool:
    """Return whether a parameter of a module is in a checkpoint, or none is of a kind that tells."""
    by_shape = defaultdict(list)
    for _, value in _tensors(checkpoint):  # wherever a backbone of its own kind looks for it
        by_shape[value.shape].append(value)
    telling = [p for p in module.parameters() if p.dim() > 1 and bool((p != p.flatten()[:1]).any())]
    return not telling or any(
        bool((parameter == value.to(parameter)).all())
        for parameter in telling
        for value in by_shape[parameter.shape]
    )


def _advice(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Return which prefix would fit, else how the names or shapes of both differ."""
    own = {name: parameter.shape for name, parameter in module.named_parameters()}
    fits: Counter[str] = Counter()
    misshapen = {}
    for key, value in weights.items():
        parts = key.split('.')
        for i in range(len(parts)):
            name = '.'.join(parts[i:])
            if name in own and own[name] == value.shape:
                fits['.'.join(parts[:i])] += 1
            elif name in own:
                misshapen[name] = tuple(value.shape), tuple(own[name])
    if fits:
        prefix, number = fits.most_common(1)[0]
        if not prefix:
            return (
                'Its keys fit without a prefix. If none is given, the module looks elsewhere in the file: '
                'save the weights alone, as a dict of tensors'
            )
        advice = f"Write prefix='{prefix}.' beside it, with which {number} of {len(own)} weights fit"
        if getattr(type(module), 'init_weights', None) is not BaseModule.init_weights:
            advice += (
                f'; or, if {type(module).__name__} takes no prefix, save the weights without "{prefix}."'
            )
        return advice
    if misshapen:
        name, (given, wanted) = next(iter(misshapen.items()))
        return f'Its weights have other shapes, such as {name}: {given} instead of {wanted}'
    return f'It has keys such as {_some(weights)}, the module has {_some(own)}'


def _some(names: Mapping[str, Any]) -> str:
    return ', '.join(list(names)[:2]) or 'none'
