"""Balance divergence distillation for mmseg. Importing it registers models, data sets, losses and hooks."""

from bdd_seg.runtime.upstream.installation import check_installation
from bdd_seg.runtime.upstream.threads import shorten_waits

shorten_waits()
check_installation()

from bdd_seg.runtime import upstream  # noqa: E402

upstream.apply()

from bdd_seg import datasets, distill, losses, teachers  # noqa: E402
from bdd_seg.runtime import guards  # noqa: E402
from bdd_seg.study import metrics  # noqa: E402

__all__ = ['datasets', 'distill', 'guards', 'losses', 'metrics', 'teachers']
__version__ = '0.2.0'
