"""The pixel accuracy of a teacher, and a warning if it is hardly better than guessing."""

import logging

import torch
from mmengine.logging import print_log
from mmseg.models.losses import accuracy
from torch import Tensor

from bdd_seg.losses.pair import resize_nearest


def pixel_accuracy(logits: Tensor, seg_label: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the accuracy of logits at their resolution, and the labels that counted.

    Args:
        logits: (N, C, h, w).
        seg_label: (N, H, W) class indices, resized by nearest neighbour.
        ignore_index: The label that does not count.

    Returns:
        The accuracy in percent, shape (1,), NaN where no label counts; and a flat tensor of labels.
    """
    label = resize_nearest(seg_label, tuple(logits.shape[2:])).long()
    counted = label[label != ignore_index]
    if counted.numel() == 0:  # mmseg's says 100
        return logits.new_full((1,), torch.nan), counted
    return accuracy(logits, label, ignore_index=ignore_index), counted


class GuessWatch:
    """Warns once if over the first batches a teacher is hardly better than guessing."""

    BATCHES = 5
    MIN_SKILL = 0.2  # share of the way from always guessing the commonest class (0) to no mistake (1)

    def __init__(self) -> None:
        self._accuracies: list[Tensor] = []
        self._histograms: list[Tensor] = []
        self._done = False

    def update(self, accuracy: Tensor, labels: Tensor, num_classes: int, teacher: str) -> None:
        """Take in one batch, and judge after the last of the first ones.

        Args:
            accuracy: In percent, shape (1,).
            labels: The labels that counted, flat.
            num_classes: How many classes the teacher predicts.
            teacher: A few words for the warning that say which teacher it is.
        """
        if self._done or labels.numel() == 0:
            return
        self._accuracies.append(accuracy)
        self._histograms.append(torch.bincount(labels, minlength=num_classes))
        if len(self._accuracies) == self.BATCHES:
            self._judge(teacher)
            self._accuracies, self._histograms, self._done = [], [], True

    def _judge(self, teacher: str) -> None:
        accuracy = torch.cat(self._accuracies).mean().item()
        histogram = torch.stack(self._histograms).sum(0)
        guessing = 100 * (histogram.max() / histogram.sum().clamp(min=1)).item()
        if accuracy < guessing + self.MIN_SKILL * (100 - guessing):
            print_log(
                f'{"!" * 80}\nThe teacher ({teacher}) is hardly better than guessing: it labels '
                f'{accuracy:.1f}% of the pixels of the first {self.BATCHES} batches correctly, always '
                f'guessing the commonest class {guessing:.1f}%.\nIs it trained? Are its classes in the order '
                f'of the data set? Does its config normalise images as it was trained '
                f'(bgr_to_rgb, mean, std)?\n{"!" * 80}',
                logger='current',
                level=logging.WARNING,
            )
