"""Networks of transformers with random weights, which the tests save themselves, as teachers."""

import copy
import json
import logging
import runpy
import shutil
import sys

import cv2
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import CONFIGS, ROOT, build
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.datasets import CityscapesDataset
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from safetensors.torch import load_file, save_file

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.teachers import TransformersTeacher
from bdd_seg.teachers.cached.store import TeacherCache
from bdd_seg.teachers.transformers import LAST

transformers = pytest.importorskip('transformers', reason='the extra transformers is not installed')

CLASSES = CityscapesDataset.METAINFO['classes']
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
NAMES = dict(id2label=dict(enumerate(CLASSES)), label2id={name: i for i, name in enumerate(CLASSES)})
SWIN = dict(
    image_size=32,
    embed_dim=4,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 1, 1],
    window_size=2,
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
)
VIT = dict(hidden_size=8, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8)
QUERIES = dict(  # as many as the last of the stages has cells
    num_queries=8,
    encoder_feedforward_dim=8,
    encoder_layers=1,
    decoder_layers=2,
    num_attention_heads=2,
    dim_feedforward=8,
)
EOMT = dict(
    VIT, num_hidden_layers=3, num_blocks=1, num_queries=6, num_register_tokens=2, num_upscale_blocks=1
)
SEMANTIC, MASKS = ['segformer', 'beit', 'dpt', 'upernet'], ['mask2former', 'maskformer', 'oneformer', 'eomt']
BACKBONES = ['dinov2', 'dinov3', 'vit']


def network(kind: str, **names) -> torch.nn.Module:
    """A tiny network; ``names`` are its classes'."""
    t = transformers
    if kind == 'segformer':
        widths = dict(hidden_sizes=[4, 8, 12, 16], decoder_hidden_size=8)
        config = t.SegformerConfig(depths=[1, 1, 1, 1], num_attention_heads=[1] * 4, **widths, **names)
        return t.SegformerForSemanticSegmentation(config)
    if kind == 'beit':
        config = t.BeitConfig(
            **VIT,
            num_hidden_layers=4,
            vocab_size=9,
            out_indices=[1, 2, 3, 4],
            pool_scales=[1, 2],
            use_auxiliary_head=False,
            use_relative_position_bias=True,
            **names,
        )
        return t.BeitForSemanticSegmentation(config)
    if kind == 'dpt':
        widths = dict(fusion_hidden_size=8, neck_hidden_sizes=[4, 4, 8, 8], use_auxiliary_head=False)
        config = t.DPTConfig(**VIT, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], **widths, **names)
        return t.DPTForSemanticSegmentation(config)
    if kind == 'upernet':
        options = dict(hidden_size=8, pool_scales=[1, 2], use_auxiliary_head=False)
        config = t.UperNetConfig(backbone_config=t.SwinConfig(**SWIN), **options, **names)
        return t.UperNetForSemanticSegmentation(config)
    if kind == 'mask2former':
        widths = dict(feature_size=32, mask_feature_size=32, hidden_dim=32)
        config = t.Mask2FormerConfig(backbone_config=t.SwinConfig(**SWIN), **QUERIES, **widths, **names)
        return t.Mask2FormerForUniversalSegmentation(config)
    if kind == 'maskformer':
        layers = dict(encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8, decoder_ffn_dim=8)
        heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, num_queries=8, d_model=32)
        config = t.MaskFormerConfig(
            backbone_config=t.SwinConfig(**SWIN),
            decoder_config=t.DetrConfig(**layers, **heads),
            fpn_feature_size=32,
            mask_feature_size=32,
            **names,
        )
        return t.MaskFormerForInstanceSegmentation(config)
    if kind == 'oneformer':
        widths = dict(hidden_dim=32, mask_dim=32, conv_dim=32, text_encoder_width=8)
        config = t.OneFormerConfig(
            backbone_config=t.SwinConfig(**SWIN), is_training=False, **QUERIES, **widths, **names
        )
        return t.OneFormerForUniversalSegmentation(config)
    if kind == 'eomt':
        return t.EomtForUniversalSegmentation(t.EomtConfig(**EOMT, **names))
    if kind == 'dinov2':
        return t.Dinov2Model(t.Dinov2Config(**(VIT | dict(patch_size=14)), num_hidden_layers=2))
    if kind == 'vit':
        return t.ViTModel(t.ViTConfig(**VIT, num_hidden_layers=2), add_pooling_layer=False)
    return t.DINOv3ViTModel(t.DINOv3ViTConfig(**VIT, num_hidden_layers=2, num_register_tokens=4))


