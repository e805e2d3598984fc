"""Mends of defects in mmengine, mmcv, mmseg and torch, one file each.

Each file says what is wrong, which test shows it, and when the mend can go. :func:`apply` puts the mends that
change a library's own tables in place; ``import bdd_seg`` calls it once. The others are functions and classes
that this package calls instead of the library's.
"""

from bdd_seg.runtime.upstream import atomic_files, bfloat16, checkpoints, configs


def apply() -> None:
    """Register this package's file backend, checkpoint loaders, and the place of mmseg's configs."""
    atomic_files.apply()
    checkpoints.apply()
    configs.apply()


__all__ = ['apply', 'bfloat16']
