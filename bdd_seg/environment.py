"""What must be installed, and what mmengine must be told about it."""

import warnings
from collections.abc import Collection
from importlib import metadata

_MAINTAINED = ('onedl-mmcv', 'onedl-mmengine', 'onedl-mmsegmentation')
_ORIGINAL = ('mmcv', 'mmengine', 'mmsegmentation')
_INSTALL = 'pip install -c constraints.txt -e ".[mmseg]"'


def check_environment(installed: Collection[str] | None = None) -> None:
    """Check that mmseg is installed once, and make its configs reachable as ``mmseg::…``.

    The maintained builds and the original releases write the same folders, so one installed over the
    other breaks both.

    Args:
        installed: Names of the installed distributions; those of this interpreter by default.

    Raises:
        ImportError: Neither or both are installed. The message gives the command that mends it.
    """
    if installed is None:
        installed = {(dist.metadata['Name'] or '').lower() for dist in metadata.distributions()}
    twice = [original for original in _ORIGINAL if original in installed and f'onedl-{original}' in installed]
    if twice:
        both = ' '.join(f'{name} onedl-{name}' for name in twice)
        raise ImportError(
            f'installed twice, which corrupts both: {both}. To mend it:\n'
            f'  pip uninstall -y {" ".join(_MAINTAINED + _ORIGINAL)}\n  {_INSTALL}'
        )
    if not {'onedl-mmsegmentation', 'mmsegmentation'} & set(installed):
        raise ImportError(f'mmseg is not installed. In the folder of bdd_seg:\n  {_INSTALL}')
    if 'onedl-mmsegmentation' in installed:
        _map_mmseg_configs()
        # The maintained mmcv brings no compiled operators and says so with the advice to install the original
        # one, which would corrupt it.
        warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')


def _map_mmseg_configs() -> None:
    """Let ``_base_ = 'mmseg::…'`` find the maintained build.

    mmengine looks for a distribution called ``mmsegmentation``, and its hub installs that one over the
    maintained build where it is absent. Under its import name mmseg is found wherever it comes from.
    """
    from mmengine.config import utils

    utils.MODULE2PACKAGE['mmseg'] = 'mmseg'
