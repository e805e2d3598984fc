import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

from bdd_seg.runtime.guards.nonfinite import (
    describe_nonfinite,
    image_paths,
    last_finite_checkpoint,
    loss_terms,
    plain_data,
    weights_are_finite,
    without_gradients,
    write_batch,
)

NAN = float('nan')


def test_terms_are_means_of_tensors_and_sums_of_lists():
    losses = {
        'loss_a': torch.tensor([1.0, 3.0]),
        'b.loss': [torch.tensor([1.0, 2.0]), torch.tensor(4.0)],
        'acc': torch.tensor(9.0),
        'loss_c': 1.0,
        'loss_d': [],
    }
    assert loss_terms(losses) == {'loss_a': torch.tensor(2.0), 'b.loss': torch.tensor(5.5)}


def test_losses_without_gradients():
    net = nn.Linear(2, 3)
    net.bias.requires_grad = False
    losses = {'loss_a': net(torch.full((1, 2), NAN)), 'acc': torch.tensor(1.0)}
    terms = loss_terms(losses)
    replaced = without_gradients(losses, terms, net)
    assert replaced.keys() == losses.keys()
    assert replaced['loss_a'].isnan()
    replaced['loss_a'].backward()
    assert torch.equal(net.weight.grad, torch.zeros(3, 2))
    assert net.bias.grad is None


@pytest.mark.parametrize(
    'terms, total, expected',
    [
        ({'loss_a': NAN, 'loss_b': 1.0, 'loss_c': float('inf')}, NAN, 'loss_a is nan, loss_c is inf'),
        ({'loss_a': 3e38, 'loss_b': 3e38}, float('inf'), 'the sum of the losses is inf'),
    ],
)
def test_descriptions(terms, total, expected):
    assert describe_nonfinite(terms, total) == expected


def test_samples_become_plain_data():
    sample = SegDataSample(metainfo={'img_path': 'a.png', 'img_shape': (1, 2)})
    sample.gt_sem_seg = PixelData(data=torch.tensor([[[1, 2]]]))
    batch = plain_data({'inputs': [torch.zeros(1, 1, 2)], 'data_samples': [sample]})
    (plain,) = batch['data_samples']
    assert plain['img_path'] == 'a.png' and plain['img_shape'] == [1, 2]
    assert plain['gt_sem_seg']['data'].tolist() == [[[1, 2]]]
    assert image_paths(batch) == ['a.png']
    assert image_paths({'data_samples': None}) == image_paths([1]) == []


def test_a_batch_is_written_as_data(tmp_path):
    path = tmp_path / 'folder/batch.pth'
    assert write_batch(path, {'batch': torch.ones(2)}) == f'the batch is in {str(path)!r}'
    assert torch.load(path, weights_only=True)['batch'].tolist() == [1, 1]
    assert write_batch(path / 'below', {}).startswith('the batch could not be written (')


def test_the_last_checkpoint_with_finite_weights(tmp_path):
    net = nn.Linear(2, 3)
    assert last_finite_checkpoint(None, tmp_path, net) is None
    assert weights_are_finite(net)
    for number in (1, 2):
        torch.save({'state_dict': net.state_dict()}, tmp_path / f'iter_{number}.pth')
        nn.init.constant_(net.weight, NAN)
    assert not weights_are_finite(net)
    noted = str(tmp_path / 'iter_2.pth')
    assert last_finite_checkpoint(noted, tmp_path, net) == str(tmp_path / 'iter_1.pth')
    (tmp_path / 'iter_1.pth').unlink()
    assert last_finite_checkpoint(noted, tmp_path, net) is None
