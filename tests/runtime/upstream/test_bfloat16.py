import pytest
import torch
from mmengine.logging import MMLogger
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn

from bdd_seg.runtime.upstream.bfloat16 import is_slow


def wrapper(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return OPTIM_WRAPPERS.build({'type': 'BFloat16OptimWrapper', 'optimizer': optimizer})


def test_autocasts_to_bfloat16_and_steps_in_float32():
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    built = wrapper(model)
    with built.optim_context(model):
        output = model(torch.ones(3, 4))
    assert output.dtype == torch.bfloat16
    built.update_params(output.float().sum())
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, before - 0.5 * 3)


@pytest.mark.parametrize(
    'capabilities, slow',
    [
        ({'avx2': True, 'avx512_f': True, 'avx512_bf16': False, 'amx_bf16': False}, True),
        ({'avx2': True, 'avx512_bf16': True}, False),
        ({'amx_bf16': True}, False),
        ({'neon': True, 'bf16': False}, True),
        ({'neon': True, 'bf16': True}, False),
    ],
)
def test_a_cpu_without_units_is_slow(monkeypatch, capabilities, slow):
    monkeypatch.setattr('bdd_seg.runtime.upstream.bfloat16.get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: capabilities)
    assert is_slow() is slow
    monkeypatch.setattr('bdd_seg.runtime.upstream.bfloat16.get_device', lambda: 'cuda')
    assert not is_slow()


@pytest.mark.parametrize('slow', [True, False])
def test_mixed_precision_warns_where_it_is_slow(monkeypatch, capsys, slow):
    monkeypatch.setattr('bdd_seg.runtime.upstream.bfloat16.is_slow', lambda: slow)
    MMLogger.get_instance(f'mixed precision, slow: {slow}')
    wrapper(nn.Linear(4, 2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == slow
    assert all('mixed precision: this CPU has no units for bfloat16' in line for line in lines)
