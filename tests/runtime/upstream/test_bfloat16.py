import torch
from mmseg.registry import OPTIM_WRAPPERS
from torch import nn


def test_autocasts_to_bfloat16_and_steps_in_float32():
    model = nn.Linear(4, 2)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    wrapper = OPTIM_WRAPPERS.build({'type': 'BFloat16OptimWrapper', 'optimizer': optimizer})
    with wrapper.optim_context(model):
        output = model(torch.ones(3, 4))
    assert output.dtype == torch.bfloat16
    wrapper.update_params(output.float().sum())
    assert model.weight.dtype == torch.float32
    assert torch.equal(model.weight, before - 0.5 * 3)
