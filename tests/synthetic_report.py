"""Reports made up for the tests of the report page: street scenes, and networks that see them badly."""

from dataclasses import replace

import cv2
import numpy as np

from bdd_seg.datasets.street_scenes import CLASSES, IGNORED, PALETTE, colour_labels, draw_scene
from bdd_seg.report.data import Calibration, Curve, Evaluation, Network, Picture, Report, Role, Seeds

BLINDNESS: dict[Role, int] = {'teacher': 2, 'alone': 9, 'distilled': 5}
"""Network → the size in pixels of what it cannot see, on images of 96 rows."""


def make_report(
    count: int = 6, height: int = 96, width: int = 192, repeat: int = 1, points: int = 60
) -> Report:
    """Return the report of a teacher, a student alone and distilled on so many street scenes.

    Args:
        count: Scenes drawn.
        height: Their rows.
        width: Their columns.
        repeat: Times that the gallery shows each of them.
        points: Points of each curve.

    Returns:
        The report.
    """
    rng = np.random.default_rng(7)
    scenes = [draw_scene(np.random.default_rng((3, index)), height, width) for index in range(count)]
    labels = [scene[1] for scene in scenes]
    maps = {key: [_predict(label, key, rng) for label in labels] for key in BLINDNESS}
    results = {key: evaluate(labels, maps[key], key) for key in BLINDNESS}
    networks = [
        Network('teacher', 'teacher', 'PSPNet-R101', 'work_dirs/teacher', results['teacher'], None, 68070000),
        Network('alone', 'alone', 'PSPNet-R18', 'work_dirs/alone', results['alone'], None, 12790000),
        Network('distilled', 'distilled', 'BDD', 'work_dirs/bdd', results['distilled'], None, 12790000),
    ]
    costs = (256.4e9, 0.412), (54.53e9, 0.0871), (54.53e9, 0.0868)
    networks = [
        replace(network, flops=int(flops), latency=latency)
        for network, (flops, latency) in zip(networks, costs, strict=True)
    ]
    config = "model = dict(\n    type='EncoderDecoder',\n    backbone=dict(depth=18))\nmax_iters = 80000\n"
    distiller = config.replace('EncoderDecoder', 'SegDistiller')
    command = 'python tools/train.py configs/bdd/bdd_street-scenes.py'
    networks[1] = replace(networks[1], curves=make_curves(rng, points, False), config=config)
    networks[2] = replace(
        networks[2], curves=make_curves(rng, points, True), config=distiller, command=command
    )
    shown = [
        make_picture(*scenes[index], {key: maps[key][index] for key in BLINDNESS}, index, results)
        for index in range(count)
    ]
    pictures = [
        replace(shown[index % count], name=f'street/{index:04d}.png') for index in range(count * repeat)
    ]
    return Report(
        title='PSPNet-R101 teaches PSPNet-R18 with BDD',
        classes=list(CLASSES),
        palette=list(PALETTE),
        dataset='Street scenes, val',
        image_size=(512, 1024),
        networks=networks,
        pictures=sorted(pictures, key=lambda picture: -(picture.gain or 0)),
        environment={'Machine': '2 CPU cores', 'torch': '2.13.0', 'bdd-seg': '0.2.0'},
        commands=['bdd-seg report work_dirs/alone work_dirs/bdd --out report.html'],
        notes=['The teacher saw the images at twice the size.'],
    )


def evaluate(labels: list[np.ndarray], maps: list[np.ndarray], key: Role) -> Evaluation:
    """Return scores of label maps, with a made-up calibration."""
    num_classes = len(CLASSES)
    pairs = [
        (label[label != IGNORED].astype(int), map_[label != IGNORED])
        for label, map_ in zip(labels, maps, strict=True)
    ]
    confusions = [
        np.bincount(label * num_classes + map_, minlength=num_classes**2).reshape(num_classes, num_classes)
        for label, map_ in pairs
    ]
    nothing = Calibration(np.full(15, np.nan), np.full(15, np.nan), np.zeros(15, int))
    alone = [
        Evaluation(confusion, np.zeros((2, num_classes)), nothing, np.zeros(1)) for confusion in confusions
    ]
    bands = np.zeros((2, num_classes), int)
    for label, map_ in zip(labels, maps, strict=True):
        for index in range(num_classes):
            true, found = _band(label == index), _band((map_ == index) & (label != IGNORED))
            bands[:, index] += (true & found).sum(), (true | found).sum()
    mious = np.array([evaluation.miou for evaluation in alone])
    return Evaluation(np.sum(confusions, 0), bands, make_calibration(0.02 * BLINDNESS[key]), mious)


