import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import build
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmseg.evaluation import DepthMetric, IoUMetric
from mmseg.models.decode_heads import FCNHead
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from torch import nn

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import BatchCheckHook, _LabelCheck

PACKED = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}]
PREFIX = {'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'}


@pytest.fixture(scope='module')
def student(tiny_configs):
    return build(tiny_configs['student'])


@pytest.fixture
def data(scenes, tmp_path):
    """A data set whose third label map has a 19 in one corner."""
    root = shutil.copytree(scenes, tmp_path / 'data')
    path = sorted(root.glob('gtFine/train/*/*_labelTrainIds.png'))[2]
    labels = np.array(Image.open(path))
    labels[0, 0] = 19
    Image.fromarray(labels).save(path)
    return root


def loader(root, steps=PACKED, **wrapper):
    settings = {
        'type': 'CityscapesDataset',
        'data_root': str(root),
        'data_prefix': PREFIX,
        'pipeline': steps,
    }
    if 'datasets' in wrapper:
        wrapper['datasets'] = [settings]
    elif wrapper:
        wrapper['dataset'] = settings
    dataset = DATASETS.build(wrapper or settings)
    return torch.utils.data.DataLoader(dataset, batch_size=1, collate_fn=list)


def evaluate_on(loader, *metrics, which='val') -> list:
    metrics = metrics or (IoUMetric(),)
    loop = SimpleNamespace(evaluator=Evaluator([*metrics]))
    getattr(BatchCheckHook(), f'before_{which}')(
        SimpleNamespace(**{f'{which}_dataloader': loader, f'{which}_loop': loop})
    )
    return [sample for (sample,) in loader]


def train_on(loader, model) -> list:
    BatchCheckHook().before_train(SimpleNamespace(train_dataloader=loader, model=model))
    return [sample for (sample,) in loader]


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
def test_a_wrong_label_is_found_under_whatever_wraps_the_data_set(data, student, monkeypatch, wrapper):
    monkeypatch.setattr(
        DATASETS.get('CityscapesDataset'), 'get_cat_ids', lambda self, i: [i % 2], raising=False
    )
    with pytest.raises(
        ConfigError, match=r"000002_gtFine_labelTrainIds.png' has labels 19; the classes are 0 to 18"
    ):
        train_on(loader(data, **wrapper), student)


def test_what_is_mixed_into_one_image_is_checked_before(data, student):
    mixed = {
        'type': 'MultiImageMixDataset',
        'pipeline': [{'type': 'RandomMosaic', 'prob': 1.0, 'img_scale': (48, 96)}, {'type': 'PackSegInputs'}],
    }
    with pytest.raises(ConfigError, match="000002_gtFine_labelTrainIds.png' has labels 19"):
        train_on(loader(data, PACKED[:2], **mixed), student)


def test_pipelines_that_are_followed_are_checked_within(data, student):
    follow = [{'type': 'FollowGeometry', 'transforms': PACKED}]
    with pytest.raises(ConfigError, match="000002_gtFine_labelTrainIds.png' has labels 19"):
        train_on(loader(data, follow), student)
    (image,) = data.glob('leftImg8bit/train/*/*000001_leftImg8bit.png')
    image.write_bytes(b'')
    with pytest.raises(ConfigError, match="000001_leftImg8bit.png' cannot be read: it is empty"):
        train_on(loader(data, follow), student)


def test_what_is_right_comes_out_as_without_the_check(scenes, student):
    plain, checked = loader(scenes), loader(scenes)
    for _ in range(2):  # as with each validation of a training
        samples = train_on(checked, student)
    assert sum(isinstance(step, _LabelCheck) for step in checked.dataset.pipeline.transforms) == 1
    assert len(samples) == 8
    for expected, sample in zip((sample for (sample,) in plain), samples, strict=True):
        assert torch.equal(sample['inputs'], expected['inputs'])
        labels = sample['data_samples'].gt_sem_seg.data
        assert torch.equal(labels, expected['data_samples'].gt_sem_seg.data)
    again = pickle.loads(pickle.dumps(checked.dataset))  # to processes that do not fork
    assert torch.equal(again[0]['inputs'], samples[0]['inputs'])
    assert repr(checked.dataset.pipeline).count('LoadAnnotations') == 1


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
    check = _LabelCheck(19, 255, as_large_as_image=True)
    if wrong is None:
        assert check(results) is results
    else:
        with pytest.raises(
            ConfigError, match=f'has labels {wrong}; the classes are 0 to 18, and 255 is ignored'
        ):
            check(results)


def test_the_label_to_ignore_is_the_heads(scenes, student, monkeypatch):
    monkeypatch.setattr(student.decode_head, 'ignore_index', 7)
    with pytest.raises(ConfigError, match='has labels 255; the classes are 0 to 18, and 7 is ignored'):
        train_on(loader(scenes), student)


def test_a_transform_that_forgets_the_labels(scenes, student):
    class Shrink:
        def __call__(self, results):
            return {**results, 'img': results['img'][::2, ::2]}

    pipeline = [*PACKED[:2], Shrink(), PACKED[2]]
    with pytest.raises(
        ConfigError,
        match="TrainIds.png' has 48×96 pixels, image .*8bit.png' 24×48 when .* Their files differ in size",
    ):
        train_on(loader(scenes, pipeline), student)
    assert len(evaluate_on(loader(scenes, pipeline))) == 8  # there labels keep their size


