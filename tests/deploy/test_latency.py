"""Latencies of a network in torch and in ONNX files."""

import pytest
import torch
from small_network import ABOUT, build, onnx_file
from torch import nn

from bdd_seg.deploy.latency import (
    Latency,
    Row,
    all_threads,
    in_turns,
    measure,
    table,
    weight_bytes,
    with_folded_batch_norm,
)
from bdd_seg.deploy.network import DeployedNetwork


def test_every_form_with_every_number_of_threads(tmp_path):
    network = DeployedNetwork(build(), ABOUT)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    file = onnx_file(tmp_path / 'x.onnx', ABOUT)
    threads = torch.get_num_threads()
    found = measure(network, {'ONNX': file, 'INT8': file}, torch.zeros(1, 3, 16, 16), [1, 2], seconds=0)
    assert torch.get_num_threads() == threads
    assert list(found) == ['torch', 'ONNX', 'INT8']
    for latencies in found.values():
        assert list(latencies) == [1, 2]
        assert all(0 < one.low <= one.median <= one.high for one in latencies.values())
    after = network.state_dict()  # the copy in which batch norm is folded is another
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)


class NormFirst(nn.Module):
    """A batch norm that is named after a convolution and runs before it, as in PIDNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.bn = nn.BatchNorm2d(3)
        nn.init.uniform_(self.bn.weight, 2, 3)

    def forward(self, image):
        return self.conv(self.bn(image))


@pytest.mark.parametrize('channels', [3, 5])  # folded wrongly, and not at all
def test_batch_norm_is_folded_only_where_that_changes_nothing(channels):
    image = torch.rand(1, 3, 8, 8)
    network = NormFirst(channels).eval()
    assert with_folded_batch_norm(network, image) is network
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    folded = with_folded_batch_norm(plain, image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(image), plain(image), atol=1e-5)


def test_forms_take_turns():
    calls = []
    times = in_turns({'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}, seconds=0)
    assert ''.join(calls) == 'aaabbb' + 'ab' * 5
    assert {name: len(found) for name, found in times.items()} == {'a': 5, 'b': 5}
    assert len(in_turns({'a': lambda: None}, seconds=60)['a']) == 100


def test_the_table():
    rows = [
        Row('torch', 71.234, 3_220_000, {1: Latency(10, 9.5, 12.25), 4: Latency(4, 4, 5)}),
        Row('INT8', None, 900_000, {1: Latency(200, 199, 210), 4: Latency(80, 79, 81)}),
    ]
    assert table(rows).splitlines() == [
        '        mIoU     size                1 thread  images/s            4 threads  images/s',
        'torch  71.23  3.22 MB      10.0 ms (9.5–12.2)     100.0     4.0 ms (4.0–5.0)     250.0',
        'INT8       –  0.90 MB  200.0 ms (199.0–210.0)       5.0  80.0 ms (79.0–81.0)      12.5',
    ]


def test_bytes_of_weights_and_threads():
    network = DeployedNetwork(build(), ABOUT)
    assert weight_bytes(network) == pytest.approx(4 * sum(x.numel() for x in network.parameters()), rel=0.2)
    assert all_threads() >= 1
