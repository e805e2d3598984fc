"""The network that is exported computes what mmseg does."""

import pytest
import torch
from mmseg.models import SegDataPreProcessor
from mmseg.models.utils import Upsample
from small_network import ABOUT, build, images
from torch import nn

from bdd_seg.deploy.network import DeployedNetwork, ExportableAdaptivePool, ExportableUpsample, find_multiple
from bdd_seg.teachers.segmentors import run


def preprocessed(batch):
    preprocessor = SegDataPreProcessor(mean=ABOUT.mean, std=ABOUT.std, bgr_to_rgb=True)
    return preprocessor({'inputs': batch})['inputs']


@pytest.mark.parametrize('bins', [1, 2, 3, 6, (3, 5), (None, 2)])
@pytest.mark.parametrize('size', [(12, 12), (5, 7), (17, 9), (2, 3)])
def test_pooling(bins, size):
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    pair = bins if isinstance(bins, tuple) else (bins, bins)
    torch.testing.assert_close(ExportableAdaptivePool(pair)(features), nn.AdaptiveAvgPool2d(bins)(features))


@pytest.mark.parametrize('mode, align_corners', [('bilinear', False), ('bilinear', True), ('nearest', None)])
def test_enlarging(mode, align_corners):
    layer = Upsample(scale_factor=4, mode=mode, align_corners=align_corners)
    features = torch.randn(2, 3, 5, 7)
    assert torch.equal(ExportableUpsample(layer)(features), layer(features))


def test_layers_are_replaced_in_a_copy():
    model = build()
    model.pool = nn.AdaptiveAvgPool2d(3)
    network = DeployedNetwork(model, ABOUT)
    assert isinstance(network.model.backbone.up, ExportableUpsample)
    assert isinstance(network.model.pool, ExportableAdaptivePool)
    assert isinstance(model.backbone.up, Upsample) and isinstance(model.pool, nn.AdaptiveAvgPool2d)
    odd = DeployedNetwork(build(factor=1.5), ABOUT)
    assert isinstance(odd.model.backbone.up, Upsample)  # by no whole number


def test_logits_are_mmsegs():
    model = build()
    batch = preprocessed(images())
    with torch.no_grad():
        assert torch.equal(DeployedNetwork(model, ABOUT)(batch), run(model, batch))


def test_normalisation_inside_is_mmsegs():
    network = DeployedNetwork(build(), ABOUT.model_copy(update={'takes': 'pixels'}))
    pixels = torch.stack(images()).permute(0, 2, 3, 1)
    torch.testing.assert_close(network.normalised(pixels), preprocessed(images()))
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), run(network.model, preprocessed(images())))


def test_labels_are_mmsegs():
    model = build()
    network = DeployedNetwork(model, ABOUT.model_copy(update={'gives': 'labels'}))
    batch = preprocessed(images())
    with torch.no_grad():
        labels = network(batch)
        results = model.predict(batch)
    expected = torch.cat([result.pred_sem_seg.data for result in results])
    assert labels.dtype == torch.uint8 and labels.unique().numel() > 1
    assert torch.equal(labels.long(), expected)


def test_labels_of_a_binary_network():
    facts = {'threshold': 0.3, 'classes': ('no', 'yes'), 'palette': ABOUT.palette[:2]}
    network = DeployedNetwork(build(), ABOUT.model_copy(update=facts))
    logits = torch.tensor([-1.0, -0.8]).reshape(1, 1, 1, 2)  # sigmoid 0.269 and 0.310
    assert network.labels(logits, (1, 2)).tolist() == [[[0, 1]]]


def test_more_classes_than_eight_bits_hold():
    facts = {'classes': tuple(map(str, range(300))), 'palette': ((0, 0, 0),) * 300}
    network = DeployedNetwork(build(), ABOUT.model_copy(update=facts))
    logits = torch.zeros(1, 300, 1, 1)
    logits[0, 299] = 1
    assert network.labels(logits, (1, 1)).item() == 299


def test_the_multiple_of_which_lengths_must_be():
    assert find_multiple(DeployedNetwork(build(), ABOUT)) == 1
    assert find_multiple(DeployedNetwork(build(exact=True), ABOUT)) == 4
    assert find_multiple(DeployedNetwork(build(exact=True, factor=3.0), ABOUT)) is None
