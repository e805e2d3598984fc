"""The content of a report, before anything is drawn."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Role = Literal['teacher', 'alone', 'distilled', 'plain', 'exported']
"""``alone``: a plain network with the model settings of a distilled one; ``plain``: any other plain one."""


@dataclass(frozen=True)
class Calibration:
    """Confidence, the largest class probability of a pixel, against accuracy, in bins of equal width.

    Attributes:
        confidence: Mean confidence of each bin, 0 to 1; NaN for an empty one.
        accuracy: Share of its pixels that are right, 0 to 1; NaN for an empty one.
        pixels: Number of its pixels.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    pixels: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1: the mean distance of the two, weighted by pixels."""
        filled = self.pixels > 0
        distance = np.abs(self.confidence[filled] - self.accuracy[filled])
        return float((distance * self.pixels[filled]).sum() / max(1, self.pixels.sum()))


@dataclass(frozen=True)
class Evaluation:
    """A network on the images of a validation set. C classes, M images; scores in percent.

    Attributes:
        confusion: (C, C) pixels; a row is a true class, a column a predicted one.
        boundary: (2, C) pixels: intersection and union of the bands along the outlines of each class.
        calibration: None where a network gives no probabilities.
        image_mious: (M,) mIoU of each image over the classes that its labels contain; NaN without labels.
    """

    confusion: np.ndarray
    boundary: np.ndarray
    calibration: Calibration | None
    image_mious: np.ndarray

    @property
    def ious(self) -> np.ndarray:
        """(C,) IoU of each class; NaN for one that neither labels nor predictions contain."""
        right = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(0) + self.confusion.sum(1) - right
        return 100 * np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)

    @property
    def boundary_ious(self) -> np.ndarray:
        """(C,) boundary IoU of each class; NaN where there is no outline."""
        inside, union = self.boundary.astype(float)
        return 100 * np.divide(inside, union, out=np.full_like(inside, np.nan), where=union > 0)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur."""
        return float(np.nanmean(self.ious)) if np.isfinite(self.ious).any() else float('nan')

    @property
    def boundary_miou(self) -> float:
        """Mean boundary IoU over the classes that occur."""
        known = self.boundary_ious
        return float(np.nanmean(known)) if np.isfinite(known).any() else float('nan')

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels that are right."""
        return 100 * float(np.diag(self.confusion).sum() / max(1, self.confusion.sum()))


@dataclass(frozen=True)
class Curve:
    """Values that a training logged.

    Attributes:
        name: As in the log: ``loss``, ``lr``, ``distill.loss_bdd``, ``distill.forward_kl``, ``mIoU``.
        iterations: (K,).
        seconds: (K,) of wall-clock since the training began, sessions taken together.
        values: (K,).
    """

    name: str
    iterations: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Network:
    """A network of the report.

    Attributes:
        key: Short and unique: its role, with a number where there are several.
        role: Its part in the comparison.
        label: Its name, for readers.
        source: Where it comes from: a work dir, a checkpoint, an exported file.
        evaluation: None where it could not be evaluated, and then ``note`` says why.
        scores: The mIoU that its training logged or a study recorded, in percent. Where there is an
            evaluation, that counts.
        parameters: Number of parameters.
        flops: Multiply-adds for one image of ``Report.image_size``, in sliding windows if it has them.
        latency: Seconds of the network for one prepared image of that size, batch 1, on ``device``, in
            sliding windows if it has them. Logits stay on its own grid.
        device: Of the latency: the name of a GPU, or a number of CPU threads.
        curves: Of its training, if its log was found.
        config: Its config as text, for the differences.
        command: That trained it, if known.
        seed: Of its training, if known.
        note: Anything a reader should know.
    """

    key: str
    role: Role
    label: str
    source: str
    evaluation: Evaluation | None = None
    scores: float | None = None
    parameters: int | None = None
    flops: int | None = None
    latency: float | None = None
    device: str = ''
    curves: list[Curve] = field(default_factory=list)
    config: str = ''
    command: str = ''
    note: str = ''
    seed: int | None = None

    @property
    def miou(self) -> float | None:
        """mIoU in percent, of this report's evaluation if there is one."""
        return self.scores if self.evaluation is None else self.evaluation.miou


