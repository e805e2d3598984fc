from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards import batch_norm
from bdd_seg.runtime.guards.batch_norm import BatchNormHook


class Pooled(BaseModule):
    """BatchNorms before and after pooling to one pixel."""

    def __init__(self, norm=nn.BatchNorm2d, **settings):
        super().__init__()
        self.before = norm(3, **settings)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.after = norm(3, **settings)

    def forward(self, images):
        return self.after(self.pool(self.before(images)))


def hooked(model, images=1) -> BatchNormHook:
    """The hook, after it was given a batch."""
    hook = BatchNormHook()
    hook.before_train_iter(SimpleNamespace(model=model), 0, {'inputs': [torch.zeros(3, 4, 4)] * images})
    return hook


def count(model) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_the_module_is_named_with_its_shape():
    model = Pooled()
    hook = hooked(model)
    with pytest.raises(
        ConfigError,
        match=r'^model.after: Expected more than 1 value per channel, got an input of shape \(1, 3, 1, 1\).*'
        r'Raise train_dataloader.batch_size, or set train_dataloader.drop_last=True',
    ):
        model(torch.randn(1, 3, 4, 4))
    hook.after_train(SimpleNamespace(model=model))
    assert count(model) == 0
    with pytest.raises(ValueError, match='Expected more than 1 value per channel when training'):
        model(torch.randn(1, 3, 4, 4))  # torch's own


@pytest.mark.parametrize('norm', [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_it_refuses_what_torch_refuses(norm):
    dimensions = {nn.BatchNorm1d: (0, 1), nn.BatchNorm2d: (2,), nn.BatchNorm3d: (3,)}[norm]
    for images in (1, 2):
        for size in (1, 2):
            for rest in dimensions:
                for settings in ({}, {'track_running_stats': False}):
                    for training in (True, False):
                        shape = (images, 3, *[size] * rest)
                        refused = []
                        for with_hook in (False, True):
                            model = nn.Sequential(norm(3, **settings)).train(training)
                            if with_hook:
                                hooked(model)
                            try:
                                model(torch.randn(shape))
                                refused.append(False)
                            except ValueError as error:
                                assert isinstance(error, ConfigError) is with_hook
                                refused.append(True)
                        assert refused[0] == refused[1], (shape, settings, training)


def test_larger_batches_add_nothing_and_outputs_stay():
    model, images = Pooled(), torch.randn(2, 3, 4, 4)
    expected = model(images)
    hook = hooked(model, images=2)
    hook.before_train_iter(SimpleNamespace(model=model), 0, [images])  # no dict of inputs
    hook.before_train_iter(SimpleNamespace(model=model), 0, None)
    assert count(model) == 0
    for _ in range(2):
        hook.before_train_iter(SimpleNamespace(model=model), 0, {'inputs': [images[0]]})
    assert count(model) == 2
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize('processes', [1, 2])
def test_sync_bn_counts_the_images_of_all_processes(monkeypatch, processes):
    monkeypatch.setattr(batch_norm, 'get_world_size', lambda: processes)
    model = Pooled(nn.SyncBatchNorm)
    hooked(model)
    assert count(model) == (2 if processes == 1 else 0)
