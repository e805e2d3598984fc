"""Classes that never occur in the label maps."""

import re

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmseg.registry import TRANSFORMS
from PIL import Image

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards import labels
from bdd_seg.runtime.guards.checked_transforms import CheckedLoading
from bdd_seg.runtime.guards.data import check_data
from bdd_seg.runtime.guards.labels import check_labels_occur

LOAD = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]


@TRANSFORMS.register_module()
class CountFromOne(BaseTransform):
    """Changes labels, as one of a user's own may."""

    def transform(self, results):
        results['gt_seg_map'] += 1
        return results


@pytest.fixture
def said(monkeypatch) -> list[str]:
    said = []
    monkeypatch.setattr('bdd_seg.runtime.guards.labels.print_log', lambda text, *_: said.append(text))
    return said


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """The label maps that were looked at."""
    names, transform = [], CheckedLoading.transform
    monkeypatch.setattr(
        CheckedLoading,
        'transform',
        lambda self, results: names.append(results['seg_map_path']) or transform(self, results),
    )
    return names


def config(
    folder, maps, classes=('ground', 'car', 'tree'), pipeline=LOAD, ignore_index=255, **dataset
) -> Config:
    """Training data whose n-th label map has the n-th of some sets of values."""
    for kind in ('images', 'labels'):
        (folder / kind).mkdir()
    for i, values in enumerate(maps):
        array = np.resize(np.array(values, dtype=np.uint8), (6, 4))
        Image.fromarray(array).save(folder / f'images/{i:04d}.png')
        Image.fromarray(array).save(folder / f'labels/{i:04d}.png')
    settings = {
        'type': 'BaseSegDataset',
        'data_root': str(folder),
        'data_prefix': {'img_path': 'images', 'seg_map_path': 'labels'},
        'img_suffix': '.png',
        'metainfo': {'classes': classes},
        'pipeline': pipeline,
        **dataset,
    }
    head = {'type': 'FCNHead', 'num_classes': len(classes), 'ignore_index': ignore_index}
    return Config({'model': {'decode_head': head}, 'train_dataloader': {'dataset': settings}})


@pytest.mark.parametrize(
    'maps, expected',
    [
        (
            [[0, 255]] * 3,
            r'in 3 of 3 label .* occur: car \(1\), tree \(2\). .*: 255 \(ignored\), as in .*0000',
        ),
        (
            [[1], [1, 255], [1]],
            r'ground \(0\), tree \(2\). Other .*: 255 \(ignored\), as in .*/labels/0001.png',
        ),
        ([[255], [255]], r'occur: ground \(0\), car \(1\), tree \(2\). Other values do: 255 \(ignored\)'),
        ([[0, 128, 200]], r'car \(1\), tree \(2\). Other values do: 128, 200, as in'),
        ([[50], [60]], r'ground \(0\), car \(1\), tree \(2\). Other values do: 50, 60'),
    ],
    ids=str,
)
def test_one_class_or_none_beside_other_values_stops(tmp_path, said, maps, expected):
    with pytest.raises(ConfigError, match=expected + '.* write the classes into the label maps as 0 to 2'):
        check_labels_occur(config(tmp_path, maps))
    assert said == []


@pytest.mark.parametrize(
    'maps, warned',
    [
        ([[0, 1], [2, 255]], None),
        (
            [[0, 1], [0], [255]],
            r'in 3 of 3 label maps these classes do not occur: tree \(2\). .*as in .*0002.png',
        ),
        ([[0, 1], [0]], None),  # nothing is ignored, a class is just rare
        ([[0]], None),
    ],
    ids=str,
)
def test_some_classes_beside_ignored_pixels_cause_a_warning(tmp_path, said, maps, warned):
    check_labels_occur(config(tmp_path, maps))
    assert len(said) == (warned is not None)
    if warned:
        assert re.search(warned, said[0])


def test_labels_are_read_as_the_data_set_means_them(tmp_path, said):
    """0 is ignored, and 1, 2, 3 are the classes."""
    check_labels_occur(config(tmp_path, [[0, 1], [2, 3]], reduce_zero_label=True))
    assert said == []


