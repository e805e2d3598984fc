"""Evaluation for the report: confusion, outlines and calibration against plain loops, and what is kept."""

import math

import cv2
import numpy as np
import pytest
import torch
from helpers import build
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.evaluation import IoUMetric

from bdd_seg.errors import ConfigError
from bdd_seg.report import evaluate as module
from bdd_seg.report.boundary import band, band_width, boundary_areas
from bdd_seg.report.evaluate import (
    BINS,
    Kept,
    Prediction,
    Tally,
    evaluate,
    from_png,
    place,
    segmentor_predict,
)
from bdd_seg.report.images import ValidationSet, check_same_images

CLASSES = 3


def random_maps(seed, height=9, width=13, classes=CLASSES):
    """Blocky label maps, the first with some pixels ignored."""
    rng = np.random.default_rng(seed)
    maps = [np.kron(rng.integers(0, classes, (5, 7)), np.ones((2, 2), int)) for _ in range(2)]
    label, predicted = (one[:height, :width] for one in maps)
    label = np.where(rng.random(label.shape) < 0.15, 255, label)
    return label, predicted


def naive_band(mask, width, counts):
    """The pixels of a mask that have the image's edge or a pixel outside of the mask at most so far away."""
    height, length = mask.shape
    found = np.zeros_like(mask)
    for y in range(height):
        for x in range(length):
            for j in range(y - width, y + width + 1):
                for i in range(x - width, x + width + 1):
                    outside = not (0 <= j < height and 0 <= i < length)
                    if mask[y, x] and (outside or (counts[j, i] and not mask[j, i])):
                        found[y, x] = True
    return found


@pytest.mark.parametrize('width', [1, 2])
@pytest.mark.parametrize('seed', range(3))
def test_bands_are_those_of_each_class_alone(width, seed):
    label, _ = random_maps(seed)
    counts = label != 255
    found = band(np.where(counts, label, 0), width, counts)
    for number in range(CLASSES):
        np.testing.assert_array_equal(found & (label == number), naive_band(label == number, width, counts))


