"""A network of a few layers, which is exported in a second, and ONNX files made by hand."""

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import ConfigDict
from mmseg.models.utils import Upsample
from mmseg.registry import MODELS
from torch import nn

from bdd_seg.deploy.about import KEY, About

ABOUT = About(
    classes=('road', 'sky', 'car'),
    palette=((128, 64, 128), (70, 130, 180), (0, 0, 142)),
    mean=(100.0, 110.0, 120.0),
    std=(50.0, 55.0, 60.0),
    bgr_to_rgb=True,
)


@MODELS.register_module()
class SmallBackbone(nn.Module):
    """A map of half the images' size, with one of a quarter that is enlarged by a factor and added.

    Args:
        factor: A whole one is exported for any size.
        skewed: Whether a layer computes something else while it is exported.
        exact: Whether the enlarged map must have the other's size, which most sizes do not give.
    """

    def __init__(self, factor: float = 2.0, skewed: bool = False, exact: bool = False) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.lower = nn.Conv2d(4, 4, 3, 2, 1)
        self.up = Upsample(scale_factor=factor, mode='bilinear', align_corners=False)
        self.last = Skewed() if skewed else nn.ReLU(inplace=True)
        self.exact = exact

    def init_weights(self):
        pass

    def forward(self, images):
        features = self.down(images)
        low = self.up(self.lower(features))
        if not self.exact:
            low = F.interpolate(low, features.shape[2:], mode='bilinear')
        return (self.last(features + low),)


class Skewed(nn.Module):
    def forward(self, features):
        return features * 1.5 if torch.compiler.is_exporting() else features


def settings(classes: int = 3, **backbone) -> ConfigDict:
    model = {
        'type': 'EncoderDecoder',
        'data_preprocessor': {
            **{'type': 'SegDataPreProcessor', 'mean': ABOUT.mean, 'std': ABOUT.std, 'bgr_to_rgb': True},
        },
        'backbone': {'type': 'SmallBackbone', **backbone},
        'decode_head': {
            **{'type': 'FCNHead', 'in_channels': 4, 'channels': 4, 'num_classes': classes, 'num_convs': 1},
            **{'in_index': 0, 'align_corners': False, 'norm_cfg': {'type': 'BN'}},
        },
        'test_cfg': {'mode': 'whole'},
    }
    return ConfigDict(model)


def build(classes: int = 3, **backbone) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS.build(settings(classes, **backbone))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(count: int = 2, size=(20, 32)) -> list[torch.Tensor]:
    """Images (3, H, W) uint8, smooth as real ones are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 4, 5, generator=generator) * 255
    return list(F.interpolate(coarse, size, mode='bilinear').to(torch.uint8))


def onnx_file(path, about: About | str | None, stride: int = 1, shape=('n', 3, 'h', 'w')):
    """Write an ONNX file whose logits, one for each channel, are the mean of each cell of stride²."""
    weights = np.zeros((3, 3, stride, stride), np.float32)
    for channel in range(3):
        weights[channel, channel] = 1 / stride**2
    out = [None if isinstance(length, str) else length // stride for length in shape[2:]]
    node = onnx.helper.make_node('Conv', ['image', 'weights'], ['logits'], strides=[stride, stride])
    graph = onnx.helper.make_graph(
        [node],
        'cells',
        [onnx.helper.make_tensor_value_info('image', onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info('logits', onnx.TensorProto.FLOAT, (shape[0], 3, *out))],
        [onnx.numpy_helper.from_array(weights, 'weights')],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)], ir_version=10)
    if about is not None:
        text = about if isinstance(about, str) else about.model_dump_json()
        onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)
    return path
