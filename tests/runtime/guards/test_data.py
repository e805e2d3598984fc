"""The checks that ``check_data`` writes into a config, and the data sets built from it."""

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from torch.utils.data import Dataset

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import check_data, name_files, without_checks

PACKED = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}]
LOADED_IMAGE = {'type': 'CheckedLoading', 'transform': {'type': 'LoadImageFromFile'}}
LOADED_LABELS = {'type': 'CheckedLoading', 'transform': {'type': 'LoadAnnotations'}}
PREFIX = {'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'}


@pytest.fixture
def data(scenes, tmp_path):
    """A data set whose third label map has a 19 in one corner."""
    root = shutil.copytree(scenes, tmp_path / 'data')
    path = sorted(root.glob('gtFine/train/*/*_labelTrainIds.png'))[2]
    labels = np.array(Image.open(path))
    labels[0, 0] = 19
    Image.fromarray(labels).save(path)
    return root


@pytest.fixture
def train_on(tiny_configs):
    """Trains on the samples of a data set; returns the samples."""

    def run(dataset: dict, **model) -> list[dict]:
        cfg = Config.fromfile(tiny_configs['student'])
        cfg.train_dataloader.dataset = copy.deepcopy(dataset)
        cfg.val_dataloader = None
        for part, changes in model.items():
            cfg.model[part] = changes(cfg.model[part]) if callable(changes) else changes
        check_data(cfg, 'train')
        return samples(cfg.train_dataloader.dataset)

    return run


@pytest.fixture
def evaluate_on(tiny_configs):
    """Evaluates the samples of a data set, with ``IoUMetric`` or others; returns the samples."""

    def run(dataset: dict, evaluator=None, which='val') -> list[dict]:
        cfg = Config.fromfile(tiny_configs['student'])
        cfg[f'{which}_dataloader'].dataset = copy.deepcopy(dataset)
        if evaluator is not None:
            cfg[f'{which}_evaluator'] = evaluator
        check_data(cfg, 'test' if which == 'test' else 'train')
        return samples(cfg[f'{which}_dataloader'].dataset)

    return run


def settings(root, steps=PACKED, **wrapper) -> dict:
    """A data set of ``root``, within a wrapper if its settings are given."""
    inner = {
        'type': 'CityscapesDataset',
        'data_root': str(root),
        'data_prefix': PREFIX,
        'pipeline': list(steps),
    }
    if 'datasets' in wrapper:
        return {**wrapper, 'datasets': [inner]}
    return {**wrapper, 'dataset': inner} if wrapper else inner


def samples(dataset: dict) -> list[dict]:
    built = DATASETS.build(dataset)
    return [built[i] for i in range(len(built))]


@pytest.mark.parametrize(
    'wrapper',
    [
        {},
        {'type': 'RepeatDataset', 'times': 2},
        {'type': 'ConcatDataset', 'datasets': []},
        {'type': 'ClassBalancedDataset', 'oversample_thr': 1e-3},
    ],
    ids=lambda wrapper: wrapper.get('type', 'alone'),
)
def test_a_wrong_label_is_found_under_any_wrapper_of_the_data_set(data, train_on, monkeypatch, wrapper):
    monkeypatch.setattr(
        DATASETS.get('CityscapesDataset'), 'get_cat_ids', lambda self, i: [i % 2], raising=False
    )
    with pytest.raises(
        ConfigError, match=r"000002_gtFine_labelTrainIds.png' has labels 19; the classes are 0 to 18"
    ):
        train_on(settings(data, **wrapper))


def test_parts_of_a_mixed_image_are_checked_before(data, train_on):
    mixed = {
        'type': 'MultiImageMixDataset',
        'pipeline': [{'type': 'RandomMosaic', 'prob': 1.0, 'img_scale': (48, 96)}, {'type': 'PackSegInputs'}],
    }
    with pytest.raises(ConfigError, match="000002_gtFine_labelTrainIds.png' has labels 19"):
        train_on(settings(data, PACKED[:2], **mixed))


def test_pipelines_that_are_followed_are_checked_within(data, train_on):
    follow = [{'type': 'FollowGeometry', 'transforms': PACKED}]
    with pytest.raises(ConfigError, match="000002_gtFine_labelTrainIds.png' has labels 19"):
        train_on(settings(data, follow))
    (image,) = data.glob('leftImg8bit/train/*/*000001_leftImg8bit.png')
    image.write_bytes(b'')
    with pytest.raises(ConfigError, match="000001_leftImg8bit.png' cannot be read: it is empty"):
        train_on(settings(data, follow))