@dataclass(frozen=True)
class Picture:
    """An image of the gallery.

    Attributes:
        name: Its file, relative to the data set.
        layers: Layer → an encoded image (JPEG, PNG or WebP), all of one size. Keys are ``image``, ``truth``,
            a network's key, and ``error.KEY``, where wrong pixels are marked.
        mious: Network's key → mIoU of this image in percent.
        gain: mIoU of the distilled network minus that of the student alone; of two networks the second's
            minus the first's; None with one.
    """

    name: str
    layers: dict[str, bytes]
    mious: dict[str, float]
    gain: float | None = None


@dataclass(frozen=True)
class Seeds:
    """The results of a study: a method's scores over several seeds.

    Attributes:
        label: Name of the method.
        budget: ``iterations`` or ``wall_clock``, that all methods have in common.
        mious: Seed → mIoU in percent.
        minutes: Mean wall-clock of a training.
        against_control: Difference to the student alone with its 95% interval, as text; empty for itself.
    """

    label: str
    budget: str
    mious: dict[int, float]
    minutes: float | None
    against_control: str


@dataclass(frozen=True)
class Report:
    """The content of the page.

    Attributes:
        title: Its heading.
        classes: C names.
        palette: C colours (red, green, blue), 0 to 255.
        dataset: Which images were evaluated, for readers.
        image_size: (height, width) to which parameters, operations and latency belong; None if not measured.
        networks: Teacher first, then those alone, then the others.
        pictures: Of the gallery; those with the largest gain first.
        seeds: Of studies.
        environment: What → value.
        commands: The commands that reproduce the runs and this page.
        notes: Sentences a reader should know.
    """

    title: str
    classes: list[str]
    palette: list[tuple[int, int, int]]
    dataset: str
    image_size: tuple[int, int] | None
    networks: list[Network]
    pictures: list[Picture] = field(default_factory=list)
    seeds: list[Seeds] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def comparable(self) -> list[Network]:
        """The networks whose scores are of one kind: those evaluated for this report, if there are some.

        Else they are those with a recorded score, else all. Recorded scores may be of other images.
        """
        evaluated = [network for network in self.networks if network.evaluation is not None]
        recorded = [network for network in self.networks if network.scores is not None]
        return evaluated or recorded or self.networks

    def first(self, role: Role) -> Network | None:
        """Return the first comparable network with this role."""
        return next((network for network in self.comparable if network.role == role), None)

    @property
    def compared(self) -> tuple[Network, Network] | None:
        """The two comparable networks whose difference is shown: the student alone and distilled.

        Without these, the first two that are no teachers, or else the first two. None with one network.
        """
        alone, distilled = self.first('alone'), self.first('distilled')
        if alone is not None and distilled is not None:
            return alone, distilled
        students = [network for network in self.comparable if network.role != 'teacher']
        pair = students if len(students) > 1 else self.comparable
        return (pair[0], pair[1]) if len(pair) > 1 else None

    @property
    def distils(self) -> bool:
        """True if the two that are compared are the student alone and distilled."""
        return [network.role for network in self.compared or ()] == ['alone', 'distilled']

    @property
    def gap_closed(self) -> float | None:
        """Share in percent of the gap from student alone to teacher that the distilled student closes.

        None without the three of them, or where the teacher is no better than the student alone.
        """
        found = [self.first(role) for role in ('teacher', 'alone', 'distilled')]
        mious = [None if network is None else network.miou for network in found]
        teacher, alone, distilled = mious
        if teacher is None or alone is None or distilled is None or teacher <= alone:
            return None
        return 100 * (distilled - alone) / (teacher - alone)
