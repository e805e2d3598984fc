"""Read maps inside a network, without touching the network's code."""

import math
import pkgutil
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

import torch
from mmseg.models import BaseSegmentor
from mmseg.models.decode_heads import IterativeDecodeHead, PointHead, SegmenterMaskTransformerHead
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bdd_seg.errors import ConfigError

LOGITS = 'logits'
"""The tap of the final class logits of a network, whichever layers make them."""


def named_tap(tap: str | None, logits_tap: str) -> str:
    """Return the tap that is meant: ``logits_tap`` for None and for ``'logits'``, else the tap itself."""
    return logits_tap if tap in (None, LOGITS) else tap


class MapOf(NamedTuple):
    """A map that is made of the outputs of some modules.

    Attributes:
        modules: Dotted names of the modules.
        read: Called with their outputs in this order; returns the map (N, C, h, w).
    """

    modules: tuple[str, ...]
    read: Callable[..., Any]


class Tap:
    """Captures maps inside a network for the time of one forward pass.

    Usage::

        with Tap(model, ['decode_head.conv_seg']) as outputs:
            model(images)
        logits = outputs['decode_head.conv_seg']

    A tap is the dotted name of a module, as ``model.named_modules()`` gives it, for its output. Or it is
    ``'package.module:function'`` for a function that is called with the network and returns a
    :class:`MapOf`. Or it is ``'logits'``, for the class logits that :func:`class_logits` finds.

    The outputs are complete when the ``with`` block has ended. A module that runs more than once leaves its
    last output. mmseg calls the ``forward`` of its heads directly, which hooks do not see, so tap a layer
    inside a head rather than the head.

    Args:
        model: The network.
        taps: What to capture.
        read: Called as ``read(name, output)`` for a tap that is the name of a module, to make the map of what
            the module put out. By default the output is the map.

    Raises:
        ConfigError: On creation, a tap that names nothing in the network. When the ``with`` block ends, a
            module that did not run, a map that is not one tensor, or an output that a later module changed in
            place. The message lists names nearby.
    """

    def __init__(
        self, model: nn.Module, taps: Iterable[str], read: Callable[[str, Any], Any] | None = None
    ) -> None:
        self._model = model
        self._maps = find_taps(model, taps, read)
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> dict[str, Tensor]:
        modules = dict(self._model.named_modules())
        self._raw: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        for name in {name for one in self._maps.values() for name in one.modules}:

            def capture(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                self._raw[name] = output
                if isinstance(output, Tensor) and not torch.is_inference_mode_enabled():
                    self._versions[name] = output._version

            self._handles.append(modules[name].register_forward_hook(capture))
        self._outputs: dict[str, Tensor] = {}
        return self._outputs

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if exception_type is not None:
            return
        for tap, (modules, read) in self._maps.items():
            for name in modules:
                if name not in self._raw:
                    problem = 'did not run (mmseg calls the forward of heads directly; tap a layer)'
                    raise _tap_error(self._model, name, problem)
                if name in self._versions and self._raw[name]._version != self._versions[name]:
                    problem = 'puts out a tensor that is then changed in place; tap the layer that changes it'
                    raise _tap_error(self._model, name, problem)
            output = read(*(self._raw[name] for name in modules))
            if not isinstance(output, Tensor):
                raise _tap_error(self._model, tap, f'puts out a {type(output).__name__}, not one tensor')
            self._outputs[tap] = output


def check_taps(model: nn.Module, taps: Iterable[str], owner: str) -> None:
    """Check that taps name something in a network.

    Raises:
        ConfigError: As :func:`find_taps`. The message begins with ``owner``, whose taps they are.
    """
    try:
        find_taps(model, taps)
    except ConfigError as error:
        raise ConfigError(f'{owner}: {error}') from error


def find_taps(
    model: nn.Module, taps: Iterable[str], read: Callable[[str, Any], Any] | None = None
) -> dict[str, MapOf]:
    """Return tap → the modules that it reads, and how; ``read`` as for :class:`Tap`.

    Raises:
        ConfigError: A tap names no module of the network, or no function. The message lists names nearby.
    """
    modules, found = dict(model.named_modules()), {}
    for tap in taps:
        if tap == LOGITS:
            found[tap] = class_logits(model)
        elif ':' in tap:
            found[tap] = _made_by(tap, model)
        else:
            found[tap] = MapOf((tap,), partial(read, tap) if read else _itself)
        for name in found[tap].modules:
            if name not in modules:
                raise _tap_error(model, name, 'names no module')
    return found


def check_map(output: Tensor, inputs: Tensor, network: nn.Module, tap: str, owner: str) -> None:
    """Check that a tapped tensor can be a map of the images that went in.

    Its height and width must be those of the images, divided by one stride and rounded in any way.

    Args:
        output: The tensor that was tapped.
        inputs: (N, C, H, W), the images.
        network: Where it was tapped.
        tap: The tap.
        owner: ``'student'`` or ``'teacher'``, for the message.

    Raises:
        ConfigError: It cannot.
    """
    if output.dim() == 4 and len(output) == len(inputs):
        # The strides with which each length is within 1.5 cells of what was found.
        lengths = [*zip(inputs.shape[2:], output.shape[2:], strict=True)]
        smallest = max(image / (cells + 1.5) for image, cells in lengths)
        largest = min(image / (cells - 1.5) if cells > 1 else math.inf for image, cells in lengths)
        if smallest <= largest:
            return
    shape, images = tuple(output.shape), tuple(inputs.shape)
    problem = f'puts out {shape}, which is no map (N, C, h, w) of images {images}. Tap a layer that is'
    raise ConfigError(f'{owner}: {_tap_error(network, tap, problem)}')


def tap_name(tap: Any, key: str) -> str:
    """Return the tap as the text that names it; functions may be given as themselves.

    Raises:
        ConfigError: It is neither a text nor a function that can be imported. The message begins with
            ``key``.
    """
    if isinstance(tap, str):
        return tap
    module, name = getattr(tap, '__module__', None), getattr(tap, '__qualname__', '')
    if callable(tap) and module and name.isidentifier():
        return f'{module}:{name}'
    raise ConfigError(f"{key} must be the dotted name of a module or 'package.module:function', got {tap!r}")


def import_named(name: str, key: str) -> Any:
    """Return what ``'package.module:name'`` names.

    Raises:
        ConfigError: It cannot be imported, or is not callable. The message begins with ``key``.
    """
    try:
        found = pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key}: {name!r} cannot be imported ({error}). Write 'package.module:function'; if it is in the "
            'folder you run in, begin the line with PYTHONPATH=.'
        ) from error
    if not callable(found):
        raise ConfigError(f'{key}: {name!r} is no function, it is a {type(found).__name__}')
    return found


