"""Check that the heads of a model, their losses and the padding of labels agree about the classes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmseg.models import SegDataPreProcessor
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import (
    CrossEntropyLoss,
    HuasdorffDisstanceLoss,
    LovaszLoss,
    OhemCrossEntropy,
    TverskyLoss,
)
from mmseg.registry import MODELS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.settings import argument, class_of

# Losses over a softmax of the classes, each with the settings under which it takes another function. For one
# channel a softmax is 1 everywhere, and has no gradient.
_SOFTMAX: dict[type[Any], dict[str, Any]] = {
    CrossEntropyLoss: {'use_sigmoid': True, 'use_mask': True},
    LovaszLoss: {'loss_type': 'binary'},
    HuasdorffDisstanceLoss: {},
    OhemCrossEntropy: {},
    TverskyLoss: {},
}


class Head(NamedTuple):
    """A head in the settings of a model.

    Attributes:
        key: Its dotted key.
        settings: Its settings.
        kind: Its class.
        num_classes: The number of its classes, None where the settings do not say.
        ignore_index: The label that its losses ignore.
        learns_classes: Whether it compares its output with the label maps as they are. A head with a loss
            function of its own may learn something else from them, such as edges or depth.
    """

    key: str
    settings: Mapping[str, Any]
    kind: type[BaseDecodeHead]
    num_classes: int | None
    ignore_index: int | None
    learns_classes: bool


def heads_of(model: Mapping[str, Any]) -> Iterator[Head]:
    """Yield the decode heads and auxiliary heads of a model's settings."""
    for key in ('decode_head', 'auxiliary_head'):
        part: Any = model.get(key)
        heads: dict[str, Any] = (
            {f'model.{key}.{i}': head for i, head in enumerate(part)}
            if isinstance(part, list | tuple)
            else {f'model.{key}': part}
        )
        for where, head in heads.items():
            kind = class_of(head, MODELS)
            if kind is None or not issubclass(kind, BaseDecodeHead):
                continue
            number = argument(head, kind, 'num_classes')
            yield Head(
                where,
                head,
                kind,
                number if isinstance(number, int) else None,
                argument(head, kind, 'ignore_index'),
                kind.loss_by_feat is BaseDecodeHead.loss_by_feat,
            )


def check_heads(model: Mapping[str, Any]) -> None:
    """Check the heads of a model that is to be trained.

    Raises:
        ConfigError: A head has one output channel and a loss over a softmax of the channels, or labels are
            padded by a value that is neither a class of a head nor ignored by it.
    """
    for head in heads_of(model):
        _check_one_channel(head)
        if head.learns_classes:
            _check_padding(head, model.get('data_preprocessor'))


def _check_one_channel(head: Head) -> None:
    channels = argument(head.settings, head.kind, 'out_channels')
    if (head.num_classes if channels is None else channels) != 1 or not head.learns_classes:
        return
    losses = argument(head.settings, head.kind, 'loss_decode')
    for loss in losses if isinstance(losses, list | tuple) else [losses]:
        kind = class_of(loss, MODELS)
        others = [other for base, other in _SOFTMAX.items() if kind is not None and issubclass(kind, base)]
        if kind is None or not others:
            continue
        if not any(argument(loss, kind, name) == value for name, value in others[0].items()):
            raise ConfigError(
                f'{head.key} has one output channel, and its {kind.__name__} takes a softmax over it, which '
                'is 1 everywhere: nothing is learnt. Give it two classes, background and object, with a '
                f'channel each ({head.key}.num_classes=2), or with one channel and a sigmoid '
                f'({head.key}.num_classes=2, out_channels=1, '
                "loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))"
            )


def _check_padding(head: Head, preprocessor: Any) -> None:
    kind = class_of(preprocessor, MODELS)
    if kind is None or not issubclass(kind, SegDataPreProcessor):
        return
    if head.num_classes is None or head.ignore_index is None:
        return
    value = argument(preprocessor, kind, 'seg_pad_val')
    number = max(head.num_classes, 2)  # one class has a background, too
    if value != head.ignore_index and value not in range(number):
        raise ConfigError(
            f'model.data_preprocessor.seg_pad_val is {value}, the label of padded pixels. It is no class of '
            f'{head.key} (0 to {number - 1}), and {head.key}.ignore_index is {head.ignore_index}. Write '
            f'model.data_preprocessor.seg_pad_val={head.ignore_index}'
        )
