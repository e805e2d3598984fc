"""mIoU of a network on the validation set of a config, by mmseg's own metric."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.models import BaseSegmentor
from rich.progress import track

from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.guards.data import check_data


class Validation:
    """The validation set of a config, on which several networks are evaluated.

    Args:
        cfg: The whole config. Its ``val_dataloader`` and ``val_evaluator`` count, else those for tests.

    Raises:
        ConfigError: It has none, or the images are not on this machine.
    """

    def __init__(self, cfg: Config) -> None:
        key = 'val' if cfg.get('val_dataloader') is not None else 'test'
        loader, evaluator = cfg.get(f'{key}_dataloader'), cfg.get(f'{key}_evaluator')
        if loader is None or evaluator is None:
            raise ConfigError(
                f'{cfg.filename} has no val_dataloader with a val_evaluator, on which an mIoU is measured'
            )
        settings = copy.deepcopy(Config({'test_dataloader': loader, 'test_evaluator': evaluator}))
        self.where = f'{key}_evaluator of {cfg.filename}'
        metrics = settings.test_evaluator
        if isinstance(metrics, dict) and 'metrics' in metrics:
            metrics = metrics['metrics']
        self._metrics = list(metrics) if isinstance(metrics, list | tuple) else [metrics]
        for metric in self._metrics:
            metric.setdefault('prefix', key)  # else mmengine warns that it has none
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
            check_data(settings, 'test')
            # Its processes would wait all through what comes between two evaluations.
            settings.test_dataloader.persistent_workers = False
            try:
                self._loader = Runner.build_dataloader(settings.test_dataloader)
            except (OSError, AssertionError) as error:  # mmseg's data sets assert that files are there
                raise ConfigError(
                    "an mIoU takes the config's labelled validation images, which are not on this machine: "
                    f'{first_line(error)}. Say where: --cfg-options {key}_dataloader.dataset.data_root=FOLDER'
                ) from error

    def miou(self, model: BaseSegmentor, name: str) -> float:
        """Return a network's mIoU in percent.

        Args:
            model: The network, an :class:`~bdd_seg.deploy.exported.ExportedSegmentor` among others.
            name: Of the network, for the line that tells the progress.

        Raises:
            ConfigError: The config measures no mIoU.
        """
        model.eval()
        with DefaultScope.overwrite_default_scope('mmseg'), _warnings_only():
            evaluator = Evaluator(copy.deepcopy(self._metrics))
            evaluator.dataset_meta = self._loader.dataset.metainfo
            with torch.no_grad():
                for batch in track(self._loader, f'Evaluating {name}'):
                    evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
            metrics: dict[str, Any] = evaluator.evaluate(len(self._loader.dataset))
        found = [value for key, value in metrics.items() if key.rpartition('/')[2] == 'mIoU']
        if not found:
            raise ConfigError(
                f'the {self.where} measures {", ".join(metrics) or "nothing"}, but no mIoU. '
                "Add dict(type='IoUMetric', iou_metrics=['mIoU'])"
            )
        return float(found[0])


@contextmanager
def _warnings_only() -> Iterator[None]:
    """Leave out the table of all classes that mmseg's metric logs."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
