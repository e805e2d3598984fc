"""Balance divergence distillation for mmseg. Importing it registers its models, data sets and losses."""

from bdd_seg.environment import check_environment

check_environment()

from bdd_seg import datasets, distillers, engine, losses  # noqa: E402

__all__ = ['datasets', 'distillers', 'engine', 'losses']
__version__ = '0.1.0'