def save(kind: str, folder, **names):
    """Save a tiny network as the hub has them, and return the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network(kind, **names)
        for parameter in model.parameters():  # so that no class is always the likeliest
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    if kind == 'oneformer':
        letters = [chr(code) for code in range(97, 123)]
        words = [*letters, *(f'{letter}</w>' for letter in letters), '<|startoftext|>', '<|endoftext|>']
        tokenizer = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
        tokenizer.save_pretrained(folder)
    processor(folder, image_mean=MEAN, image_std=STD, rescale_factor=1 / 255)
    return folder


def processor(folder, **settings) -> None:
    (folder / 'preprocessor_config.json').write_text(json.dumps(settings))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Kind → the folder of such a network with the classes of Cityscapes."""
    made = {}

    def folder(kind):
        if kind not in made:
            names = {} if kind in BACKBONES else NAMES
            made[kind] = save(kind, tmp_path_factory.mktemp('hub') / kind, **names)
        return made[kind]

    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """Kind → a copy of such a folder, which a test may spoil."""
    return lambda kind: shutil.copytree(saved(kind), tmp_path / kind)


@pytest.fixture(scope='module')
def student(tiny_configs):
    return build(tiny_configs['student'])


@pytest.fixture(scope='module')
def images():
    """(2, 3, 64, 128) images as the student gets them."""
    return torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))


def built(student, folder, taps=(None,), **options) -> TransformersTeacher:
    teacher = TransformersTeacher(folder, **options)
    teacher.build(student, list(taps))
    return teacher


def pixels_of(images):
    """The pixels, 0 to 255 and red first, of the student's images, which mmseg normalised so."""
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return images * std[:, None, None] + mean[:, None, None]


def own_output(folder, images, size=None, **inputs):
    """What the library's own classes put out."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    images = (pixels_of(images) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    if size is not None:
        images = F.interpolate(images, size, mode='bilinear')
    with torch.no_grad():
        return model(pixel_values=images, **inputs)


@pytest.mark.parametrize('kind', SEMANTIC)
def test_answers_with_the_networks_own_logits(saved, student, images, kind):
    answer = built(student, saved(kind))(images)
    expected = own_output(saved(kind), images, (32, 32) if kind == 'dpt' else None).logits
    assert answer.maps.keys() == {'logits'}
    torch.testing.assert_close(answer.maps['logits'], expected, atol=1e-5, rtol=1e-4)
    assert expected.std((2, 3)).max() > 1e-3  # so that places can be told apart


def own_scores(kind, folder, images):
    """The scores (N, C, h, w) by the library's own post-processing, on the grid of its masks."""
    inputs = {}
    if kind == 'oneformer':
        tokens = transformers.AutoTokenizer.from_pretrained(folder)('the task is semantic').input_ids
        inputs['task_inputs'] = torch.tensor([tokens + [0] * (77 - len(tokens))] * len(images))
    output = own_output(folder, images, (32, 32) if kind == 'eomt' else None, **inputs)
    size = tuple(output.masks_queries_logits.shape[2:])
    options = {'target_sizes': [size] * len(images)}
    if kind == 'mask2former':  # which resizes masks to 384×384: whole cells, and back
        assert 384 % size[0] == 384 % size[1] == 0
        output.masks_queries_logits = F.interpolate(output.masks_queries_logits, (384, 384), mode='nearest')
    elif kind == 'eomt':
        options['size'] = {'shortest_edge': size[0], 'longest_edge': None}
    elif kind == 'oneformer':
        options = {}
    name = {
        'mask2former': 'Mask2FormerImageProcessorPil',
        'maskformer': 'MaskFormerImageProcessorPil',
        'oneformer': 'OneFormerImageProcessorPil',
        'eomt': 'EomtImageProcessorPil',
    }[kind]
    post_process = getattr(transformers, name).post_process_semantic_segmentation
    found = post_process(None, output, return_segmentation_scores=True, **options)
    return torch.stack([one.segmentation_scores for one in found])


