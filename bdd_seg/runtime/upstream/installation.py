"""Check which distributions of the mmseg stack are installed.

Reason: the maintained builds (``onedl-…``) and OpenMMLab's releases write the same folders, so one installed
over the other breaks both, without an error of pip's.
Test: tests/runtime/upstream/test_installation.py.
Goes when: the builds declare that they conflict, or share a name.
"""

import warnings
from collections.abc import Collection
from importlib import metadata

_MAINTAINED = ('onedl-mmcv', 'onedl-mmengine', 'onedl-mmsegmentation')
_ORIGINAL = ('mmcv', 'mmengine', 'mmsegmentation')
_INSTALL = 'pip install -c constraints.txt -e ".[mmseg]"'


def check_installation(installed: Collection[str] | None = None) -> None:
    """Check that mmseg is installed once.

    Args:
        installed: Names of the installed distributions; those of this interpreter by default.

    Raises:
        ImportError: Neither or both sets are installed. The message gives the command that mends it.
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
    # The maintained mmcv brings no compiled operators. Its warning advises to install the original mmcv,
    # which would corrupt it.
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
