"""Read the output of a module inside a network, without touching the network's code."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import torch
from mmseg.models import BaseSegmentor
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bdd_seg.errors import ConfigError


class Tap:
    """Captures the outputs of named modules for the time of one forward pass.

    Usage::

        with Tap(model, ['decode_head.conv_seg']) as outputs:
            model(images)
        logits = outputs['decode_head.conv_seg']

    A module that runs more than once leaves its last output. mmseg calls the ``forward`` of its heads
    directly, which hooks do not see, so tap a layer inside a head rather than the head.

    Args:
        model: The network.
        names: Dotted module names, as ``model.named_modules()`` gives them.

    Raises:
        ConfigError: On creation, a name that is no module of the network. When the ``with`` block ends, a
            module that did not run, whose output is not one tensor, or whose output a later module changed in
            place. The message lists names nearby.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._model = model
        self._modules = check_taps(model, names)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        for name, module in self._modules.items():

            def capture(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                outputs[name] = output
                if isinstance(output, Tensor) and not torch.is_inference_mode_enabled():
                    self._versions[name] = output._version

            self._handles.append(module.register_forward_hook(capture))
        self._outputs = outputs
        return outputs

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if exception_type is not None:
            return
        for name in self._modules:
            if name not in self._outputs:
                problem = 'did not run (mmseg calls the forward of heads directly; tap a layer)'
                raise _tap_error(self._model, name, problem)
            if not isinstance(self._outputs[name], Tensor):
                kind = type(self._outputs[name]).__name__
                raise _tap_error(self._model, name, f'puts out a {kind}, not one tensor')
            if name in self._versions and self._outputs[name]._version != self._versions[name]:
                problem = 'puts out a tensor that is then changed in place; tap the layer that changes it'
                raise _tap_error(self._model, name, problem)


def check_taps(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules of these dotted names.

    Raises:
        ConfigError: A name that is no module of the network. The message lists names nearby.
    """
    modules, found = dict(model.named_modules()), {}
    for name in names:
        if name not in modules:
            raise _tap_error(model, name, 'names no module')
        found[name] = modules[name]
    return found


def _tap_error(model: nn.Module, name: str, problem: str) -> ConfigError:
    nearby = ', '.join(nearby_modules(model, name))
    return ConfigError(f'tap {name!r} {problem} in {type(model).__name__}. Names nearby: {nearby}')


def nearby_modules(model: nn.Module, name: str, count: int = 6) -> list[str]:
    """Return module names like ``name``: similar ones, then children of its longest existing prefix."""
    names = [module for module, _ in model.named_modules() if module]
    prefix = name
    while prefix and prefix not in names:
        prefix = prefix.rpartition('.')[0]
    depth = prefix.count('.') + 1 if prefix else 0
    children = [n for n in names if n.startswith(prefix and f'{prefix}.') and n.count('.') == depth]
    similar = get_close_matches(name, names, n=count, cutoff=0.5)
    return list(dict.fromkeys([*similar, *children]))[: 2 * count]


def run_all_heads(model: BaseSegmentor, inputs: Tensor) -> None:
    """Run a segmentor with its auxiliary heads, which its own ``tensor`` mode leaves out.

    Args:
        model: The network.
        inputs: (N, C, H, W), normalised as the network expects.
    """
    features: list[Any] = []
    last = model.neck if model.with_neck else model.backbone
    handle = last.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    try:
        model(inputs, mode='tensor')
    finally:
        handle.remove()
    heads = getattr(model, 'auxiliary_head', None)
    if heads is not None:
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            head(features[-1])


def default_tap(model: BaseSegmentor) -> str:
    """Return the name of the layer that puts out the logits: ``conv_seg`` of the (last) decode head."""
    if isinstance(model.decode_head, nn.ModuleList):
        return f'decode_head.{len(model.decode_head) - 1}.conv_seg'
    return 'decode_head.conv_seg'
