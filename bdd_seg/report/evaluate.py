"""Evaluate networks on one validation set, for scores, outlines, calibration and pictures at once."""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmseg.models import BaseSegmentor
from rich.console import Console
from rich.progress import track
from torch import Tensor

from bdd_seg.errors import ConfigError
from bdd_seg.report.boundary import boundary_areas
from bdd_seg.report.data import Calibration, Evaluation
from bdd_seg.report.images import ValidationSet
from bdd_seg.runtime.upstream.atomic_files import write_atomically
from bdd_seg.teachers import first_look
from bdd_seg.teachers.segmentors import log_scores, predicts_scores

BINS = 15
"""Number of bins of the calibration."""

LONGEST_SIDE = 640
"""Longest side of the pictures, in pixels."""

_VERSION = 2  # of what is kept: a change of the measures makes the files of earlier versions void
_SAVE_SECONDS = 20.0


class Prediction(NamedTuple):
    """The answer of a network to an image.

    Attributes:
        labels: (H, W) class numbers, at the size of the label map.
        confidence: (H, W) probability of that class, None where the network gives none.
    """

    labels: np.ndarray
    confidence: np.ndarray | None


Predict = Callable[[dict[str, Any]], Prediction]
"""From a batch of one image, as a data loader gives it, to the answer."""


class Tally:
    """Sums over the images of a validation set.

    Args:
        classes: C.
        ignore_index: The label that does not count.

    Attributes:
        confusion: (C, C) pixels; a row is a true class.
        boundary: (2, C) pixels: intersection and union of the bands along outlines.
        calibration: (3, bins): sum of the confidence, right pixels, pixels. NaN throughout once a confidence
            was not finite.
        image_mious: mIoU of each image over the classes of its labels, in percent.
        maps: Each predicted label map as a PNG, at the size of pictures.
    """

    def __init__(self, classes: int, ignore_index: int) -> None:
        self.ignore_index = ignore_index
        self.confusion = np.zeros((classes, classes), np.int64)
        self.boundary = np.zeros((2, classes), np.int64)
        self.calibration = np.zeros((3, BINS))
        self.image_mious: list[float] = []
        self.maps: list[bytes] = []

    def add(self, label: np.ndarray, prediction: Prediction) -> None:
        """Add an image.

        Args:
            label: (H, W) true class numbers, or the label that does not count.
            prediction: The answer to it.

        Raises:
            ConfigError: It is of another size, or has a class beyond the C.
        """
        predicted = prediction.labels
        if predicted.shape != label.shape:
            raise ConfigError(
                f'a label map of {label.shape[0]}×{label.shape[1]} pixels stands against a prediction of '
                f'{predicted.shape[0]}×{predicted.shape[1]}. In the pipeline of the validation images, '
                'LoadAnnotations comes after Resize'
            )
        classes = len(self.confusion)
        counts = label != self.ignore_index
        true, own = label[counts].astype(np.int64), predicted[counts]
        if own.size and not 0 <= own.min() <= own.max() < classes:
            raise ConfigError(
                f'it predicts class {own.max() if own.max() >= classes else own.min()}, and the data set has '
                f'{classes} classes, 0 to {classes - 1}. Evaluate it on the images of its own classes: '
                '--config CONFIG.py'
            )
        confusion = np.bincount(classes * true + own, minlength=classes**2).reshape(classes, classes)
        self.confusion += confusion
        self.boundary += boundary_areas(label, predicted, classes, counts)
        # Over the classes of the labels: one stray pixel of another class would outweigh hundreds.
        present = np.unique(true)
        ious = Evaluation(confusion, self.boundary, None, np.empty(0)).ious[present]
        self.image_mious.append(float(ious.mean()) if len(present) else float('nan'))
        if prediction.confidence is not None and not np.isfinite(prediction.confidence[counts]).all():
            self.calibration[:] = np.nan
        elif prediction.confidence is not None:
            confidence = prediction.confidence[counts].astype(float)
            number = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
            self.calibration[0] += np.bincount(number, confidence, minlength=BINS)
            self.calibration[1] += np.bincount(number[true == own], minlength=BINS)
            self.calibration[2] += np.bincount(number, minlength=BINS)
        self.maps.append(png(small(predicted)))

    @property
    def finite(self) -> bool:
        """True if all confidences so far were finite."""
        return bool(np.isfinite(self.calibration).all())

    def evaluation(self) -> Evaluation:
        """Return the scores of all images so far."""
        confidence, right, pixels = self.calibration
        calibration = None
        if pixels.sum() > 0:  # and finite
            empty = np.full(BINS, np.nan)
            calibration = Calibration(
                confidence=np.divide(confidence, pixels, out=empty.copy(), where=pixels > 0),
                accuracy=np.divide(right, pixels, out=empty.copy(), where=pixels > 0),
                pixels=pixels.astype(np.int64),
            )
        return Evaluation(self.confusion, self.boundary, calibration, np.array(self.image_mious))

    def save(self, file: Path, key: str, facts: dict[str, Any]) -> None:
        """Write it to a file, whole or not at all. Where the folder cannot be written to, nothing is kept.

        Args:
            file: The file, ``.npz``.
            key: Names the network and the images.
            facts: More to keep, as JSON.
        """
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            key=np.array(key),
            facts=np.array(json.dumps(facts)),
            confusion=self.confusion,
            boundary=self.boundary,
            calibration=self.calibration,
            image_mious=np.array(self.image_mious),
            maps=np.frombuffer(b''.join(self.maps), np.uint8),
            ends=np.cumsum([len(one) for one in self.maps], dtype=np.int64),
        )
        try:
            write_atomically(file, buffer.getvalue())
        except OSError as error:
            print(f'{file} cannot be written ({error.strerror}): the evaluation is not kept')

    @classmethod
    def load(cls, file: Path, key: str, ignore_index: int) -> tuple['Tally', dict[str, Any]] | None:
        """Return what :meth:`save` wrote with this key, and its facts; None if there is nothing such."""
        try:
            with np.load(file, allow_pickle=False) as kept:
                if str(kept['key']) != key:
                    return None
                tally = cls(len(kept['confusion']), ignore_index)
                tally.confusion, tally.boundary = kept['confusion'], kept['boundary']
                tally.calibration = kept['calibration']
                tally.image_mious = kept['image_mious'].tolist()
                content, ends = kept['maps'].tobytes(), [0, *kept['ends'].tolist()]
                tally.maps = [content[ends[i] : ends[i + 1]] for i in range(len(ends) - 1)]
                return tally, json.loads(str(kept['facts']))
        except Exception:  # whatever a file that is missing, damaged, or another's leads to
            return None


