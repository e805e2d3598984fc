import functools

import pytest
import torch
from mmengine.hooks import EMAHook
from mmseg.models import EncoderDecoder, PSPHead, ResNetV1c
from torch import nn
from torch.utils.data import DataLoader

from bdd_seg.cli.signatures import Accepted, accepted_arguments, missing_arguments, unexpected_argument
from bdd_seg.distill.segmentor import CascadeSegDistiller, SegDistiller


class Base:
    def __init__(self, size: int, *, name: str = '') -> None:
        self.size = size


class HandsOn(Base):
    def __init__(self, depth: int = 1, **others) -> None:
        super().__init__(**others)


class Inherits(HandsOn):
    pass


class HandsElsewhere(Base):
    def __init__(self, **others) -> None:
        super().__init__(size=1)
        self.layer = nn.Linear(**others)


def decorated(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        kwargs.pop('old_name', None)
        return function(*args, **kwargs)

    return wrapper


class Decorated:
    @decorated
    def __init__(self, new_name: int) -> None:
        self.new_name = new_name


def function(size, scale=1):
    return size * scale


def open_function(size, **others):
    return size, others


@pytest.mark.parametrize(
    'kind, names, owner, closed',
    [
        (Base, {'size', 'name'}, 'Base', True),
        (HandsOn, {'depth', 'size', 'name'}, 'Base', False),
        (Inherits, {'depth', 'size', 'name'}, 'Base', False),
        (HandsElsewhere, {'size', 'name'}, 'Base', False),
        (Decorated, set(), None, False),
        (function, {'size', 'scale'}, 'function', True),
        (open_function, {'size'}, None, False),
        (dict, set(), None, False),
    ],
)
def test_accepted_arguments(kind, names, owner, closed):
    assert accepted_arguments(kind) == Accepted(frozenset(names), owner, closed)


@pytest.mark.parametrize(
    'kind, known, owner',
    [
        (ResNetV1c, {'depth', 'norm_cfg', 'init_cfg'}, 'ResNet'),
        (PSPHead, {'pool_scales', 'in_channels', 'channels'}, 'BaseDecodeHead'),
        (SegDistiller, {'teacher', 'distill_losses', 'backbone', 'decode_head'}, 'EncoderDecoder'),
        (CascadeSegDistiller, {'teacher', 'num_stages', 'backbone'}, 'CascadeEncoderDecoder'),
        (DataLoader, {'batch_size', 'num_workers', 'drop_last'}, 'DataLoader'),
        (torch.optim.SGD, {'params', 'lr', 'momentum'}, 'SGD'),
        (EMAHook, {'ema_type', 'begin_iter'}, None),  # it builds the average from what is left
    ],
)
def test_accepted_arguments_of_the_libraries(kind, known, owner):
    accepted = accepted_arguments(kind)
    assert (accepted.names & known, accepted.owner) == (known, owner)


@pytest.mark.parametrize(
    'kind, settings, problem',
    [
        (HandsOn, ['depth', 'size'], None),
        (HandsOn, ['sizes'], "unexpected keyword argument 'sizes' of Base. Did you mean size?"),
        (HandsOn, ['zzz'], None),  # it may use that itself
        (Base, ['zzz'], "unexpected keyword argument 'zzz' of Base."),
        (HandsElsewhere, ['in_features', 'out_features'], None),
        (open_function, ['sizes'], None),
        (PSPHead, ['pool_scale'], "'pool_scale' of BaseDecodeHead. Did you mean pool_scales?"),
        (EncoderDecoder, ['decode_hed'], "'decode_hed' of EncoderDecoder. Did you mean decode_head?"),
    ],
)
def test_unexpected_argument(kind, settings, problem):
    found = unexpected_argument(kind, settings)
    assert found is None if problem is None else found.endswith(problem)


@pytest.mark.parametrize(
    'kind, settings, missing',
    [
        (Base, [], ['size']),
        (Base, ['size'], []),
        (HandsOn, [], []),  # it may supply what its base class requires
        (function, ['scale'], ['size']),
        (torch.optim.SGD, ['lr'], ['params']),
        (dict, [], []),
    ],
)
def test_missing_arguments(kind, settings, missing):
    assert missing_arguments(kind, settings) == missing