def test_a_followed_pipeline_has_the_same_geometry_with_checks(scenes, train_on):
    crop = [*PACKED[:2], {'type': 'RandomCrop', 'crop_size': (32, 64)}, PACKED[2]]
    dataset = settings(scenes, [{'type': 'FollowGeometry', 'transforms': crop}])
    geometries = []
    for load in (samples, train_on):
        np.random.seed(0)
        geometries.append([sample['data_samples'].geometry for sample in load(dataset)])
    assert np.array_equal(*geometries)
    assert not np.array_equal(geometries[0][0], np.eye(3))


def test_valid_data_is_the_same_with_checks(scenes, train_on):
    dataset = settings(scenes)
    plain, checked = samples(dataset), train_on(dataset)
    assert len(checked) == 8
    for expected, sample in zip(plain, checked, strict=True):
        assert torch.equal(sample['inputs'], expected['inputs'])
        labels = sample['data_samples'].gt_sem_seg.data
        assert torch.equal(labels, expected['data_samples'].gt_sem_seg.data)


def test_a_checked_data_set_can_be_sent_to_workers_that_are_spawned(scenes, tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    check_data(cfg, 'train')
    dataset = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': name_files(PACKED)})
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0]['inputs'], dataset[0]['inputs'])
    assert repr(dataset.pipeline).count('LoadAnnotations') == 1


