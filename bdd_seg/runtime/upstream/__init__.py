"""Mends of defects in mmengine, mmcv, mmseg and torch, one file each.

Each file says what is wrong, which test shows it, and when the mend can go. :func:`apply` puts the mends that
change a library's own tables in place; ``import bdd_seg`` calls it once. The others are functions and classes
that this package calls instead of the library's.
"""


def apply() -> None:
    """Import mmseg quietly, and put the mends of mmengine's tables and functions in place."""
    # Here and not above: the check of the installation is in this folder, and comes before mmengine.
    from bdd_seg.runtime.upstream import console

    console.apply()  # before the others are imported, since importing mmseg is what it keeps quiet
    from bdd_seg.runtime.upstream import (
        activation_checkpointing,
        atomic_files,
        bfloat16,
        checkpoints,
        configs,
        point_sample,
    )

    for patch in (activation_checkpointing, atomic_files, bfloat16, checkpoints, configs, point_sample):
        patch.apply()