@pytest.mark.parametrize('kind', MASKS)
def test_mask_classifiers_answer_as_their_own_post_processing_does(saved, student, images, kind):
    logits = built(student, saved(kind))(images).maps['logits']
    scores = own_scores(kind, saved(kind), images)
    assert logits.shape == scores.shape and scores.shape[1] == len(CLASSES)
    torch.testing.assert_close(logits.exp(), scores.clamp(min=1e-6), atol=1e-5, rtol=1e-3)
    assert scores.std((2, 3)).max() > 1e-3


@pytest.mark.parametrize('kind', ['dpt', 'maskformer', 'oneformer'])  # see the shipped pairs for others
def test_a_training_step(saved, distiller, batch, kind):
    model = distiller(settings(saved(kind)))
    images, samples = doubled(batch)
    losses = model.loss(images, samples)
    assert 0 <= losses['distill.teacher_acc'] <= 100
    gradient = torch.autograd.grad(losses['distill.loss_bdd'], model.backbone.stem[0].weight)[0]
    assert gradient.isfinite().all() and gradient.norm() > 0


def settings(folder, **options) -> dict:
    return dict(type='TransformersTeacher', model=str(folder), **options)


@pytest.fixture(scope='module')
def distiller(tiny_configs):
    """Settings of a teacher, and changes → the tiny student that learns from it."""
    config = Config.fromfile(tiny_configs['distilled'])

    def model(teacher: dict, **changes) -> torch.nn.Module:
        one = copy.deepcopy(config)
        one.model.update(changes)
        one.model.teacher = teacher
        return revert_sync_batchnorm(MODELS.build(one.model))

    return model


def doubled(batch):
    """The batch at 64×128, since tiny stages of 32×64 images have one cell."""
    images, samples = batch
    for sample in samples:
        label = sample.gt_sem_seg.data.repeat_interleave(2, 1).repeat_interleave(2, 2)
        sample.gt_sem_seg = PixelData(data=label)
        sample.set_metainfo({'img_shape': (64, 128), 'ori_shape': (64, 128)})
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3), samples


def test_tokens_of_a_backbone_as_a_map(saved, student, images):
    """DINOv3: a class token and four registers come before the patches."""
    teacher = built(student, saved('dinov3'), [LAST, 'model.layer.0', 'embeddings', EMBEDDED])
    maps = teacher(images).maps
    output = own_output(saved('dinov3'), images, output_hidden_states=True)
    expected = output.last_hidden_state[:, 5:].reshape(2, 8, 16, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps[LAST], expected, atol=1e-5, rtol=1e-4)
    expected = output.hidden_states[1][:, 5:].reshape(2, 8, 16, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps['model.layer.0'], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps['embeddings'], maps[EMBEDDED])  # which a convolution puts out as a map
    assert teacher.logits_tap == '' and teacher.class_names is None
    assert {tap: teacher.map_channels(tap) for tap in maps} == {tap: 8 for tap in maps}


EMBEDDED = 'embeddings.patch_embeddings'


def test_a_backbone_gets_images_of_whole_patches(saved, student, images):
    """DINOv2 would cut off what is beside its last whole patch of 14 pixels."""
    maps = built(student, saved('dinov2'), [LAST])(images).maps
    output = own_output(saved('dinov2'), images, (70, 126))
    expected = output.last_hidden_state[:, 1:].reshape(2, 5, 9, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps[LAST], expected, atol=1e-5, rtol=1e-4)


