"""Pretrained weights that fill nothing, in modules that load them by mmengine or by themselves."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS
from torch import nn

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.pretrained import PretrainedHook

RESNET = {'type': 'ResNetV1c', 'depth': 18, 'base_channels': 4, 'stem_channels': 4}
SWIN = {
    'type': 'SwinTransformer',
    'pretrain_img_size': 32,
    'embed_dims': 8,
    'depths': (2, 2),
    'num_heads': (1, 2),
    'strides': (4, 2),
    'out_indices': (0, 1),
    'window_size': 4,
}
MIT = {
    'type': 'MixVisionTransformer',
    'embed_dims': 4,
    'num_stages': 2,
    'num_layers': [1, 1],
    'num_heads': [1, 2],
    'patch_sizes': [7, 3],
    'strides': [4, 2],
    'sr_ratios': [8, 4],
    'out_indices': (0, 1),
}
VIT = {
    'type': 'VisionTransformer',
    'img_size': (32, 32),
    'patch_size': 16,
    'embed_dims': 8,
    'num_layers': 1,
    'num_heads': 2,
    'out_indices': 0,
}
BACKBONES = [RESNET, SWIN, MIT, VIT]


class Model(BaseModule):
    def __init__(self, backbone, init_cfg=None):
        super().__init__(init_cfg)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Conv2d(3, 5, 1)


def initialised(backbone, file, has_loaded=False, init_cfg=None, **settings) -> Model:
    """As a Runner initialises it, with the hook around."""
    if file is not None:
        settings = {'type': 'Pretrained', 'checkpoint': str(file), **settings}
        backbone = {**backbone, 'init_cfg': settings}
    model = Model(backbone, init_cfg)
    runner = SimpleNamespace(model=model, _has_loaded=has_loaded)
    hook = PretrainedHook()
    hook.before_run(runner)
    model.init_weights()
    hook.before_train(runner)
    return model


@pytest.fixture
def weights_of(tmp_path):
    """Saves the weights of a backbone, each key with a prefix; returns the file."""

    def save(backbone, prefix='', wrap=lambda weights: {'state_dict': weights}):
        torch.manual_seed(3)
        built = MODELS.build(backbone)
        weights = {prefix + key: torch.randn_like(value.float()) for key, value in built.state_dict().items()}
        torch.save(wrap(weights), tmp_path / 'weights.pth')
        return tmp_path / 'weights.pth'

    return save


@pytest.mark.parametrize('backbone', BACKBONES, ids=lambda backbone: backbone['type'])
def test_weights_that_fit_are_taken(weights_of, backbone):
    initialised(backbone, weights_of(backbone))


def test_swins_own_layout_is_taken(weights_of):
    initialised(SWIN, weights_of(SWIN, wrap=lambda weights: {'model': weights, 'epoch': 3}))
    initialised(SWIN, weights_of(SWIN, 'backbone.'))  # which it takes off itself


@pytest.mark.parametrize('backbone', [RESNET, MIT, VIT], ids=lambda backbone: backbone['type'])
def test_a_prefix_that_would_fit_is_named(weights_of, backbone):
    file = weights_of(backbone, 'encoder.net.')
    expected = (
        rf"^model.backbone.init_cfg: checkpoint '{file}' has filled no weight of this {backbone['type']}, "
        rf"which would train from scratch. Write prefix='encoder.net.' beside it, with which (\d+) of \1 "
    )
    with pytest.raises(ConfigError, match=expected):
        initialised(backbone, file)


@pytest.mark.parametrize('backbone', [RESNET, MIT], ids=lambda backbone: backbone['type'])
def test_the_prefix_it_names_works(weights_of, backbone):
    initialised(backbone, weights_of(backbone, 'encoder.net.'), prefix='encoder.net.')


def test_weights_from_an_address_of_a_loader_of_the_users_own(weights_of, monkeypatch):
    contents = {
        f'shelf://{prefix}': torch.load(weights_of(RESNET, prefix)) for prefix in ('backbone.', 'encoder.')
    }
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme('shelf://', lambda name, map_location: contents[name])
    initialised(RESNET, 'shelf://backbone.', prefix='backbone.')
    with pytest.raises(ConfigError, match="'shelf://encoder.' has no weights .* Write prefix='encoder.'"):
        initialised(RESNET, 'shelf://encoder.', prefix='backbone.')


def test_another_prefix_is_refused_before(weights_of):
    file = weights_of(RESNET, 'student.backbone.')
    expected = "has no weights that begin with the prefix 'backbone'. Write prefix='student.backbone.' beside"
    with pytest.raises(ConfigError, match=expected):
        initialised(RESNET, file, prefix='backbone')


def test_another_width_and_another_network(weights_of):
    wide = weights_of({**RESNET, 'base_channels': 8, 'stem_channels': 8})
    expected = r'other shapes, such as stem.0.weight: \(4, 3, 3, 3\) instead of \(2, 3, 3, 3\)'
    with pytest.raises(ConfigError, match=expected):
        initialised({**RESNET, 'base_channels': 2, 'stem_channels': 4}, wide)
    with pytest.raises(ConfigError, match=r'It has keys such as patch_embed.*, the module has stem.0.weight'):
        initialised(RESNET, weights_of(SWIN))


def test_weights_one_level_too_deep(weights_of):
    """mmengine looks for them as they are, or as state_dict."""
    file = weights_of(RESNET, wrap=lambda weights: {'model': weights})
    with pytest.raises(ConfigError, match='Its keys fit without a prefix.*save the weights alone'):
        initialised(RESNET, file)


def test_what_is_loaded_over_is_not_looked_at(weights_of, tmp_path):
    file = weights_of(RESNET, 'x.')
    initialised(RESNET, file, has_loaded=True)
    around = tmp_path / 'around.pth'
    torch.save(
        {f'backbone.{k}': torch.rand_like(v.float()) for k, v in MODELS.build(RESNET).state_dict().items()},
        around,
    )
    initialised(RESNET, file, init_cfg={'type': 'Pretrained', 'checkpoint': str(around)})


def test_a_module_without_pretrained_weights():
    initialised({**RESNET, 'init_cfg': {'type': 'Kaiming', 'layer': 'Conv2d'}}, None)


def test_constant_parameters_do_not_tell(tmp_path):
    """Two networks agree about the zeros that an embedding begins with."""
    torch.save({'cls_token': torch.zeros(1, 1, 8), 'other': torch.rand(3)}, tmp_path / 'weights.pth')
    with pytest.raises(ConfigError, match='has filled no weight of this VisionTransformer'):
        initialised(VIT, tmp_path / 'weights.pth')
