"""The arguments of a loss, found by its constructor."""

import inspect

import pytest
from torch import nn

from bdd_seg import losses
from bdd_seg.distill.arguments import refused, taken
from bdd_seg.losses import BDDLoss, BPKDLoss, CWDLoss, DistillLoss

CLASSES = [
    loss
    for name, loss in vars(losses).items()
    if inspect.isclass(loss) and issubclass(loss, DistillLoss) and name not in ('DistillLoss', 'BalancedLoss')
]


def test_what_a_base_class_takes_is_refused_where_the_class_sets_it():
    assert refused(BDDLoss, {'type': 'BDDLoss', 'tau': 2.0, 'tau_forward': 2.0, 'mask_ignored': True}) == [
        'tau'
    ]
    assert refused(CWDLoss, {'tau': 2.0, 'tau_forward': 2.0, 'domain': 'pixel', 'standardize': True}) == [
        'tau_forward',
        'domain',
    ]
    assert refused(BPKDLoss, {'temperature': 1, 'reverse_weight': 1.0}) == ['temperature']


def test_a_wrong_value_is_no_wrong_argument():
    assert refused(BDDLoss, {'tau_forward': -1.0, 'domain': 'nowhere'}) == []


def test_nothing_is_said_of_other_modules():
    assert refused(nn.Linear, {'in_features': 1}) == []


@pytest.mark.parametrize('loss', CLASSES)
def test_all_that_is_named_can_be_given(loss):
    names = taken(loss)
    assert {'loss_weight', 'loss_name', 'mask_ignored', 'ignore_index'} <= {*names}
    own = [
        name for name, one in inspect.signature(loss).parameters.items() if one.kind is not one.VAR_KEYWORD
    ]
    assert names[: len(own)] == own
    defaults = {
        name: parameter.default
        for base in reversed(loss.__mro__[:-1])
        for name, parameter in inspect.signature(base.__init__).parameters.items()
    }
    given = {name: defaults[name] for name in names}
    loss(**{name: 3 if value is inspect.Parameter.empty else value for name, value in given.items()})


def test_names_of_bdd():
    own = [
        *('domain', 'tau_forward', 'tau_reverse', 'forward_weight', 'reverse_weight', 'loss_weight'),
        *('loss_name', 'standardize'),
    ]
    shared = ['mask_ignored', 'ignore_index', 'student_channels', 'teacher_channels']
    assert taken(BDDLoss) == [*own, *shared]
