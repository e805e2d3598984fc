import pytest
import torch
from helpers import build
from mmengine.runner import turn_on_activation_checkpointing
from torch import nn


def gradients(config, batch, modules) -> tuple[float, dict]:
    """A distillation loss, and its own gradient in the student, with some modules checkpointed."""
    torch.manual_seed(0)
    model = build(config).train()
    turn_on_activation_checkpointing(model, modules)
    torch.manual_seed(1)  # of dropout
    loss = model.loss(*batch)['distill.loss_bdd']
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('modules', ['decode_head', ['backbone.layer4', 'decode_head.bottleneck']], ids=str)
def test_a_distillation_loss_has_the_same_gradient(tiny_configs, batch, modules):
    loss, plain = gradients(tiny_configs['distilled'], batch, [])
    same_loss, checkpointed = gradients(tiny_configs['distilled'], batch, modules)
    assert same_loss == loss
    assert {'backbone.stem.0.weight', 'decode_head.conv_seg.weight'} <= plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-8)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, x, *, power):
        return self.weight**power * x


def test_arguments_may_have_names():
    model = nn.Sequential(Scaled())
    turn_on_activation_checkpointing(model, '0')
    model[0](torch.tensor(5.0), power=2).backward()
    assert model[0].weight.grad == 2 * 3 * 5
