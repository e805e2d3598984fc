import pytest
import torch
from torch import nn

from bdd_seg.distill.taps import Tap
from bdd_seg.errors import ConfigError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        self.head = nn.ModuleDict({'conv_seg': nn.Linear(4, 2), 'unused': nn.Linear(4, 2)})
        self.pair = nn.LSTM(4, 2)

    def forward(self, x):
        x = self.body(x)
        self.pair(x)
        self.head['conv_seg'](x * 0)
        return self.head['conv_seg'](x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_captures_outputs_with_their_gradient(net):
    x = torch.randn(5, 3)
    with Tap(net, ['body.0', 'head.conv_seg']) as outputs:
        result = net(x)
    assert outputs['head.conv_seg'] is result  # ran twice: the last output stays
    assert torch.equal(outputs['body.0'], net.body[0](x))
    outputs['body.0'].sum().backward()
    assert torch.equal(net.body[0].bias.grad, torch.full((4,), 5.0))


def test_leaves_no_hook_behind(net):
    with Tap(net, ['body.0']):
        net(torch.randn(1, 3))
    with pytest.raises(ZeroDivisionError), Tap(net, ['body.0']):
        raise ZeroDivisionError  # keeps its own error
    assert not any(module._forward_hooks for module in net.modules())


def test_a_name_that_is_no_module_lists_names_nearby(net):
    with pytest.raises(ConfigError, match=r"tap 'head.conv_sgg' names no module in Net.*head\.conv_seg"):
        Tap(net, ['head.conv_sgg'])
    with pytest.raises(ConfigError, match=r'Names nearby: body\.1, body\.0, body$'):
        Tap(net, ['body.7'])


def test_a_module_that_did_not_run_or_puts_out_several_tensors(net):
    with pytest.raises(ConfigError, match=r"'head.unused' did not run"), Tap(net, ['head.unused']):
        net(torch.randn(1, 3))
    with pytest.raises(ConfigError, match=r"'pair' puts out a tuple, not one tensor"), Tap(net, ['pair']):
        net(torch.randn(1, 3))


def test_an_output_that_is_changed_in_place_is_refused():
    """As that of a BatchNorm before an in-place ReLU."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    with Tap(net, ['0', '2']) as outputs:
        result = net(torch.randn(2, 3, 4, 4))
    assert torch.equal(outputs['2'], result)
    with (
        pytest.raises(ConfigError, match="tap '1' puts out a tensor that is then changed in place"),
        Tap(net, ['1']),
    ):
        net(torch.randn(2, 3, 4, 4))
