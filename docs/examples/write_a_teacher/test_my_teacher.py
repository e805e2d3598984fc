from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from my_teacher import SmoothedLabels


def sample(label: torch.Tensor) -> SegDataSample:
    return SegDataSample(gt_sem_seg=PixelData(data=label[None]))


def test_answers_have_the_probabilities_of_the_labels():
    label = torch.zeros(16, 16, dtype=torch.long)
    label[8:, 8:], label[:8, 8:] = 2, 255
    teacher = SmoothedLabels(probability=0.9, stride=8)
    teacher.build(SimpleNamespace(out_channels=3), [None])
    answer = teacher(torch.zeros(1, 3, 16, 16), [sample(label)])
    logits, known = answer.maps[teacher.logits_tap], answer.known[teacher.logits_tap]
    assert logits.shape == (1, 3, 2, 2) and not logits.requires_grad
    assert logits.softmax(1)[0, :, 0, 0].tolist() == pytest.approx([0.9, 0.05, 0.05])
    assert logits.softmax(1)[0, :, 1, 1].tolist() == pytest.approx([0.05, 0.05, 0.9])
    assert known[0].tolist() == [[True, False], [True, True]]
