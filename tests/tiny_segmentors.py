"""Settings of tiny mmseg networks, one for each way in which heads put out class logits. Three classes."""

import torch
import torch.nn.functional as F  # noqa: N812
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn

CLASSES = 3
SIZE = (64, 96)  # not square, so that height and width cannot change places

_BN = {'type': 'BN'}
_RESNET = {'type': 'ResNetV1c', 'depth': 18, 'base_channels': 4, 'stem_channels': 4, 'norm_cfg': _BN}
_VIT = {'type': 'VisionTransformer', 'img_size': SIZE, 'patch_size': 8, 'embed_dims': 8, 'num_layers': 1}
_VIT.update(num_heads=2, drop_rate=0.0, drop_path_rate=0.0, final_norm=True, interpolate_mode='bilinear')
_HEAD = {'num_classes': CLASSES, 'channels': 8, 'dropout_ratio': 0, 'align_corners': False}
_LAST = {**_HEAD, 'norm_cfg': _BN, 'in_channels': 32, 'in_index': 3}
_ALL = {**_LAST, 'in_channels': [4, 8, 16, 32], 'in_index': [0, 1, 2, 3]}
_FCN = {**_LAST, 'type': 'FCNHead', 'num_convs': 1}
_STAGE = {
    **{'type': 'KernelUpdateHead', 'num_classes': CLASSES, 'num_heads': 2, 'feedforward_channels': 8},
    **{'in_channels': 8, 'out_channels': 8, 'dropout': 0.0, 'feat_transform_cfg': {'act_cfg': None}},
    'kernel_updator_cfg': {
        **{'type': 'KernelUpdator', 'in_channels': 8, 'feat_channels': 8, 'out_channels': 8},
        **{'act_cfg': {'type': 'ReLU'}, 'norm_cfg': {'type': 'LN'}},
    },
}
_SEGMENTER = {
    **{**_HEAD, 'type': 'SegmenterMaskTransformerHead', 'in_channels': 8, 'channels': 8, 'num_layers': 1},
    **{'num_heads': 2, 'embed_dims': 8, 'drop_path_rate': 0.0},
}
_POINT = {**_HEAD, 'type': 'PointHead', 'in_channels': [8], 'in_index': [0], 'num_fcs': 1}

SEGMENTORS = {
    'PSPNet': {'decode_head': {**_LAST, 'type': 'PSPHead'}},
    'EncNet': {
        'decode_head': {
            **{**_LAST, 'type': 'EncHead', 'in_channels': [8, 16, 32], 'in_index': [1, 2, 3]},
            **{'num_codes': 4},
        }
    },
    'SegFormer': {'decode_head': {**_ALL, 'type': 'SegformerHead'}},
    'UPerNet': {'decode_head': {**_ALL, 'type': 'UPerHead'}},
    'SETR': {
        'backbone': _VIT,
        'decode_head': {**_HEAD, 'type': 'SETRUPHead', 'in_channels': 8, 'in_index': 0, 'norm_cfg': _BN},
    },
    'Segmenter': {'backbone': _VIT, 'decode_head': _SEGMENTER},
    'Segmenter with a neck': {
        'backbone': _VIT,
        'neck': {'type': 'MultiLevelNeck', 'in_channels': [8], 'out_channels': 8, 'scales': [2]},
        'decode_head': _SEGMENTER,
    },
    'K-Net': {
        'decode_head': {
            'type': 'IterativeDecodeHead',
            'num_stages': 2,
            'kernel_update_head': [_STAGE, _STAGE],
            'kernel_generate_head': _FCN,
        }
    },
    'OCRNet': {
        'type': 'CascadeEncoderDecoder',
        'num_stages': 2,
        'decode_head': [_FCN, {**_LAST, 'type': 'OCRHead', 'ocr_channels': 4}],
    },
    'PointRend': {
        'type': 'CascadeEncoderDecoder',
        'num_stages': 2,
        'neck': {'type': 'FPN', 'in_channels': [4, 8, 16, 32], 'out_channels': 8, 'num_outs': 4},
        'decode_head': [
            {
                **{**_HEAD, 'type': 'FPNHead', 'in_channels': [8] * 4, 'in_index': [0, 1, 2, 3]},
                **{'feature_strides': [4, 8, 16, 32], 'norm_cfg': _BN},
            },
            _POINT,
        ],
        'train_cfg': {'num_points': 16, 'oversample_ratio': 3, 'importance_sample_ratio': 0.75},
        'test_cfg': {
            **{'mode': 'whole', 'subdivision_steps': 2, 'subdivision_num_points': 200},
            **{'scale_factor': 2},
        },
    },
    'SAN': {
        'type': 'MultimodalEncoderDecoder',
        'asymetric_input': True,
        'encoder_resolution': 0.5,
        'image_encoder': {
            **{**_VIT, 'num_layers': 2, 'out_origin': True, 'out_indices': (0, 1), 'pre_norm': True},
            **{'output_cls_token': True, 'final_norm': False},
        },
        'text_encoder': {'type': 'TinyTextEncoder'},
        'decode_head': {
            'type': 'SideAdapterCLIPHead',
            'num_classes': CLASSES,
            'deep_supervision_idxs': [],
            'san_cfg': {
                **{'in_channels': 3, 'clip_channels': 8, 'embed_dims': 8, 'patch_size': 8, 'num_queries': 5},
                **{'fusion_index': [0, 1, 2], 'norm_cfg': {'type': 'LN'}},
                'cfg_encoder': {'num_encode_layer': 2, 'num_heads': 2, 'mlp_ratio': 1},
                'cfg_decoder': {
                    **{'num_heads': 2, 'num_layers': 1, 'embed_channels': 8, 'mlp_channels': 8},
                    **{'num_mlp': 2, 'rescale': True},
                },
            },
            'maskgen_cfg': {
                **{'sos_token_num': 5, 'num_layers': 1, 'embed_dims': 8, 'num_heads': 2, 'mlp_ratio': 1},
                **{'out_dims': 8, 'sos_token_format': 'cls_token', 'norm_cfg': {'type': 'LN'}},
            },
            'train_cfg': None,
        },
    },
}
"""Name → its settings."""

NEED_POINT_SAMPLE = ('PointRend', 'SAN')


@MODELS.register_module()
class TinyTextEncoder(nn.Module):
    """An embedding of each class and of the background, (C + 1, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.randn(CLASSES + 1, 8))

    def init_weights(self) -> None:
        pass

    def forward(self) -> torch.Tensor:
        return 5 * F.normalize(self.embeddings, dim=-1)


def settings(name: str) -> ConfigDict:
    """Return the settings of a network."""
    preprocessor = {'type': 'SegDataPreProcessor', 'mean': [120.0] * 3, 'std': [60.0] * 3, 'size': SIZE}
    defaults = {'type': 'EncoderDecoder', 'data_preprocessor': preprocessor, 'test_cfg': {'mode': 'whole'}}
    if name != 'SAN':
        defaults['backbone'] = _RESNET
    return ConfigDict({**defaults, **SEGMENTORS[name]})


def build(name: str) -> nn.Module:
    """Return a network with weights that are drawn such that its answer is not the same everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS.build(settings(name))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    return model


def batch(size=SIZE):
    """Return images (2, 3, H, W) and their samples."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={'img_shape': size, 'ori_shape': size, 'pad_shape': size})
        label = torch.randint(0, CLASSES, (1, *size), generator=generator)
        sample.gt_sem_seg = PixelData(data=label)
        samples.append(sample)
    return torch.randn(2, 3, *size, generator=generator), samples
