from contextlib import nullcontext

import pytest
import tiny_segmentors
import torch
import torch.nn.functional as F  # noqa: N812
from mmseg.registry import MODELS
from torch import nn

from bdd_seg.distill.taps import Tap, check_map, class_logits, default_tap
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


# Network → the tap of its class logits, and the loss that mmseg makes of the same logits.
LOGITS_OF = {
    'PSPNet': ('decode_head.conv_seg', 'decode.loss_ce'),
    'EncNet': ('decode_head.conv_seg', 'decode.loss_ce'),
    'SegFormer': ('decode_head.conv_seg', 'decode.loss_ce'),
    'UPerNet': ('decode_head.conv_seg', 'decode.loss_ce'),
    'SETR': ('decode_head.conv_seg', 'decode.loss_ce'),
    'Segmenter': ('logits', 'decode.loss_ce'),
    'Segmenter with a neck': ('logits', 'decode.loss_ce'),
    'K-Net': ('logits', 'decode.loss_ce.s2'),
    'OCRNet': ('decode_head.1.conv_seg', 'decode_1.loss_ce'),
    'PointRend': ('decode_head.0.conv_seg', 'decode_0.loss_ce'),
}


@pytest.mark.parametrize('name', LOGITS_OF)
def test_finds_the_class_logits_that_a_student_is_trained_by(name):
    model = tiny_segmentors.build(name).train()
    images, samples = tiny_segmentors.batch()
    tap, loss = LOGITS_OF[name]
    assert default_tap(model) == tap
    with Tap(model, ['logits']) as outputs:
        losses = model.loss(images, samples)
    logits = F.interpolate(outputs['logits'], images.shape[2:], mode='bilinear')
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    torch.testing.assert_close(losses[loss], F.cross_entropy(logits, labels))
    assert logits.requires_grad


def test_a_head_of_another_kind_must_be_named():
    model = tiny_segmentors.build('PSPNet')
    del model.decode_head.conv_seg
    with pytest.raises(ConfigError, match=r"a PSPHead has no layer conv_seg.*student_tap='...'"):
        default_tap(model)
    with pytest.raises(ConfigError, match=r'a Net has no layer conv_seg'):
        class_logits(Net())


def distiller(tmp_path, name, **taps):
    """A student that is taught by a network like itself."""
    torch.save({'state_dict': tiny_segmentors.build(name).state_dict()}, tmp_path / 'teacher.pth')
    teacher = {'config': tiny_segmentors.settings(name), 'checkpoint': str(tmp_path / 'teacher.pth')}
    loss = {'type': 'BDDLoss', **taps}
    settings = {**tiny_segmentors.settings(name), 'type': 'SegDistiller', 'teacher': teacher}
    return MODELS.build({**settings, 'distill_losses': [loss]}).train()


@pytest.mark.parametrize('owner', ['student', 'teacher'])
def test_kernels_are_no_map_of_the_images(tmp_path, owner):
    """They have four dimensions, the first of which is the number of images."""
    tap = 'decode_head.kernel_update_head.0.fc_mask'
    model = distiller(tmp_path, 'K-Net', **{f'{owner}_tap': tap})
    problem = rf"{owner}.*: tap '{tap}' puts out \(2, 3, 1, 8\), which is no map \(N, C, h, w\) of images"
    with pytest.raises(ConfigError, match=problem):
        model.loss(*tiny_segmentors.batch())


@pytest.mark.parametrize(
    'size, no_maps',
    [((64, 64), ()), ((64, 96), ()), ((64, 128), (6,)), ((128, 64), (6,)), ((64, 256), (3, 6))],
)
def test_pooled_maps(size, no_maps):
    """They have as many cells in height as in width. Few cells leave many strides possible."""
    model = tiny_segmentors.build('PSPNet')
    images, samples = tiny_segmentors.batch(size)
    cells_of = {f'decode_head.psp_modules.{i}': cells for i, cells in enumerate((1, 2, 3, 6))}
    with Tap(model, cells_of) as outputs:
        model.loss(images, samples)
    for tap, cells in cells_of.items():
        refused = nullcontext()
        if cells in no_maps:
            refused = pytest.raises(ConfigError, match=rf'\(2, 8, {cells}, {cells}\), which is no map')
        with refused:
            check_map(outputs[tap], images, model, tap, 'student')


@pytest.mark.parametrize('size', [(64, 96), (96, 64), (65, 97), (33, 200)])
def test_maps_of_images_of_any_shape(size):
    model = tiny_segmentors.build('PSPNet')
    taps = ['backbone.stem', *(f'backbone.layer{i}' for i in range(1, 5)), 'logits']
    images, samples = tiny_segmentors.batch(size)
    with Tap(model, taps) as outputs:
        model.loss(images, samples)
    for tap, output in outputs.items():
        check_map(output, images, model, tap, 'student')
        with pytest.raises(ConfigError, match='no map'):
            check_map(output[:1], images, model, tap, 'student')  # of fewer images
        with pytest.raises(ConfigError, match='no map'):
            check_map(output[..., 0], images, model, tap, 'student')