def test_bands_are_those_of_the_paper_s_code():
    """https://github.com/bowenc0221/boundary-iou-api, mask_to_boundary."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (8, 12)), np.ones((12, 10), int))
    height, width = labels.shape
    thickness = band_width(height, width)
    assert thickness == round(0.02 * math.sqrt(height**2 + width**2)) == 3
    found = band(labels, thickness)
    for number in range(4):
        mask = (labels == number).astype(np.uint8)
        padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=thickness)[1:-1, 1:-1]
        np.testing.assert_array_equal(found & (labels == number), (mask - eroded).astype(bool))


def test_boundary_areas_against_loops():
    label, predicted = random_maps(7)
    counts = label != 255
    areas = boundary_areas(label, predicted, CLASSES, counts)
    for number in range(CLASSES):
        true = naive_band(label == number, 1, counts)
        own = naive_band((predicted == number) & counts, 1, counts)
        assert areas[0, number] == (true & own).sum()
        assert areas[1, number] == (true | own).sum()
    assert areas[0].sum() > 0
    np.testing.assert_array_equal(
        boundary_areas(label, label, CLASSES, counts)[0].sum(), true_total(label, counts)
    )


def true_total(label, counts):
    return sum(naive_band(label == number, 1, counts).sum() for number in range(CLASSES))


def test_sums_against_loops():
    rng = np.random.default_rng(1)
    tally = Tally(CLASSES, 255)
    confusion, bins, mious = np.zeros((CLASSES, CLASSES), int), [[] for _ in range(BINS)], []
    for seed in range(3):
        label, predicted = random_maps(seed, classes=CLASSES if seed else 2)
        confidence = rng.random(label.shape)
        confidence[0, 0] = 1.0
        tally.add(label, Prediction(predicted, confidence))
        own = np.zeros_like(confusion)
        for true, guess, sure in zip(label.flat, predicted.flat, confidence.flat, strict=True):
            if true != 255:
                own[true, guess] += 1
                bins[min(int(sure * BINS), BINS - 1)].append((sure, true == guess))
        confusion += own
        ious = []
        for number in range(CLASSES):
            union = own[number].sum() + own[:, number].sum() - own[number, number]
            ious += [own[number, number] / union] if own[number].sum() else []  # of classes in the labels
        mious.append(100 * math.fsum(ious) / len(ious))
    found = tally.evaluation()
    np.testing.assert_array_equal(found.confusion, confusion)
    np.testing.assert_allclose(found.image_mious, mious, rtol=1e-12)
    total = confusion.sum()
    error = 0.0
    for number, inside in enumerate(bins):
        assert found.calibration.pixels[number] == len(inside)
        means = [math.fsum(values) / len(inside) for values in zip(*inside, strict=True)]
        assert found.calibration.confidence[number] == pytest.approx(means[0], rel=1e-12)
        assert found.calibration.accuracy[number] == pytest.approx(means[1], rel=1e-12)
        error += len(inside) / total * abs(means[0] - means[1])
    assert found.calibration.error == pytest.approx(error, rel=1e-12)
    np.testing.assert_array_equal(from_png(tally.maps[-1]), predicted)


def test_ignored_pixels_count_nowhere():
    label, predicted = random_maps(3)
    other = np.where(label == 255, (predicted + 1) % CLASSES, predicted)
    sums = []
    for answer in (predicted, other):
        tally = Tally(CLASSES, 255)
        tally.add(label, Prediction(answer, np.where(label == 255, answer / 7, 0.6)))
        sums.append(tally)
    for name in ('confusion', 'boundary', 'calibration', 'image_mious'):
        np.testing.assert_array_equal(getattr(sums[0], name), getattr(sums[1], name))


def test_a_prediction_of_another_size_is_refused():
    with pytest.raises(ConfigError, match='LoadAnnotations comes after Resize'):
        Tally(CLASSES, 255).add(np.zeros((4, 6), int), Prediction(np.zeros((4, 5), int), None))


def test_a_prediction_beyond_the_classes_is_refused():
    with pytest.raises(ConfigError, match='it predicts class 3, and the data set has 3 classes, 0 to 2'):
        Tally(CLASSES, 255).add(np.zeros((4, 6), int), Prediction(np.full((4, 6), 3), None))


def test_a_stray_pixel_of_an_absent_class_is_one_wrong_pixel():
    label = np.kron([[0], [1]], np.ones((50, 100), int))
    many, one = label.copy(), label.copy()
    many[:10], one[0, 0] = 1, 2
    tally = Tally(CLASSES, 255)
    for predicted in (many, one, np.zeros_like(label)):
        tally.add(label, Prediction(predicted, None))
    tally.add(np.full_like(label, 255), Prediction(one, None))
    assert tally.image_mious[:3] == pytest.approx([100 * (0.8 + 5 / 6) / 2, 100 * (4999 / 5000 + 1) / 2, 25])
    assert math.isnan(tally.image_mious[3])


@pytest.mark.parametrize('order', [1, -1])
def test_no_calibration_with_a_confidence_that_is_not_finite(order, tmp_path):
    label, predicted = random_maps(0)
    sure = np.full(label.shape, 0.7)
    broken = np.where(label == 255, np.inf, sure)
    broken[label != 255] = [np.nan, *sure[label != 255][1:]]
    tally = Tally(CLASSES, 255)
    tally.add(label, Prediction(predicted, np.where(label == 255, np.nan, sure)))
    assert tally.finite and tally.evaluation().calibration is not None  # ignored pixels count nowhere
    tally = Tally(CLASSES, 255)
    for confidence in (sure, broken)[::order]:
        tally.add(label, Prediction(predicted, confidence))
    assert not tally.finite and tally.evaluation().calibration is None
    tally.save(tmp_path / 'a.npz', 'key', {})
    assert not Tally.load(tmp_path / 'a.npz', 'key', 255)[0].finite
    assert tally.evaluation().confusion.sum() == 2 * (label != 255).sum()


@pytest.fixture(scope='module')
def config(tiny_configs) -> Config:
    return Config.fromfile(tiny_configs['student'])


@pytest.fixture(scope='module')
def images(config) -> ValidationSet:
    return ValidationSet(config)


def guess(data) -> Prediction:
    """An answer that depends on the image alone."""
    shades = data['inputs'][0].float().mean(0)
    return Prediction((shades.long() % 19).numpy(), (shades / 256).numpy())


def test_scores_are_mmseg_s(images, config):
    model = build(config).eval()
    predict = segmentor_predict(model)
    tally = Tally(19, 255)
    areas = []
    for data in images.loader():
        label, prediction = images.label(data), predict(data)
        tally.add(label, prediction)
        pair = torch.from_numpy(prediction.labels), torch.from_numpy(label)
        areas.append(IoUMetric.intersect_and_union(*pair, 19, 255))
        with torch.no_grad():
            probability = model.test_step(data)[0].seg_logits.data.softmax(0).amax(0)
        np.testing.assert_allclose(prediction.confidence, probability, rtol=1e-5)
    scores = IoUMetric.total_area_to_metrics(*map(sum, zip(*areas, strict=True)), ['mIoU'])
    found = tally.evaluation()
    np.testing.assert_allclose(found.ious, 100 * scores['IoU'].astype(float), rtol=1e-5)
    assert found.pixel_accuracy == pytest.approx(100 * float(scores['aAcc']), rel=1e-5)


def test_an_interrupted_evaluation_goes_on(images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_SAVE_SECONDS', -1.0)
    whole, _ = evaluate('whole', images, Kept(tmp_path / 'whole.npz', 'key'), lambda: guess)
    seen = []

    def interrupted(data):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(data)
        return guess(data)

    kept = Kept(tmp_path / 'kept.npz', 'key')
    with pytest.raises(KeyboardInterrupt):
        evaluate('n', images, kept, lambda: interrupted)
    seen.clear()
    monkeypatch.setattr(module, '_SAVE_SECONDS', 20.0)
    again, _ = evaluate('n', images, kept, lambda: lambda data: seen.append(data) or guess(data))
    assert len(seen) == len(images.numbers) - 2
    for name in ('confusion', 'boundary', 'calibration', 'image_mious', 'maps'):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    kept_one, _ = evaluate('n', images, kept, lambda: pytest.fail('opened for nothing'))
    np.testing.assert_array_equal(kept_one.confusion, whole.confusion)


def test_what_is_kept_of_another_network_or_damaged_does_not_count(tmp_path):
    tally, file = Tally(2, 255), tmp_path / 'a.npz'
    tally.add(np.zeros((4, 6), int), Prediction(np.ones((4, 6), int), None))
    tally.save(file, 'key', {'parameters': 7})
    found, facts = Tally.load(file, 'key', 255)
    assert found.maps == tally.maps and facts == {'parameters': 7}
    assert found.evaluation().calibration is None
    assert Tally.load(file, 'other', 255) is None
    np.savez(tmp_path / 'pickled.npz', key=np.array({'a': 1}, dtype=object))
    file.write_bytes(file.read_bytes()[:-40])
    assert Tally.load(file, 'key', 255) is None
    assert Tally.load(tmp_path / 'pickled.npz', 'key', 255) is None
    assert Tally.load(tmp_path / 'absent.npz', 'key', 255) is None


def test_the_place_tells_networks_and_images_apart(images, config, tmp_path):
    one = place(tmp_path, 'iter_6', ['digest', None], images)
    assert one.file.parent == tmp_path and one.file.name.startswith('report_evaluation_iter_6_')
    assert place(tmp_path, 'iter_6', ['digest', None], ValidationSet(config)) == one
    other = place(tmp_path, 'iter_6', ['another', None], images)
    assert other.file == one.file and other.key != one.key
    fewer = place(tmp_path, 'iter_6', ['digest', None], ValidationSet(config, 2))
    assert fewer.file != one.file and fewer.key != one.key
    for key, value in (('reduce_zero_label', True), ('metainfo', dict(classes=images.classes))):
        cfg = Config(config.to_dict())
        cfg.val_dataloader.dataset[key] = value
        assert place(tmp_path, 'iter_6', ['digest', None], ValidationSet(cfg)).key != one.key


def test_images_are_spread_evenly(images, config):
    half = ValidationSet(config, 2)
    assert half.numbers == [0, 2] and half.paths == [images.paths[0], images.paths[2]]
    assert half.describe().startswith('2 of 4 images of CityscapesDataset')
    with pytest.raises(ConfigError, match='cannot be compared: the one is validated on 4 images'):
        check_same_images(images, half, ('A', 'B'))


def test_other_classes_are_refused(images, config):
    cfg = Config(config.to_dict())
    names = [*images.classes]
    names[3] = 'hedge'
    cfg.val_dataloader.dataset.metainfo = dict(classes=names)
    cfg.val_dataloader.dataset.pop('type')
    cfg.val_dataloader.dataset.type = 'BaseSegDataset'
    cfg.val_dataloader.dataset.update(
        img_suffix='_leftImg8bit.png', seg_map_suffix='_gtFine_labelTrainIds.png'
    )
    with pytest.raises(ConfigError, match="19 and 19 classes, the first that differ are 'wall' and 'hedge'"):
        check_same_images(images, ValidationSet(cfg), ('A', 'B'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda cfg: cfg.update(val_dataloader=None, test_dataloader=None), 'has no val_dataloader'),
        (lambda cfg: cfg.val_dataloader.dataset.update(data_root='/absent'), "'/absent.*' cannot be found"),
        (
            lambda cfg: cfg.val_dataloader.dataset.data_prefix.pop('seg_map_path'),
            'no labels',
        ),
    ],
)
def test_images_that_are_not_there(config, change, message):
    cfg = Config(config.to_dict())
    change(cfg)
    with pytest.raises(ConfigError, match=message):
        ValidationSet(cfg)


def test_a_binary_head(config, scenes):
    """One channel: a threshold decides, and the confidence is the probability of what it decides."""
    cfg = Config(config.to_dict())
    for name in ('decode_head', 'auxiliary_head'):
        loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
        cfg.model[name].update(num_classes=2, out_channels=1, threshold=0.4, loss_decode=loss)
    model = build(cfg).eval()
    data = pseudo_collate([ValidationSet(config).dataset[0]])
    prediction = segmentor_predict(model)(data)
    with torch.no_grad():
        probability = model.test_step(data)[0].seg_logits.data[0].numpy()
    np.testing.assert_array_equal(prediction.labels, probability > 0.4)
    np.testing.assert_allclose(
        prediction.confidence, np.where(probability > 0.4, probability, 1 - probability), rtol=1e-6
    )