def test_positions_of_a_network_of_one_size_are_interpolated(saved, student, images):
    """ViT, here without its pooler's weights, as DINO is on the hub."""
    teacher = built(student, saved('vit'), [LAST, 'layers.0'])
    output = own_output(saved('vit'), images, interpolate_pos_encoding=True)
    expected = output.last_hidden_state[:, 1:].reshape(2, 8, 16, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(teacher(images).maps[LAST], expected, atol=1e-5, rtol=1e-4)
    assert teacher.map_channels('layers.0') == 8


def test_the_last_map_of_a_backbone_class(student, images, tmp_path):
    config = transformers.Dinov2Config(**VIT, num_hidden_layers=2, out_features=['stage1', 'stage2'])
    transformers.Dinov2Backbone(config).save_pretrained(tmp_path)
    processor(tmp_path, image_mean=MEAN, image_std=STD)
    maps = built(student, tmp_path, [LAST])(images).maps
    torch.testing.assert_close(
        maps[LAST], own_output(tmp_path, images).feature_maps[-1], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ('kind', 'tap', 'shape'),
    [
        ('segformer', 'segformer.stages.2', (12, 4, 8)),
        ('beit', 'beit.layers.1', (8, 8, 16)),
        ('mask2former', 'model.pixel_level_module.encoder.swin.encoder.layers.0', (8, 8, 16)),
        ('mask2former', 'model.pixel_level_module.encoder.swin.encoder.layers.3', (32, 2, 4)),
        ('eomt', 'layers.2', (8, 4, 4)),  # queries stand before the patches from here on
    ],
)
def test_feature_taps_of_segmentation_networks(saved, student, images, kind, tap, shape):
    teacher = built(student, saved(kind), [tap])
    assert teacher(images).maps[tap].shape == (2, *shape)
    if kind in SEMANTIC:  # mask classifiers compute with the values of tensors
        assert teacher.map_channels(tap) == shape[0]


@pytest.mark.parametrize(
    ('kind', 'tap', 'shape'),
    [
        ('mask2former', 'class_predictor', '2, 8, 20'),
        ('maskformer', 'model.transformer_module.decoder', '2, 8, 32'),
        ('eomt', 'class_predictor', '2, 6, 20'),
    ],
)
def test_queries_are_no_map(saved, student, images, kind, tap, shape):
    teacher = built(student, saved(kind), [tap])
    with pytest.raises(ConfigError, match=rf"'{tap}' puts out \({shape}\), which is no map"):
        teacher(images)


@pytest.mark.parametrize('kind', ['dinov2', 'dinov3'])
def test_a_backbone_teaches_features(saved, distiller, batch, kind):
    loss = dict(type='FeatureLoss', student_tap='backbone.layer4', teacher_tap=LAST)
    model = distiller(settings(saved(kind)), distill_losses=[loss])
    losses = model.loss(*doubled(batch))
    assert 'distill.teacher_acc' not in losses
    gradient = torch.autograd.grad(losses['distill.loss_feature'], model.backbone.stem[0].weight)[0]
    assert gradient.isfinite().all() and gradient.norm() > 0


def test_a_backbone_has_no_logits(saved, student):
    with pytest.raises(ConfigError, match='it has no class logits. Compare features'):
        built(student, saved('dinov2'))
    with pytest.raises(ConfigError, match='it has no class logits'):
        TransformersTeacher(saved('dinov2')).map_channels(None)


def test_bfloat16(saved, student, images):
    exact = built(student, saved('eomt'))(images).maps['logits'].softmax(1)
    rounded = built(student, saved('eomt'), precision='bf16')(images).maps['logits'].softmax(1)
    assert 0 < (rounded - exact).abs().mean() < 0.02


def test_input_size(saved, student, images):
    teacher = built(student, saved('dpt'), input_size=64)
    expected = own_output(saved('dpt'), images, (64, 64)).logits
    torch.testing.assert_close(teacher(images).maps['logits'], expected, atol=1e-5, rtol=1e-4)
    assert 'images resized to 64×64' in teacher.summary()
    assert 'images resized to 32×32' in built(student, saved('eomt')).summary()
    assert 'resized' not in built(student, saved('beit')).summary()


def test_channels(saved, student, images):
    """Of images with five bands."""
    teacher = TransformersTeacher(saved('segformer'), channels=[0, 1, 2])
    five = torch.nn.Module()
    five.out_channels = len(CLASSES)
    five.data_preprocessor = MODELS.build(dict(type='SegDataPreProcessor', mean=[120.0], std=[50.0]))
    teacher.build(five, [None])
    pixels = (pixels_of(images) - 120) / 50  # these bands are told to be red, green, blue
    bands = torch.cat([pixels, pixels[:, :2]], 1)
    expected = own_output(saved('segformer'), images).logits
    torch.testing.assert_close(teacher(bands).maps['logits'], expected, atol=1e-5, rtol=1e-4)


def test_class_names(saved, student, tmp_path):
    teacher = built(student, saved('mask2former'))
    assert teacher.class_names == CLASSES
    with pytest.raises(ConfigError, match="trained for other classes.*teacher.class_map={'road': None"):
        teacher.check_classes(['sky', 'tree'])
    nameless = save('segformer', tmp_path, num_labels=19)
    assert built(student, nameless).class_names is None  # LABEL_0, LABEL_1, ...


def test_another_number_of_classes(tmp_path, student, tiny_configs):
    folder = save('segformer', tmp_path, num_labels=7)
    with pytest.raises(ConfigError, match='predicts 7 classes, the student 19'):
        built(student, folder)
    with pytest.raises(ConfigError, match='predicts 7 classes, the student 19'):
        TransformersTeacher(folder).check(Config.fromfile(tiny_configs['student']).model)


def test_class_map(tmp_path, distiller, batch, monkeypatch):
    names = ['lorry', 'van', 'sky', 'street']
    folder = save('segformer', tmp_path, id2label=dict(enumerate(names)))
    class_map = {'lorry': 'truck', 'van': 'car', 'sky': 'sky', 'street': 'road'}
    model = distiller(settings(folder, class_map=class_map))
    hub = MessageHub.get_current_instance().runtime_info
    monkeypatch.setitem(hub, 'dataset_meta', {'classes': CLASSES})
    losses = model.loss(*doubled(batch))
    gradient = torch.autograd.grad(losses['distill.loss_bdd'], model.decode_head.conv_seg.weight)[0]
    taught = [CLASSES.index(name) for name in ('road', 'sky', 'car', 'truck')]
    assert gradient.flatten(1).norm(dim=1).nonzero().flatten().tolist() == taught


@pytest.mark.parametrize(
    ('found', 'scale', 'shift', 'swapped'),
    [
        (dict(image_mean=[0.5] * 3, image_std=[0.25] * 3), 63.75, 127.5, True),
        (dict(image_mean=[0.5] * 3, image_std=[0.25] * 3, rescale_factor=1 / 127.5), 31.875, 63.75, True),
        (dict(image_mean=[100] * 3, image_std=[50] * 3, do_rescale=False), 50, 100, True),
        (dict(do_normalize=False, do_flip_channel_order=True), 255, 0, False),
        (dict(image_mean=0.5, image_std=0.25), 63.75, 127.5, True),
    ],
    ids=['ImageNet', 'another factor', 'not rescaled', 'only rescaled, blue first', 'one for all'],
)
def test_normalisation_of_the_image_processor(copied, student, found, scale, shift, swapped):
    folder = copied('segformer')
    for nested in (False, True):
        if nested:  # as transformers 5 saves processors
            (folder / 'preprocessor_config.json').unlink()
            (folder / 'processor_config.json').write_text(json.dumps({'image_processor': found}))
        else:
            processor(folder, **found)
        normalisation = built(student, folder).facts.normalisation
        assert normalisation.std == pytest.approx([scale] * len(normalisation.std))
        assert normalisation.mean == pytest.approx([shift] * len(normalisation.mean))
        assert normalisation.swapped is swapped


def test_normalisation_that_nothing_tells(copied, student, images, saved):
    folder = copied('segformer')
    expected = built(student, folder)(images).maps['logits']
    for spoil in (
        lambda file: file.write_text('{"do_resize": true}'),
        lambda file: file.write_text('{"image_mean": "grey", "image_std": 1}'),
        lambda file: file.write_text('{"image_mean": 0.5, "image_std": [0, 0, 0]}'),
        lambda file: file.unlink(),
    ):
        spoil(folder / 'preprocessor_config.json')
        with pytest.raises(ConfigError, match='tells how its images are normalised.*Give teacher.mean and'):
            built(student, folder)
    given = dict(mean=[255 * value for value in MEAN], std=[255 * value for value in STD])
    torch.testing.assert_close(built(student, folder, **given)(images).maps['logits'], expected)


def test_a_stated_normalisation_is_checked(saved, student):
    for given, message in (
        (dict(mean=[0, 0, 0]), 'must be given both'),
        (dict(mean=0, std=[0, 0, 0]), 'teacher.std must be a number for each channel'),
        (dict(mean='grey', std=1), "teacher.mean must be a number.*got 'grey'"),
        (dict(mean=[1, 2], std=[1, 2, 3]), 'must be for as many channels'),
        (dict(mean=[1, 2], std=[1, 2]), 'takes images of 3 channels, and its mean and std are for 2'),
    ):
        with pytest.raises(ConfigError, match=message):
            built(student, saved('segformer'), **given)
    found = built(student, saved('segformer'), mean=127.5, std=64).facts.normalisation
    assert (found.mean, found.std, found.swapped) == ((127.5,), (64.0,), True)


def test_a_normalisation_of_other_images_in_the_files(copied, student):
    folder = copied('segformer')
    processor(folder, image_mean=[0.5] * 2, image_std=[0.5] * 3)
    with pytest.raises(ConfigError, match='takes images of 3 channels, and its mean and std are for 2 and 3'):
        built(student, folder)


def test_a_normalisation_for_images_from_0_to_1_is_told(saved, student):
    found, handler = [], logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        built(student, saved('segformer'))
        assert not found
        built(student, saved('segformer'), mean=MEAN, std=STD)
        assert 'multiply mean and std by 255' in found[0]
    finally:
        logger.removeHandler(handler)


def test_weights_that_do_not_fit(copied, student, capsys):
    folder = copied('segformer')
    weights = load_file(folder / 'model.safetensors')
    del weights['decode_head.classifier.bias']
    weights['decode_head.classifier.weight'] = torch.zeros(3, 8, 1, 1)
    weights['neck.weight'] = torch.zeros(1)
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    tables, handler = [], logging.Handler()
    handler.emit = tables.append
    logging.getLogger('transformers').addHandler(handler)
    try:
        with pytest.raises(ConfigError) as error:
            built(student, folder)
    finally:
        logging.getLogger('transformers').removeHandler(handler)
    assert not tables and not capsys.readouterr().err  # neither the library's report nor its progress bar
    message = str(error.value)
    assert '1 missing: decode_head.classifier.bias' in message
    assert '1 unexpected: neck.weight' in message
    assert '1 of another shape: decode_head.classifier.weight' in message


def test_weights_in_a_file_of_torch(copied, student, images):
    folder = copied('segformer')
    expected = built(student, folder)(images).maps['logits']
    torch.save(load_file(folder / 'model.safetensors'), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()
    assert torch.equal(built(student, folder)(images).maps['logits'], expected)
    (folder / 'pytorch_model.bin').write_bytes(b'PK')
    with pytest.raises(ConfigError, match='cannot be loaded'):
        built(student, folder)


def test_loading_is_quiet_and_leaves_the_library_as_it_was(saved, student, capsys):
    def bar(factory, arguments, options):
        return factory(*arguments, **options)

    own = transformers.logging
    verbosity, before = own.get_verbosity(), own.set_tqdm_hook(bar)
    try:
        built(student, saved('segformer'))
    finally:
        after = own.set_tqdm_hook(before)
    assert after is bar and own.get_verbosity() == verbosity
    assert not capsys.readouterr().err
    assert list(own.tqdm([0], desc='own')) == [0] and 'own' in capsys.readouterr().err


def test_building_draws_no_random_number(saved, student):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    built(student, saved('segformer'))
    TransformersTeacher(saved('segformer')).map_channels('segformer.stages.2')
    assert torch.equal(torch.rand(4), expected)


def test_a_name_that_cannot_be_fetched(monkeypatch, student):
    import huggingface_hub

    def unreachable(name, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError('No route\nto the hub')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', unreachable)
    with pytest.raises(ConfigError) as error:
        built(student, 'owner/name')
    assert "'owner/name' is no folder" in str(error.value) and '(No route)' in str(error.value)
    assert 'hf download owner/name' in str(error.value) and 'HF_HOME' in str(error.value)
    assert TransformersTeacher('owner/name').fingerprint()['checkpoint'] is None


def test_a_name_on_the_hub(monkeypatch, student, saved, images):
    """With its revision; weights are asked for only where they are needed, pickles only without others."""
    import huggingface_hub

    asked = []

    def download(name, revision, allow_patterns, local_files_only):
        asked.append((name, revision, allow_patterns, local_files_only))
        return str(saved('segformer'))

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    teacher = TransformersTeacher('owner/name', revision='abc')
    assert teacher.map_channels(None) == 19
    teacher.build(student, [None])
    assert torch.equal(
        teacher(images).maps['logits'], built(student, saved('segformer'))(images).maps['logits']
    )
    assert asked == [
        ('owner/name', 'abc', ['*.json', '*.txt'], False),
        ('owner/name', 'abc', ['*.json', '*.txt', 'model*.safetensors'], False),
    ]
    assert teacher.describe() == 'owner/name@abc'
    assert teacher.fingerprint() == TransformersTeacher(saved('segformer')).fingerprint()


def test_a_missing_package_is_one_line(monkeypatch, saved, student):
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(ConfigError, match=r'pip install "bdd-seg\[transformers\]"'):
        built(student, saved('segformer'))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'architectures': ['BertModel'], 'model_type': 'bert'}, 'a BertModel takes no images alone'),
        ({'model_type': 'no_such_model'}, 'its config.json cannot be used'),
        (None, 'its config.json cannot be used'),
    ],
)
def test_a_folder_that_holds_no_such_network(tmp_path, student, content, message):
    if content is not None:
        (tmp_path / 'config.json').write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        built(student, tmp_path, mean=[0], std=[1])