def make_calibration(excess: float) -> Calibration:
    """Return a calibration in 15 bins, too sure by at most so much, without pixels below 0.2."""
    centres = (np.arange(15) + 0.5) / 15
    pixels = (1e6 * centres**6).astype(int)
    pixels[:3] = 0
    accuracy = np.where(pixels > 0, centres - excess * np.sin(np.pi * centres), np.nan)
    return Calibration(np.where(pixels > 0, centres, np.nan), accuracy, pixels)


def make_curves(rng: np.random.Generator, points: int, distilled: bool) -> list[Curve]:
    """Return the curves of a training of 80,000 iterations."""
    iterations = np.linspace(80000 / points, 80000, points)
    seconds = iterations * (0.31 if distilled else 0.22)
    done = iterations / 80000

    def falling(start: float, stop: float) -> np.ndarray:
        return stop + (start - stop) * np.exp(-5 * done) * np.exp(0.12 * rng.standard_normal(points))

    values = {
        'loss': falling(3.0, 0.5),
        'decode.loss_ce': falling(2.2, 0.35),
        'aux.loss_ce': falling(1.0, 0.18),
        'decode.acc_seg': 100 - falling(60, 8),
        'lr': 0.01 * (1 - done) ** 0.9,
        'grad_norm': falling(9, 2),
    }
    if distilled:
        values |= {
            'distill.loss_bdd': falling(1.8, 0.4),
            'distill.forward_kl': falling(1.4, 0.3),
            'distill.reverse_kl': falling(2.4, 0.5),
            'distill.teacher_acc': 93 + rng.standard_normal(points),
            'distill.agreement': 100 - falling(50, 9),
        }
    curves = [Curve(name, iterations, seconds, value) for name, value in values.items()]
    few = np.linspace(8000, 80000, 10)
    scores = (62 if distilled else 58) - 30 * np.exp(-few / 20000) + 0.4 * rng.standard_normal(10)
    return [*curves, Curve('mIoU', few, few * seconds[-1] / 80000, scores)]


def make_seeds() -> list[Seeds]:
    """Return the results of a study with two methods and three seeds at two budgets."""
    alone, distilled = {1: 55.12, 2: 54.61, 3: 55.43}, {1: 57.02, 2: 56.58, 3: 57.71}
    return [
        Seeds('PSPNet-R18 alone', 'iterations', alone, 41.5, ''),
        Seeds('BDD', 'iterations', distilled, 58.2, '+2.05 [+1.62, +2.48]'),
        Seeds('PSPNet-R18 alone', 'wall_clock', {seed: miou + 0.4 for seed, miou in alone.items()}, 58.1, ''),
        Seeds('BDD', 'wall_clock', distilled, 58.2, '+1.65 [+1.22, +2.08]'),
    ]


def make_picture(
    image: np.ndarray,
    labels: np.ndarray,
    maps: dict[Role, np.ndarray],
    index: int,
    results: dict[Role, Evaluation],
) -> Picture:
    """Return a scene with its labels, the networks' label maps and their errors."""
    layers = {'image': encode(image, '.jpg'), 'truth': encode(colour_labels(labels))}
    layers |= {key: encode(colour_labels(map_)) for key, map_ in maps.items()}
    for key, map_ in maps.items():
        wrong = ((map_ != labels) & (labels != IGNORED))[..., None]
        marked = np.where(wrong, (213, 94, 0), 0.35 * image + 140)
        layers[f'error.{key}'] = encode(marked.astype(np.uint8), '.jpg')
    mious = {key: float(result.image_mious[index]) for key, result in results.items()}
    return Picture('', layers, mious, mious['distilled'] - mious['alone'])


def encode(image: np.ndarray, kind: str = '.png') -> bytes:
    """Return an RGB image as a file's bytes."""
    return cv2.imencode(kind, image[..., ::-1])[1].tobytes()


def _predict(labels: np.ndarray, key: Role, rng: np.random.Generator) -> np.ndarray:
    """Return labels without what is smaller than the network sees, shifted here and there."""
    height, width = labels.shape
    size = max(2, BLINDNESS[key] * height // 96)
    shifts = size / 3 * rng.standard_normal((2, height // 12, width // 12)).astype(np.float32)
    down, right = (cv2.resize(shift, (width, height), interpolation=cv2.INTER_CUBIC) for shift in shifts)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    known = np.where(labels == IGNORED, 0, labels).astype(np.uint8)
    blurred = cv2.medianBlur(known, 2 * (size // 3) + 1)
    return cv2.remap(
        blurred, columns + right, rows + down, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )


def _band(mask: np.ndarray) -> np.ndarray:
    """Return the inner outline of a mask, three pixels wide."""
    return mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=3).astype(bool)
