from collections.abc import Iterable

import torch
import torch.nn.functional as nnf
from mmseg.models import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.utils import SampleList
from torch import Tensor

from bdd_seg.teachers import Answer, Teacher


@MODELS.register_module()
class SmoothedLabels(Teacher):
    """The labels as a teacher: logits that give the labelled class so much of the probability.

    Args:
        probability: Of the labelled class; the others share the rest.
        stride: Cells of the answer are so many pixels wide.
        ignore_index: The label where the answer is unknown.
    """

    gives_masks = True  # answers can be unknown

    def __init__(self, probability: float = 0.9, stride: int = 8, ignore_index: int = 255, **shared) -> None:
        super().__init__(**shared)
        self.probability, self.stride, self.ignore_index = probability, stride, ignore_index
        self.classes = 0

    @property
    def is_built(self) -> bool:
        return self.classes > 0

    def describe(self) -> str:
        return f'labels smoothed to {self.probability}'

    def build(self, student: BaseSegmentor, taps: Iterable[str | None]) -> None:
        self.classes = student.out_channels
        self.logits_tap = 'logits'  # the name under which the answer has the class logits

    def __call__(self, inputs: Tensor, data_samples: SampleList) -> Answer:
        labels = torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples]).to(inputs.device)
        labels = labels[:, self.stride // 2 :: self.stride, self.stride // 2 :: self.stride]
        known = labels != self.ignore_index
        rest = (1 - self.probability) / (self.classes - 1)
        right = nnf.one_hot(labels.where(known, 0).long(), self.classes).movedim(-1, 1)
        probabilities = rest + right * (self.probability - rest)
        return Answer({'logits': probabilities.log()}, {'logits': known})