def test_cached_by_the_tool(saved, tiny_configs, tmp_path, student, monkeypatch, capsys):
    config, cache = tmp_path / 'config.py', tmp_path / 'cache'
    teacher = {'_delete_': True, **settings(saved('mask2former'))}
    config.write_text(f'_base_ = {str(tiny_configs["distilled"])!r}\nmodel = dict(teacher={teacher!r})\n')
    tool = ROOT / 'tools/cache_teacher.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), str(config), '--out', str(cache), '--workers', '0'])
    runpy.run_path(str(tool), run_name='__main__')
    assert '8 images run' in ' '.join(capsys.readouterr().out.split())
    manifest = TeacherCache(cache).manifest
    assert (manifest.strides, manifest.class_names) == ({'logits': [4, 4]}, list(CLASSES))
    live = built(student, saved('mask2former'))
    assert manifest.teacher == live.fingerprint()
    path = next(iter(manifest.images.values()))['path']
    pixels = torch.from_numpy(cv2.imread(path)).permute(2, 0, 1)
    inputs = student.data_preprocessor({'inputs': [pixels], 'data_samples': []})['inputs']
    stored = TeacherCache(cache).read(path).outputs['logits'].float()
    torch.testing.assert_close(stored, live(inputs).maps['logits'][0], atol=1e-2, rtol=2e-3)
    replayed = MODELS.build(dict(settings(saved('mask2former')), type='CachedTeacher', cache=str(cache)))
    replayed.build(student, [None])  # compares it with the live teacher, which the config still names
    assert replayed.class_names == CLASSES