@dataclass(frozen=True)
class Kept:
    """The place of an evaluation on disk.

    Attributes:
        file: ``report_evaluation_*.npz`` beside the network.
        key: Names the network and the images; an evaluation with another key does not count.
    """

    file: Path
    key: str


def place(folder: Path, name: str, network: Iterable[Any], images: ValidationSet) -> Kept:
    """Return where the evaluation of a network is kept.

    Args:
        folder: Of the network.
        name: Of its checkpoint; another evaluation of that name, on the same images, is replaced.
        network: What tells it from another: the digest of its weights, its settings.
        images: On which it is evaluated.
    """
    data = _digest(images.stamp())
    stem = ''.join(letter if letter.isalnum() or letter in '-_' else '-' for letter in name)
    key = _digest([_VERSION, BINS, LONGEST_SIDE, data, *network])
    return Kept(folder / f'report_evaluation_{stem}_{data[:8]}.npz', key)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def evaluate(
    name: str,
    images: ValidationSet,
    kept: Kept,
    predict: Callable[[], Predict],
    known: Callable[[], Sequence[int] | None] = lambda: None,
) -> tuple[Tally, dict[str, Any]]:
    """Return the evaluation of a network: what is kept, and what is missing of it anew.

    Interrupted, it goes on from what was kept last, every 20 seconds.

    Args:
        name: The network, for the line that tells the progress.
        images: The images.
        kept: Where it is kept.
        predict: Returns the function that answers images. Called only if there is something to do.
        known: Returns the classes that the network knows, or None for all. Pixels of others do not count.

    Returns:
        The sums over all images, and the facts kept with them.
    """
    found = Tally.load(kept.file, kept.key, images.ignore_index)
    tally, facts = found or (Tally(len(images.classes), images.ignore_index), {})
    done = len(tally.image_mious)
    if done >= len(images.numbers):
        return tally, facts
    answer, its = predict(), known()
    saved = time.monotonic()
    loader = images.loader(done)
    for data in track(loader, f'Evaluating {name}', len(images.numbers), done, console=Console(stderr=True)):
        label = images.label(data)
        if its is not None:
            label = np.where(np.isin(label, its), label, images.ignore_index)
        tally.add(label, answer(data))
        if time.monotonic() > saved + _SAVE_SECONDS:
            saved = time.monotonic()
            tally.save(kept.file, kept.key, facts)
    tally.save(kept.file, kept.key, facts)
    return tally, facts