def test_the_config_says_what_is_checked(tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.test_dataloader.dataset.pipeline = PACKED
    check_data(cfg, 'train')
    labels = {'type': 'CheckLabels', 'num_classes': 19, 'ignore_index': 255}
    assert cfg.train_dataloader.dataset.pipeline == [
        LOADED_IMAGE,
        LOADED_LABELS,
        {'type': 'CheckedCrop', 'transform': {'type': 'RandomCrop', 'crop_size': (32, 64)}},
        {'type': 'RandomFlip', 'prob': 0.5},
        {'type': 'PackSegInputs'},
        {**labels, 'match_inputs': True},
    ]
    evaluated = [LOADED_IMAGE, LOADED_LABELS, {'type': 'PackSegInputs'}, {**labels, 'match_inputs': False}]
    assert cfg.val_dataloader.dataset.pipeline == evaluated
    assert cfg.test_dataloader.dataset.pipeline == PACKED
    check_data(cfg, 'test')
    assert cfg.test_dataloader.dataset.pipeline == evaluated


def test_a_config_that_is_checked_already_gets_its_checks_anew(tiny_configs, tmp_path):
    cfg = Config.fromfile(tiny_configs['student'])
    plain = copy.deepcopy(cfg.to_dict())
    check_data(cfg, 'train')
    once = copy.deepcopy(cfg.to_dict())
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    check_data(dumped, 'train')
    assert dumped.to_dict() == once != plain
    dumped.model.decode_head.ignore_index = 7
    check_data(dumped, 'train')
    assert dumped.train_dataloader.dataset.pipeline[-1].ignore_index == 7
    assert without_checks(once) == plain


def test_checks_can_be_switched_off(data, tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    plain = cfg.train_dataloader.dataset.pipeline
    cfg.model.decode_head.num_classes = 7
    for already in (False, True):
        if already:
            cfg.train_dataloader.dataset.pipeline = [
                *name_files(plain),
                {'type': 'CheckLabels', 'num_classes': 19, 'ignore_index': 255, 'match_inputs': True},
            ]
        cfg.check_data = False
        check_data(cfg, 'train')
        assert cfg.train_dataloader.dataset.pipeline == plain


def test_the_label_to_ignore_is_the_heads(scenes, train_on):
    with pytest.raises(ConfigError, match='has labels 255; the classes are 0 to 18, and 7 is ignored'):
        train_on(settings(scenes), decode_head=lambda head: {**head, 'ignore_index': 7})


@TRANSFORMS.register_module()
class ShrinkImage(BaseTransform):
    """Makes the image half as large, and forgets the labels."""

    def transform(self, results):
        return {**results, 'img': results['img'][::2, ::2]}


def test_a_transform_that_forgets_the_labels(scenes, train_on, evaluate_on):
    dataset = settings(scenes, [*PACKED[:2], {'type': 'ShrinkImage'}, PACKED[2]])
    with pytest.raises(
        ConfigError,
        match="TrainIds.png' has 48×96 pixels, image .*8bit.png' 24×48 when .* Their files differ in size",
    ):
        train_on(dataset)
    assert len(evaluate_on(dataset)) == 8  # there labels keep their size


def test_label_maps_of_another_size_may_be_made_as_large_as_the_images(
    scenes, train_on, evaluate_on, tmp_path
):
    root = shutil.copytree(scenes, tmp_path / 'data')
    for path in root.glob('gtFine/train/*/*_labelTrainIds.png'):
        image = Image.open(path)
        image.resize((48, 24), Image.Resampling.NEAREST).save(path)
    resize = {'type': 'Resize', 'scale': (64, 32)}
    resized = train_on(settings(root, [*PACKED[:2], resize, PACKED[2]]))
    assert {sample['data_samples'].gt_sem_seg.shape for sample in resized} == {(32, 64)}
    expected = "label map .*Ids.png' has 24×48 pixels, image .*8bit.png' 48×96"
    with pytest.raises(ConfigError, match=f'{expected} when'):
        train_on(settings(root))
    crop = {'type': 'RandomCrop', 'crop_size': (16, 16)}  # of both something of this size, from other places
    with pytest.raises(ConfigError, match=f'{expected} where they are cropped'):
        train_on(settings(root, [*PACKED[:2], crop, PACKED[2]]))
    assert len(train_on(settings(root, [*PACKED[:2], resize, crop, PACKED[2]]))) == 8
    validation = settings(root, [PACKED[0], resize, *PACKED[1:]])
    with pytest.raises(ConfigError, match=rf'{expected}\. '):  # the metric would end with an IndexError
        evaluate_on(validation)


class EdgeHead(FCNHead):
    """Learns something else from the labels, as mmseg's ``STDCHead`` does."""

    def loss_by_feat(self, seg_logits, batch_data_samples):
        return {}


@MODELS.register_module()
class SevenClassHead(FCNHead):
    """Has a default that its base class lacks."""

    def __init__(self, num_classes=7, **kwargs):
        super().__init__(num_classes=num_classes, **kwargs)


@pytest.mark.parametrize(
    'part, changes, expected',
    [
        ('decode_head', {'num_classes': 7}, 'model.decode_head.num_classes is 7, .* has 19 classes'),
        ('auxiliary_head', {'num_classes': 2, 'out_channels': 1}, 'model.auxiliary_head.num_classes is 2'),
        ('auxiliary_head', {'type': EdgeHead, 'num_classes': 2, 'out_channels': 1}, None),
        ('decode_head', {'num_classes': 30}, None),
    ],
)
def test_heads_for_fewer_classes_than_the_data_set_has(scenes, train_on, part, changes, expected):
    changed = {part: lambda head: {**head, **changes}}
    if expected is None:
        assert len(train_on(settings(scenes), **changed)) == 8
    else:
        with pytest.raises(ConfigError, match=expected):
            train_on(settings(scenes), **changed)


def test_the_default_of_a_heads_class_counts(scenes, train_on):
    def without_number(head):
        return {key: value for key, value in head.items() if key != 'num_classes'} | {
            'type': 'mmseg.SevenClassHead'
        }

    with pytest.raises(ConfigError, match='model.auxiliary_head.num_classes is 7'):
        train_on(settings(scenes), auxiliary_head=without_number)


def test_the_classes_of_a_data_set_may_be_chosen_in_the_config(scenes, train_on):
    dataset = settings(scenes) | {'metainfo': {'classes': ['road', 'sidewalk', 'building']}}
    heads = {key: lambda head: {**head, 'num_classes': 3} for key in ('decode_head', 'auxiliary_head')}
    labels = [sample['data_samples'].gt_sem_seg.data for sample in train_on(dataset, **heads)]
    assert set(torch.cat(labels, 2).unique().tolist()) <= {0, 1, 2, 255}
    with pytest.raises(ConfigError, match='num_classes is 2, but .* has 3 classes'):
        train_on(dataset, **heads | {'decode_head': lambda head: {**head, 'num_classes': 2}})


@DATASETS.register_module()
class TwoImages(Dataset):
    """A data set of a user's own, none of mmengine's."""

    METAINFO = {'classes': ('road', 'sky')}

    def __init__(self, pipeline):
        self.pipeline = [TRANSFORMS.build(step) for step in pipeline]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        results = {'gt_seg_map': np.full((2, 2), index + 1, np.uint8), 'seg_map_path': f'{index}.png'}
        for step in self.pipeline:
            results = step(results)
        return results


@DATASETS.register_module()
class WithPipeline(TwoImages):
    """A data set whose pipeline is part of its class."""

    def __init__(self, pipeline=({'type': 'LoadImageFromFile'},)):
        super().__init__(pipeline)


@pytest.mark.parametrize('wanted', [True, False])
def test_the_pipeline_of_a_class_stays(tiny_configs, wanted):
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.train_dataloader.dataset = {'type': 'WithPipeline'}
    cfg.check_data = wanted
    check_data(cfg, 'train')
    assert cfg.train_dataloader.dataset == {'type': 'WithPipeline'}


def test_a_data_set_of_a_users_own(evaluate_on):
    with pytest.raises(ConfigError, match="label map '1.png' has labels 2; the classes are 0 to 1"):
        evaluate_on({'type': 'TwoImages', 'pipeline': []})


@pytest.mark.parametrize('head', [{'type': 'VPDDepthHead'}, None])
def test_heads_that_have_no_labels(data, train_on, head):
    assert len(train_on(settings(data), decode_head=head, auxiliary_head=None)) == 8


def test_labels_of_a_loss_of_its_own_are_left_alone(data, train_on):
    edges = {'decode_head': lambda head: {**head, 'type': EdgeHead, 'num_classes': 2}}
    assert len(train_on(settings(data), auxiliary_head=None, **edges)) == 8


def test_several_auxiliary_heads(scenes, train_on):
    with pytest.raises(ConfigError, match=r'^model.auxiliary_head.1.num_classes is 7'):
        train_on(settings(scenes), auxiliary_head=lambda head: [head, {**head, 'num_classes': 7}])


def test_evaluation_knows_the_classes_of_the_data_set(data, evaluate_on):
    for which in ('val', 'test'):
        with pytest.raises(ConfigError, match="000002_gtFine_labelTrainIds.png' has labels 19"):
            evaluate_on(settings(data), which=which)


def test_evaluation_ignores_the_label_of_its_metric(data, evaluate_on):
    metric = {'type': 'IoUMetric', 'ignore_index': 19}
    for evaluator in (metric, [metric], {'metrics': metric}, {'metrics': [metric, metric]}):
        with pytest.raises(ConfigError, match='has labels 255; the classes are 0 to 18, and 19 is ignored'):
            evaluate_on(settings(data), evaluator)


@pytest.mark.parametrize(
    'evaluator',
    [
        [{'type': 'IoUMetric'}, {'type': 'DepthMetric'}],  # which may read the labels otherwise
        [{'type': 'IoUMetric'}, {'type': 'IoUMetric', 'ignore_index': 19}],
        [],
    ],
)
def test_other_evaluators_leave_labels_alone(data, evaluate_on, evaluator):
    assert len(evaluate_on(settings(data), evaluator)) == 8


@TRANSFORMS.register_module()
class Wrapping(BaseTransform):
    """A transform of a user's own, which has something else under the name that others have steps."""

    def __init__(self, transforms):
        self.transforms = [TRANSFORMS.build(one) if isinstance(one, dict) else one for one in transforms]

    def transform(self, results):
        for step in self.transforms:
            results = step(results) if callable(step) else results
        return results


@TRANSFORMS.register_module()
class MyLoading(TRANSFORMS.get('LoadImageFromFile')):
    """A subclass of a user's own."""


def test_steps_in_a_tuple_and_values_that_are_no_steps(data, evaluate_on):
    (image,) = data.glob('leftImg8bit/train/*/*000001_leftImg8bit.png')
    image.write_bytes(b'')
    steps = ({'type': 'MyLoading'}, *PACKED[1:])
    with pytest.raises(ConfigError, match="000001_leftImg8bit.png' cannot be read: it is empty"):
        evaluate_on(
            settings(
                data,
                [
                    {'type': Wrapping, 'transforms': np.eye(3)},
                    {'type': 'RandomApply', 'transforms': steps, 'prob': 1.0},
                ],
            )
        )


CROP = {'type': 'RandomCrop', 'crop_size': (8, 8)}


@pytest.mark.parametrize(
    'step, expected',
    [
        (
            {'type': 'RandomChoice', 'transforms': [CROP, [CROP]]},
            {
                'type': 'RandomChoice',
                'transforms': [{'type': 'CheckedCrop', 'transform': CROP}] * 1
                + [[{'type': 'CheckedCrop', 'transform': CROP}]],
            },
        ),
        (
            {'type': 'TestTimeAug', 'transforms': [[{'type': 'Resize', 'scale': 2}], [PACKED[1]]]},
            {'type': 'TestTimeAug', 'transforms': [[{'type': 'Resize', 'scale': 2}], [LOADED_LABELS]]},
        ),
        ({'type': 'Albu', 'transforms': [CROP]}, {'type': 'Albu', 'transforms': [CROP]}),
        ({'type': Wrapping, 'transforms': [CROP]}, {'type': Wrapping, 'transforms': [CROP]}),
        ({'type': 'NoSuch', 'a': 1}, {'type': 'NoSuch', 'a': 1}),
    ],
    ids=lambda step: str(step['type']),
)
def test_nested_steps_are_wrapped_where_they_stand(step, expected):
    before = copy.deepcopy(step)
    assert name_files([step]) == [expected]
    assert step == before
    assert name_files(name_files([step])) == [expected]
    assert without_checks([expected]) == [step]


MOSAIC = {'type': 'RandomMosaic', 'prob': 1.0, 'img_scale': (48, 96)}
SMALL_CROP = {'type': 'RandomCrop', 'crop_size': (32, 64)}


def mixed(root, outer, **more) -> dict:
    return settings(root, PACKED[:2], type='MultiImageMixDataset', pipeline=outer, **more)


@pytest.mark.parametrize('flip', [[], [{'type': 'RandomFlip', 'prob': 1.0}]], ids=['alone', 'flip'])
def test_a_label_map_loaded_by_both_pipelines(scenes, train_on, flip):
    expected = (
        r"LoadAnnotations loads label map '\S+TrainIds.png' a second time: 'gt_seg_map' is twice in seg_"
    )
    with pytest.raises(ConfigError, match=expected):
        train_on(mixed(scenes, [*PACKED[:2], MOSAIC, *flip, PACKED[2]]))
    with pytest.raises(ConfigError, match=expected):
        train_on(settings(scenes, [*PACKED[:2], PACKED[1], *flip, PACKED[2]]))
    assert len(train_on(mixed(scenes, [MOSAIC, *flip, PACKED[2]]))) == 8


def test_the_pipeline_around_is_checked_as_the_one_within(scenes, train_on, tiny_configs):
    cfg = Config.fromfile(tiny_configs['student'])
    outer = [MOSAIC, SMALL_CROP, PACKED[2]]
    cfg.train_dataloader.dataset = mixed(scenes, outer)
    for _ in range(2):  # a second time replaces the checks
        check_data(cfg, 'train')
        steps = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
        assert steps == ['RandomMosaic', 'CheckedCrop', 'PackSegInputs', 'CheckLabels']
        inner = [step['type'] for step in cfg.train_dataloader.dataset.dataset.pipeline]
        assert inner == ['CheckedLoading', 'CheckedLoading', 'CheckLabels']
    cfg.check_data = False
    check_data(cfg, 'train')
    assert cfg.train_dataloader.dataset.to_dict() == mixed(scenes, outer)


@TRANSFORMS.register_module()
class ShiftLabels(BaseTransform):
    """Changes labels after the pipeline within has checked them."""

    def transform(self, results):
        results['gt_seg_map'] = results['gt_seg_map'] + 100
        return results


def test_labels_are_checked_where_the_pipeline_around_ends(scenes, train_on):
    with pytest.raises(ConfigError, match='has labels 99, 100, 101.*; the classes are 0 to 18'):
        train_on(mixed(scenes, [MOSAIC, {'type': 'ShiftLabels'}, PACKED[2]]))


def test_transforms_that_are_left_out_stay_out(scenes, train_on):
    """MultiImageMixDataset knows them by the type in their settings."""
    samples = train_on(mixed(scenes, [SMALL_CROP, PACKED[2]], skip_type_keys=['RandomCrop']))
    assert {tuple(sample['inputs'].shape) for sample in samples} == {(3, 48, 96)}