def test_the_fingerprint_is_that_of_the_files(copied):
    folder = copied('segformer')
    before = TransformersTeacher(folder).fingerprint()
    assert before == json.loads(json.dumps(before)) and before['type'] == 'TransformersTeacher'
    assert TransformersTeacher(shutil.copytree(folder, folder.parent / 'moved')).fingerprint() == before
    for unread in ('pytorch_model.bin', 'README.md', 'tokenizer.json', 'other.safetensors'):
        (folder / unread).write_bytes(b'unread')
    assert TransformersTeacher(folder).fingerprint() == before
    stated = TransformersTeacher(folder, mean=0, std=1).fingerprint()
    processor(folder, image_mean=[0] * 3, image_std=[1] * 3)
    prints = [before, stated, TransformersTeacher(folder).fingerprint()]
    assert TransformersTeacher(folder, mean=0, std=1).fingerprint() == stated  # which reads no such file
    (folder / 'model.safetensors').unlink()
    prints.append(TransformersTeacher(folder).fingerprint())  # of pytorch_model.bin
    (folder / 'pytorch_model.bin').unlink()
    prints.append(TransformersTeacher(folder).fingerprint())
    assert prints[-1]['checkpoint'] is None  # of settings without weights
    assert all(one != other for i, one in enumerate(prints) for other in prints[:i])