def segmentor_predict(model: BaseSegmentor) -> Predict:
    """Return the function that answers by mmseg's own inference, whole or in windows as ``test_cfg`` says.

    Args:
        model: In eval mode. If it has one channel, its threshold decides.
    """
    scores = predicts_scores(model)
    labels_only = getattr(getattr(model, 'about', None), 'gives', 'logits') == 'labels'

    def predict(data: dict[str, Any]) -> Prediction:
        with torch.no_grad():
            (sample,) = model.test_step(data)
        logits = sample.seg_logits.data.float()
        labels = sample.pred_sem_seg.data.squeeze(0)
        if labels_only:
            return Prediction(_numbers(labels), None)
        return Prediction(_numbers(labels), _confidence(log_scores(logits) if scores else logits, labels))

    return predict


def teacher_predict(distiller: Any) -> Predict:
    """Return the function that answers as a teacher does in training, on whole images.

    Args:
        distiller: The student with its teacher, which is built and knows the classes. Where the teacher has
            other classes, the answer is in the student's.
    """
    teacher = distiller.teacher

    def predict(data: dict[str, Any]) -> Prediction:
        with torch.no_grad():
            sample = first_look.predict(distiller, distiller.data_preprocessor(data, training=False))
        labels = sample.pred_sem_seg.data.squeeze(0)
        confidence = _confidence(sample.seg_logits.data, labels)
        if teacher.class_map is not None:
            return Prediction(np.array(teacher.class_map.known)[_numbers(labels)], confidence)
        return Prediction(_numbers(labels), confidence)

    return predict


def _numbers(labels: Tensor) -> np.ndarray:
    return labels.long().cpu().numpy()


def _confidence(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Return the probability of the predicted class, (H, W).

    Args:
        logits: (C, H, W). One channel holds the probability of class 1, as mmseg gives it.
        labels: (H, W) predicted class numbers.
    """
    if len(logits) == 1:
        return torch.where(labels.bool(), logits[0], 1 - logits[0]).cpu().numpy()
    return (logits.amax(0) - logits.logsumexp(0)).exp().cpu().numpy()


def small(labels: np.ndarray) -> np.ndarray:
    """Return a label map (H, W) at the size of pictures."""
    return cv2.resize(
        labels.astype(np.uint16), small_size(*labels.shape)[::-1], interpolation=cv2.INTER_NEAREST
    )


def small_size(height: int, width: int) -> tuple[int, int]:
    """Return (height, width) of the pictures of an image: no side above the limit, and none enlarged."""
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def png(labels: np.ndarray) -> bytes:
    """Return a label map (h, w) as a PNG of 8 bits, or of 16 where it needs them."""
    large = labels.max(initial=0) > 255
    return cv2.imencode('.png', labels.astype(np.uint16) if large else labels.astype(np.uint8))[1].tobytes()


def from_png(content: bytes) -> np.ndarray:
    """Return the label map (h, w) of :func:`png`."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(image, np.int64)
