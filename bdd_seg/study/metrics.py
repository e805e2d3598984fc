"""mmseg's IoU metric with the IoU of each class among its results."""

from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric``, whose result also holds the IoU of each class in percent, as ``IoU.<class>``.

    ``IoUMetric`` prints these values in a table, but does not log them as data. A class that neither labels
    nor predictions contain has NaN.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return mmseg's metrics and the IoU of each class."""
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        intersection, union = (sum(areas) for areas in list(zip(*results, strict=True))[:2])
        ious = (100 * intersection / union).tolist()
        for name, iou in zip(self.dataset_meta['classes'], ious, strict=True):
            metrics[f'IoU.{name}'] = round(iou, 2)
        return metrics