def test_weights_in_several_files(saved, student, images, tmp_path):
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(saved('segformer'))
    model.save_pretrained(tmp_path, max_shard_size='20KB')
    shutil.copy(saved('segformer') / 'preprocessor_config.json', tmp_path)
    shards = sorted(tmp_path.glob('model-*.safetensors'))
    assert len(shards) > 1
    expected = built(student, saved('segformer'))(images).maps['logits']
    assert torch.equal(built(student, tmp_path)(images).maps['logits'], expected)
    before = TransformersTeacher(tmp_path).fingerprint()
    content = shards[-1].read_bytes()
    shards[-1].write_bytes(content[:-1])
    assert TransformersTeacher(tmp_path).fingerprint()['checkpoint'] not in (None, before['checkpoint'])
    shards[-1].unlink()
    assert TransformersTeacher(tmp_path).fingerprint()['checkpoint'] is None


PAIRS = sorted((CONFIGS / 'teachers_from_elsewhere').glob('*.py'))


@pytest.mark.parametrize('path', PAIRS, ids=lambda path: path.stem)
def test_shipped_pairs(path, saved):
    """Built and stepped with a tiny stand-in for the teacher."""
    cfg = load_config(path)
    assert len(path.read_text().splitlines()) <= 8
    crops = [step.crop_size for step in cfg.train_dataloader.dataset.pipeline if step.type == 'RandomCrop']
    assert crops == [cfg.model.data_preprocessor.size] and path.stem.endswith('-{}x{}'.format(*crops[0]))
    kind = 'eomt' if 'eomt' in path.stem else 'mask2former'
    assert kind != 'eomt' or crops[0][0] == crops[0][1]  # EoMT sees squares only
    assert kind in cfg.model.teacher.model
    cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = None
    cfg.model.teacher.model = str(saved(kind))
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo={'img_shape': (64, 64)})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, 64, 64)))
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, 64, 64)))
        samples.append(sample)
    losses = model.loss(torch.randn(2, 3, 64, 64), samples)
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
