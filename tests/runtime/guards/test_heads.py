"""Heads whose loss cannot learn, and padded labels that are no labels."""

from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmseg.models.losses import OhemCrossEntropy
from mmseg.registry import MODELS

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.heads import check_heads

CE = {'type': 'CrossEntropyLoss', 'use_sigmoid': False}
SIGMOID = {'type': 'CrossEntropyLoss', 'use_sigmoid': True}


@MODELS.register_module()
class HardExamples(OhemCrossEntropy):
    """A loss of a user's own, derived from mmseg's."""


def head(**settings) -> dict:
    settings = {'type': 'FCNHead', 'in_channels': 4, 'channels': 4, 'num_classes': 5, **settings}
    return {key: value for key, value in settings.items() if value is not None}


def model(decode_head, auxiliary_head=None, **preprocessor) -> dict:
    preprocessor = {'type': 'SegDataPreProcessor', 'size': (32, 32), **preprocessor}
    settings = {'data_preprocessor': preprocessor, 'decode_head': decode_head}
    return settings if auxiliary_head is None else {**settings, 'auxiliary_head': auxiliary_head}


@pytest.mark.parametrize(
    'loss',
    [
        CE,
        None,  # of the head's own
        [SIGMOID, {'type': 'LovaszLoss', 'reduction': 'none'}],
        {'type': 'mmseg.TverskyLoss'},
        {'type': HardExamples},
        {'type': 'HardExamples'},
    ],
    ids=str,
)
@pytest.mark.parametrize('channels', [{'num_classes': 1}, {'num_classes': 2, 'out_channels': 1}], ids=str)
def test_one_channel_has_no_softmax(loss, channels):
    one = head(**channels, loss_decode=loss)
    mends = r'model.{}.num_classes=2\), or .*out_channels=1, .*use_sigmoid=True'
    with pytest.raises(ConfigError, match='model.decode_head has one .*' + mends.format('decode_head')):
        check_heads(model(one, head()))
    for auxiliary, key in ((one, 'auxiliary_head'), ([head(), one], 'auxiliary_head.1')):
        with pytest.raises(ConfigError, match=f'model.{key} has one .*' + mends.format(key)):
            check_heads(model(head(), auxiliary))


@pytest.mark.parametrize(
    'channels, loss',
    [
        ({'num_classes': 1}, SIGMOID),
        ({'num_classes': 2, 'out_channels': 1}, SIGMOID),
        ({'num_classes': 2, 'out_channels': 1}, [SIGMOID, {'type': 'DiceLoss', 'use_sigmoid': False}]),
        (
            {'num_classes': 2, 'out_channels': 1},
            {'type': 'LovaszLoss', 'loss_type': 'binary', 'reduction': 'none'},
        ),
        ({'num_classes': 2}, CE),
    ],
    ids=str,
)
def test_what_learns_is_left_alone(channels, loss):
    settings = head(**channels, loss_decode=loss)
    check_heads(model(settings))
    built = MODELS.build(settings)
    labels = torch.arange(64).reshape(1, 8, 8) % 2
    logits = torch.randn(1, built.out_channels, 8, 8, requires_grad=True)
    losses = built.loss_decode if isinstance(built.loss_decode, torch.nn.ModuleList) else [built.loss_decode]
    for one in losses:
        (gradient,) = torch.autograd.grad(one(logits, labels, ignore_index=255).sum(), logits)
        assert gradient.abs().max() > 0


def test_padded_labels_are_a_class_or_ignored():
    check_heads(model(head(), head()))
    check_heads(model(head(ignore_index=0), seg_pad_val=0))
    check_heads(model(head(ignore_index=0), seg_pad_val=4))
    check_heads(model(head(ignore_index=None)))  # nothing is ignored, and the loss knows
    expected = (
        r'model.data_preprocessor.seg_pad_val is 255, .* no class of model.decode_head \(0 to 4\), and '
        r'model.decode_head.ignore_index is 0. Write model.data_preprocessor.seg_pad_val=0'
    )
    with pytest.raises(ConfigError, match=expected):
        check_heads(model(head(ignore_index=0)))
    with pytest.raises(ConfigError, match='seg_pad_val is 5, .*ignore_index is 254. Write .*seg_pad_val=254'):
        check_heads(model(head(ignore_index=254), seg_pad_val=5))
    with pytest.raises(ConfigError, match='no class of model.auxiliary_head.1 .*ignore_index is 9'):
        check_heads(model(head(), [head(), head(ignore_index=9)]))


def test_heads_with_a_loss_of_their_own_are_left_alone():
    check_heads(model(head(type='STDCHead', num_classes=1, ignore_index=7)))


def test_every_config_of_mmseg_is_right():
    folder = Path(mmseg.__file__).parent / '.mim/configs/_base_/models'
    checked = 0
    for path in sorted(folder.glob('*.py')):
        settings = Config.fromfile(path, import_custom_modules=False).model
        check_heads(settings)
        checked += 'decode_head' in settings
    assert checked > 40