def test_a_distiller_may_learn_from_images_whose_pixels_are_all_ignored(tmp_path, said):
    cfg = config(tmp_path, [[255], [255]])
    cfg.model.teacher = {'config': 'teacher.py'}
    check_labels_occur(cfg)
    assert 'do not occur: ground (0), car (1), tree (2)' in said[0]
    (tmp_path / 'more').mkdir()
    cfg.train_dataloader = config(tmp_path / 'more', [[0, 255], [255]]).train_dataloader
    with pytest.raises(ConfigError, match=r'car \(1\), tree \(2\)'):
        check_labels_occur(cfg)


def test_another_value_is_ignored(tmp_path, said):
    check_labels_occur(config(tmp_path, [[0, 1, 2]], ignore_index=0))
    assert said == []
    (tmp_path / 'more').mkdir()
    with pytest.raises(ConfigError, match=r'car \(1\), tree \(2\). Other values do: 0 \(ignored\)'):
        check_labels_occur(config(tmp_path / 'more', [[0]], ignore_index=0))


def test_many_missing_classes_are_counted(tmp_path, said):
    classes = [f'c{i}' for i in range(30)]
    check_labels_occur(config(tmp_path, [[0, 1, 255]], classes))
    assert 'c2 (2), c3 (3), c4 (4), c5 (5), c6 (6) and 23 more. Other' in said[0]


def test_looking_ends_when_every_class_was_seen(tmp_path, loaded):
    check_labels_occur(config(tmp_path, [[0, 1, 2]] * 9))
    assert len(loaded) == 1


def test_label_maps_are_spread_over_the_data(tmp_path, monkeypatch, loaded, said):
    monkeypatch.setattr(labels, 'MAPS', 5)
    check_labels_occur(config(tmp_path, [[0, 1, 255]] * 81))
    assert [name[-8:-4] for name in loaded] == ['0000', '0020', '0040', '0060', '0080']
    assert 'in 5 of 81 label maps' in said[0]


def test_a_second_class_is_looked_for_before_a_run_is_stopped(tmp_path, monkeypatch, loaded, said):
    monkeypatch.setattr(labels, 'MAPS', 4)
    check_labels_occur(config(tmp_path, [[0, 255]] * 30 + [[1, 0]] + [[0, 255]] * 30))
    assert len(loaded) < 40
    assert said[0].count('tree (2)') == 1 and 'car' not in said[0]


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'ConcatDataset', 'MultiImageMixDataset'])
def test_wrapped_data_sets_are_looked_at(tmp_path, wrapper):
    cfg = config(tmp_path, [[0, 255]])
    inner = cfg.train_dataloader.dataset
    more = {
        'RepeatDataset': {'times': 3, 'dataset': inner},
        'ConcatDataset': {'datasets': [inner, inner]},
        'MultiImageMixDataset': {'dataset': inner, 'pipeline': []},
    }
    cfg.train_dataloader.dataset = {'type': wrapper, **more[wrapper]}
    with pytest.raises(ConfigError, match=r'car \(1\), tree \(2\)'):
        check_labels_occur(cfg)
    check_data(cfg, 'train')  # as of a config that an earlier run has dumped
    with pytest.raises(ConfigError, match=r'car \(1\), tree \(2\)'):
        check_labels_occur(cfg)


@pytest.mark.parametrize(
    'changes',
    [
        {'pipeline': [*LOAD, {'type': 'CountFromOne'}]},
        {'pipeline': LOAD[:1]},
        {'classes': ('all',)},
        {'data_prefix': {'img_path': 'images'}},
    ],
    ids=str,
)
def test_data_sets_that_are_left_alone(tmp_path, said, changes):
    check_labels_occur(config(tmp_path, [[0, 255]], **changes))
    assert said == []


def test_a_label_map_that_cannot_be_read_is_named(tmp_path):
    cfg = config(tmp_path, [[0, 255]])
    (tmp_path / 'labels/0000.png').write_bytes(b'')
    with pytest.raises(ConfigError, match="0000.png' cannot be read: it is empty"):
        check_labels_occur(cfg)
