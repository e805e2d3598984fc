"""The facts of a file: of a config's network, and read back."""

import json

import pytest
import tiny_segmentors
from mmengine.config import Config
from mmseg.registry import MODELS
from small_network import ABOUT, build, settings

from bdd_seg.deploy.about import Resize, Windows, about_model, parse
from bdd_seg.errors import ConfigError

CLASSES = ('a', 'b', 'c')


def config(**changes) -> Config:
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': (64, 32), 'keep_ratio': True}]
    dataset = {'type': 'CamVidDataset', 'pipeline': [*pipeline, {'type': 'PackSegInputs'}]}
    return Config(
        {'val_dataloader': {'dataset': dataset}, 'test_dataloader': {'dataset': dataset}, **changes}
    )


def test_facts_of_a_network():
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    about = about_model(build(), config(), {'classes': CLASSES, 'palette': palette})
    assert about.classes == CLASSES
    assert about.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert (about.mean, about.std, about.bgr_to_rgb) == (ABOUT.mean, ABOUT.std, True)
    assert about.resize == Resize(scale=(64, 32), keep_ratio=True)
    assert (about.bands, about.channels, about.threshold, about.windows) == (3, 3, None, None)


def test_names_and_colours_of_the_data_set_or_made_up():
    about = about_model(build(classes=11), config())
    assert about.classes[:2] == ('sky', 'building') and len(about.palette) == 11
    about = about_model(build(classes=200), config())  # of which nobody tells the names
    assert about.classes[199] == 'class 199' and len(about.palette) == 200


def test_names_are_those_of_the_source_that_has_as_many():
    """A checkpoint's own, else the data set's."""
    about = about_model(build(classes=11), config(), {'classes': ('a', 'b'), 'palette': [[1, 2, 3]] * 2})
    assert about.classes[:2] == ('sky', 'building') and about.palette[0] != (1, 2, 3)
    about = about_model(build(), config(), {'classes': CLASSES})
    assert about.classes == CLASSES and len(about.palette) == 3


def pipeline(*steps) -> Config:
    dataset = {'type': 'CamVidDataset', 'pipeline': [{'type': 'LoadImageFromFile'}, *steps]}
    return config(test_dataloader={'dataset': {'type': 'RepeatDataset', 'times': 1, 'dataset': dataset}})


@pytest.mark.parametrize(
    'steps, resize, others',
    [
        ([], None, ()),
        ([{'type': 'Resize', 'scale': 512}], Resize(scale=(512, 512)), ()),
        (
            [{'type': 'Resize', 'scale_factor': 0.5}, {'type': 'LoadAnnotations'}],
            Resize(scale_factor=0.5),
            (),
        ),
        (
            [{'type': 'Resize', 'scale': (9_999_999, 512), 'keep_ratio': True}],
            Resize(scale=(9_999_999, 512), keep_ratio=True),
            (),
        ),
        ([{'type': 'ResizeShortestEdge', 'scale': 512, 'max_size': 2048}], None, ('ResizeShortestEdge',)),
        (
            [{'type': 'mmseg.CLAHE'}, {'type': 'Resize', 'scale': (8, 4), 'interpolation': 'nearest'}],
            Resize(scale=(8, 4)),
            ('CLAHE', 'Resize(interpolation=nearest)'),
        ),
        ([{'type': 'Resize', 'scale': (8, 4)}] * 2, Resize(scale=(8, 4)), ('Resize',)),
        (
            [{'type': 'LoadImageFromFile', 'color_type': 'gray'}],
            None,
            ('LoadImageFromFile(color_type=gray)',),
        ),
    ],
)
def test_preparation_of_images(steps, resize, others):
    about = about_model(build(), pipeline(*steps, {'type': 'PackSegInputs'}))
    assert about.resize == resize and about.prepared_by == others
    assert parse(about.model_dump_json(), 'x') == about


@pytest.mark.parametrize('scale', [(float('inf'), 512), (10**6, 512), 0])
def test_a_resize_without_bounds(scale):
    with pytest.raises(ConfigError, match="the config cannot be described in a file: 'resize") as raised:
        about_model(build(), pipeline({'type': 'Resize', 'scale': scale}))
    assert '\n' not in str(raised.value)


def test_a_binary_network_has_two_classes_and_one_channel():
    model = settings(classes=2)
    model['decode_head'].update(out_channels=1, threshold=0.3)
    about = about_model(MODELS.build(model), config())
    assert (len(about.classes), about.channels, about.threshold) == (2, 1, 0.3)


def test_windows_of_the_test_cfg():
    model = tiny_segmentors.build('PSPNet')
    model.test_cfg.update(mode='slide', crop_size=(64, 96), stride=(40, 60))
    assert about_model(model, config()).windows == Windows(crop_size=(64, 96), stride=(40, 60))


def test_what_is_written_is_read():
    about = ABOUT.model_copy(update={'size': (4, 6), 'windows': Windows(crop_size=(4, 6), stride=(2, 3))})
    assert parse(about.model_dump_json(), 'x.onnx') == about


@pytest.mark.parametrize(
    'change, place',
    [
        ({'classes': 3}, "'classes'"),
        ({'palette': [[0, 0, 256]] * 3}, "'palette.0.2'"),
        ({'palette': [[0, 0, 0]]}, '3 classes and 1 colours'),
        ({'classes': [], 'palette': []}, '0 classes'),
        ({'std': [1.0, 0.0, 1.0]}, 'std more than 0'),
        ({'mean': [1.0, 2.0]}, 'a number for each channel'),
        ({'takes': 'tensors'}, "'takes'"),
        ({'multiple': 0}, "'multiple'"),
        ({'size': [-1, 5]}, "'size.0'"),
        ({'size': [5, 10**6]}, "'size.1'"),
        ({'multiple': 10**6}, "'multiple'"),
        ({'resize': {'scale_factor': 1e6}}, "'resize.scale_factor"),
        ({'windows': {'crop_size': [8, 8], 'stride': [0, 8]}}, "'windows.stride.0'"),
        ({'mean': [float('nan')] * 3}, "'mean.0'"),
        ({'std': [float('inf')] * 3}, "'std.0'"),
        ({'classes': ['a', 'b\nc', 'd']}, "'classes.1'"),
        ({'threshold': 0.5}, 'a threshold is for 2 classes'),
    ],
)
def test_damaged_facts_are_named(change, place):
    text = json.dumps({**json.loads(ABOUT.model_dump_json()), **change})
    with pytest.raises(ConfigError, match='x.onnx: its facts') as raised:
        parse(text, 'x.onnx')
    assert place in str(raised.value)


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{"classes": '])
def test_what_is_no_facts_at_all(text):
    with pytest.raises(ConfigError, match='damaged'):
        parse(text, 'x.onnx')


def test_no_facts():
    with pytest.raises(ConfigError, match='OnnxTeacher'):
        parse(None, 'x.onnx')