def test_label_maps_of_another_size_may_be_made_as_large_as_the_images(scenes, student, tmp_path):
    root = shutil.copytree(scenes, tmp_path / 'data')
    for path in root.glob('gtFine/train/*/*_labelTrainIds.png'):
        image = Image.open(path)
        image.resize((48, 24), Image.Resampling.NEAREST).save(path)
    resize = {'type': 'Resize', 'scale': (64, 32)}
    samples = train_on(loader(root, [*PACKED[:2], resize, PACKED[2]]), student)
    assert {sample['data_samples'].gt_sem_seg.shape for sample in samples} == {(32, 64)}
    expected = "label map .*Ids.png' has 24×48 pixels, image .*8bit.png' 48×96"
    with pytest.raises(ConfigError, match=f'{expected} when'):
        train_on(loader(root), student)
    crop = {'type': 'RandomCrop', 'crop_size': (16, 16)}  # of both something of this size, from other places
    with pytest.raises(ConfigError, match=f'{expected} where they are cropped'):
        train_on(loader(root, [*PACKED[:2], crop, PACKED[2]]), student)
    assert len(train_on(loader(root, [*PACKED[:2], resize, crop, PACKED[2]]), student)) == 8
    validation = loader(root, [PACKED[0], resize, *PACKED[1:]])
    with pytest.raises(ConfigError, match=rf'{expected}\. '):  # the metric would end with an IndexError
        evaluate_on(validation)


class EdgeHead(FCNHead):
    """Learns something else from the labels, as mmseg's ``STDCHead`` does."""

    def loss_by_feat(self, seg_logits, batch_data_samples):
        return {}


@pytest.mark.parametrize(
    'part, changes, expected',
    [
        ('decode_head', {'num_classes': 7}, 'model.decode_head.num_classes is 7, .* has 19 classes'),
        ('auxiliary_head', {'num_classes': 2, 'out_channels': 1}, 'model.auxiliary_head.num_classes is 2'),
        ('auxiliary_head', {'type': EdgeHead, 'num_classes': 2, 'out_channels': 1}, None),
        ('decode_head', {'num_classes': 30}, None),
    ],
)  # fmt: skip
def test_heads_for_fewer_classes_than_the_data_set_has(scenes, tiny_configs, part, changes, expected):
    config = Config.fromfile(tiny_configs['student'])
    config.model[part].update(changes)
    model = build(config)
    if expected is None:
        assert len(train_on(loader(scenes), model)) == 8
    else:
        with pytest.raises(ConfigError, match=expected):
            train_on(loader(scenes), model)


def test_heads_that_have_no_labels(data, student, monkeypatch):
    """As mmseg's ``VPDDepthHead``, which is a ``BaseDecodeHead`` without an ``ignore_index``."""
    monkeypatch.setattr(student, 'auxiliary_head', None)
    monkeypatch.delattr(student.decode_head, 'ignore_index')
    assert len(train_on(loader(data), student)) == 8


def test_labels_of_a_loss_of_its_own_are_left_alone(data, tiny_configs):
    config = Config.fromfile(tiny_configs['student'])
    config.model.decode_head = {**config.model.auxiliary_head, 'type': EdgeHead, 'num_classes': 2}
    config.model.auxiliary_head = None
    assert len(train_on(loader(data), build(config))) == 8


def test_several_auxiliary_heads_and_wrapped_models(scenes, tiny_configs):
    config = Config.fromfile(tiny_configs['student'])
    head = config.model.auxiliary_head
    config.model.auxiliary_head = [head, {**head, 'num_classes': 7}]
    wrapped = MODELS.build({'type': 'SegTTAModel', 'module': config.model})
    with pytest.raises(ConfigError, match=r'^model.auxiliary_head.1.num_classes is 7'):
        train_on(loader(scenes), wrapped)


def test_models_without_such_heads_are_left_alone(data):
    assert len(train_on(loader(data), nn.Identity())) == 8


def test_evaluation_knows_the_classes_of_the_data_set(data):
    for which in ('val', 'test'):
        with pytest.raises(ConfigError, match="000002_gtFine_labelTrainIds.png' has labels 19"):
            evaluate_on(loader(data), which=which)


def test_evaluation_ignores_what_its_metric_does(data):
    with pytest.raises(ConfigError, match='has labels 255; the classes are 0 to 18, and 19 is ignored'):
        evaluate_on(loader(data), IoUMetric(ignore_index=19))
    assert len(evaluate_on(loader(data), IoUMetric(), DepthMetric())) == 8  # may read the labels otherwise


class Wrapping:
    """A transform of a user's own, which has something else under the name that others have steps."""

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, results):
        for step in self.transforms:
            results = step(results) if callable(step) else results
        return results


def test_steps_in_a_tuple_and_what_are_no_steps(data):
    steps = tuple(TRANSFORMS.build(step) for step in PACKED)
    (image,) = data.glob('leftImg8bit/train/*/*000001_leftImg8bit.png')
    image.write_bytes(b'')
    with pytest.raises(ConfigError, match="000001_leftImg8bit.png' cannot be read: it is empty"):
        evaluate_on(loader(data, [Wrapping(np.eye(3)), Wrapping(steps)]))


def test_a_label_map_too_large_for_pillow_is_for_others_to_judge(scenes, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9)
    annotations = {**PACKED[1], 'imdecode_backend': 'cv2'}
    assert len(evaluate_on(loader(scenes, [PACKED[0], annotations, PACKED[2]]))) == 8


def test_a_bug_of_a_transform_that_loads_keeps_its_traceback(data, capsys):
    checked = loader(data)
    (step,) = [s for s in checked.dataset.pipeline.transforms if type(s).__name__ == 'LoadAnnotations']
    step._load_seg_map = lambda results: {}['bug']
    with pytest.raises(
        ConfigError, match="Ids.png' cannot be read: is it whole, and an image.*KeyError: 'bug'"
    ):
        evaluate_on(checked)
    assert "lambda results: {}['bug']" in capsys.readouterr().err