def _made_by(tap: str, model: nn.Module) -> MapOf:
    found = import_named(tap, 'tap')(model)
    try:
        modules, read = found
    except (TypeError, ValueError):
        raise ConfigError(
            f'tap {tap!r} must return MapOf(modules, read), the names of some modules and a function of '
            f'their outputs; got {found!r}'
        ) from None
    return MapOf(tuple(modules), read)


def _itself(output: Any) -> Any:
    return output


def _tap_error(model: nn.Module, name: str, problem: str) -> ConfigError:
    nearby = ', '.join(nearby_modules(model, name))
    return ConfigError(f'tap {name!r} {problem} in {type(model).__name__}. Names nearby: {nearby}')


def nearby_modules(model: nn.Module, name: str, count: int = 6) -> list[str]:
    """Return module names like ``name``: similar ones, then children of its longest existing prefix."""
    # Neither losses nor lists of modules put out a map.
    names = [
        name
        for name, module in model.named_modules()
        if name and 'loss' not in name and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    ]
    prefix = name
    while prefix and prefix not in names:
        prefix = prefix.rpartition('.')[0]
    depth = prefix.count('.') + 1 if prefix else 0
    children = [n for n in names if n.startswith(prefix and f'{prefix}.') and n.count('.') == depth]
    similar = get_close_matches(name, names, n=count, cutoff=0.5)
    return list(dict.fromkeys([*similar, *children]))[: 2 * count]


def run_all_heads(
    model: BaseSegmentor, inputs: Tensor, run: Callable[[BaseSegmentor, Tensor], Any] = nn.Module.__call__
) -> Any:
    """Run a segmentor with its auxiliary heads, which it leaves out except while it trains.

    Args:
        model: The network.
        inputs: (N, C, H, W), normalised as the network expects.
        run: Runs it without them.

    Returns:
        What ``run`` returns.
    """
    features: list[Any] = []
    last = model.neck if model.with_neck else model.backbone
    handle = last.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    try:
        output = run(model, inputs)
    finally:
        handle.remove()
    heads = getattr(model, 'auxiliary_head', None)
    if heads is not None:
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            head(features[-1])
    return output


def class_logits(model: nn.Module) -> MapOf:
    """Return where a segmentor that trains puts out its final class logits, per pixel.

    - Most heads classify by ``conv_seg``.
    - K-Net (``IterativeDecodeHead``): the masks of the last stage.
    - Segmenter: the normalised products of patches and classes.
    - PointRend: the coarse logits. The refined ones exist for some points only while it trains.

    Raises:
        ConfigError: The head is of another kind, or there is none.
    """
    head, name = getattr(model, 'decode_head', None), 'decode_head'
    if isinstance(head, nn.ModuleList) and len(head):
        number = len(head) - (2 if isinstance(head[-1], PointHead) else 1)
        head, name = head[number], f'{name}.{number}'
    if isinstance(head, IterativeDecodeHead):
        return MapOf((f'{name}.kernel_update_head.{head.num_stages - 1}',), _first)
    if isinstance(head, SegmenterMaskTransformerHead):
        features = 'neck' if model.with_neck else 'backbone'
        return MapOf((f'{name}.mask_norm', features), partial(_patches_to_map, head.in_index))
    if hasattr(head, 'conv_seg'):
        return MapOf((f'{name}.conv_seg',), _itself)
    kind = type(model if head is None else head).__name__
    raise ConfigError(
        f'a {kind} has no layer conv_seg, and where it puts out its class logits is not known. Name the '
        "layer: student_tap='...', or a function that finds them: 'package.module:function'"
    )


def default_tap(model: nn.Module) -> str:
    """Return the tap of a segmentor's class logits: the layer's name, ``'logits'`` where there is none.

    Raises:
        ConfigError: As :func:`class_logits`.
    """
    modules, read = class_logits(model)
    return modules[0] if read is _itself else LOGITS


def last_head(model: nn.Module) -> Any:
    """Return the decode head of a segmentor, the last one of a cascade, None where there is none."""
    head = getattr(model, 'decode_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) and len(head) else head


def _first(outputs: tuple[Tensor, ...]) -> Tensor:
    return outputs[0]


def _patches_to_map(index: int, masks: Tensor, features: Any) -> Tensor:
    """Return (N, C, h, w) from (N, h·w, C), on the grid of the features that the head gets."""
    height, width = (features[index] if isinstance(features, list | tuple) else features).shape[2:]
    return masks.transpose(1, 2).unflatten(2, (height, width))
