import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile, TransformBroadcaster
from mmseg.registry import TRANSFORMS
from PIL import Image

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.checked_transforms import CheckedCrop, CheckedLoading, CheckLabels


@pytest.fixture
def results(tmp_path):
    """The settings of one sample: an image of 4 by 6 pixels and its label map."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / 'a.png')
    Image.fromarray(np.full((4, 6), 5, np.uint8)).save(tmp_path / 'a_labels.png')
    return {
        'img_path': str(tmp_path / 'a.png'),
        'seg_map_path': str(tmp_path / 'a_labels.png'),
        'ori_shape': (4, 6),
        'reduce_zero_label': False,
        'seg_fields': [],
    }


def test_a_label_map_too_large_for_pillow_is_left_to_other_libraries(results, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9)
    loading = CheckedLoading({'type': 'LoadAnnotations', 'imdecode_backend': 'cv2'})
    assert loading(results)['gt_seg_map'].tolist() == [[5] * 6] * 4


@TRANSFORMS.register_module()
class BuggyLoading(LoadImageFromFile):
    def transform(self, results):
        return {}['bug']


def test_a_bug_of_a_transform_that_loads_keeps_its_traceback(results, capsys):
    with pytest.raises(
        ConfigError, match="a.png' cannot be read: is it whole, and an image.*KeyError: 'bug'"
    ):
        CheckedLoading({'type': 'BuggyLoading'})(results)
    assert "return {}['bug']" in capsys.readouterr().err


@pytest.mark.parametrize(
    'shape, expected',
    [((4, 6, 2), 'has 2 channels, as colours have'), ((1, 6), 'has a single row or column')],
)
def test_label_maps_of_another_form(results, shape, expected):
    Image.fromarray(np.zeros(shape, np.uint8)).save(results['seg_map_path'])
    with pytest.raises(ConfigError, match=f"a_labels.png' {expected}"):
        CheckedLoading({'type': 'LoadAnnotations'})(results)


@pytest.mark.parametrize('highest', [255, 256])
def test_label_maps_of_16_bits(results, highest):
    Image.fromarray(np.full((4, 6), highest, np.uint16)).save(results['seg_map_path'])
    loading = CheckedLoading({'type': 'LoadAnnotations'})
    if highest == 255:
        assert (loading(results)['gt_seg_map'] == 255).all()
    else:
        with pytest.raises(
            ConfigError, match="a_labels.png' has values up to 256, which mmseg cuts to 8 bits"
        ):
            loading(results)


@pytest.mark.parametrize(
    'labels, wrong',
    [
        ([0, 18, 255], None),
        ([19, 255], '19'),
        ([-1], '-1'),
        ([254, 40, 30, 20, 21, 22], '20, 21, 22, 30, 40, ...'),
    ],
)
@pytest.mark.parametrize('dtype', [torch.int64, torch.int16])
def test_labels_are_classes_or_ignored(batch, labels, wrong, dtype):
    image, sample = batch[0][0], batch[1][0].clone()
    sample.gt_sem_seg.data = torch.tensor(labels, dtype=dtype).repeat(32 * 64)[: 32 * 64].reshape(1, 32, 64)
    results = {'inputs': image, 'data_samples': sample}
    check = CheckLabels(19, 255, match_inputs=True)
    if wrong is None:
        assert check(results) is results
    else:
        with pytest.raises(
            ConfigError, match=f'has labels {wrong}; the classes are 0 to 18, and 255 is ignored'
        ):
            check(results)


def test_a_checked_crop_is_the_crop(results):
    rng = np.random.default_rng(0)
    results |= {'img': rng.integers(0, 255, (40, 60, 3), np.uint8), 'img_shape': (40, 60)}
    results |= {'gt_seg_map': rng.integers(0, 19, (40, 60), np.uint8), 'seg_fields': ['gt_seg_map']}
    crop = {'type': 'RandomCrop', 'crop_size': (8, 8), 'cat_max_ratio': 0.75}
    cropped = []
    for transform in (TRANSFORMS.build(crop), CheckedCrop(crop)):
        np.random.seed(3)
        cropped.append(transform(dict(results)))
    for key in ('img', 'gt_seg_map'):
        assert np.array_equal(cropped[0][key], cropped[1][key])
    assert cropped[1]['img'].shape == (8, 8, 3)
    with pytest.raises(ConfigError, match="a_labels.png' has 39×60 pixels, image .*a.png' 40×60 where they"):
        CheckedCrop(crop)({**results, 'gt_seg_map': results['gt_seg_map'][:39]})


def test_a_checked_crop_shares_its_random_numbers_as_the_crop_does():
    """mmcv's ``TransformBroadcaster`` crops several images at one place."""
    crop = {'type': 'CheckedCrop', 'transform': {'type': 'RandomCrop', 'crop_size': (2, 2)}}
    both = TransformBroadcaster(
        [crop], mapping={'img': ['a', 'b']}, auto_remap=True, share_random_params=True
    )
    image = np.arange(10_000).reshape(100, 100, 1)
    cropped = both({'a': image, 'b': image})
    assert cropped['a'].shape == (2, 2, 1)
    assert np.array_equal(cropped['a'], cropped['b'])


def test_representations_name_the_transform_within():
    assert isinstance(CheckedLoading({'type': 'LoadAnnotations'}), BaseTransform)
    assert repr(CheckedLoading({'type': 'LoadAnnotations'})).startswith('CheckedLoading(LoadAnnotations(')
    assert repr(CheckLabels(19, 255, True)) == 'CheckLabels(19, 255, True)'
