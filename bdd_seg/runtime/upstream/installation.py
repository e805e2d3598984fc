"""Check the distributions of the mmseg stack, and that OpenCV can be imported.

Reason: the maintained builds (``onedl-…``) and OpenMMLab's releases write the same folders, so one installed
over the other breaks both, without an error of pip's. And mmcv depends on ``opencv-python``, which needs
libraries that a server or a container does not have, instead of on its headless build.
Test: tests/runtime/upstream/test_installation.py.
Goes when: the builds declare that they conflict, or share a name, and mmcv takes the headless build as well.
"""

import importlib
from collections.abc import Mapping
from importlib import metadata

PINS = ('onedl-mmcv==2.3.6', 'onedl-mmengine==0.10.12', 'onedl-mmsegmentation==1.4.2')
"""The maintained builds, as in setup.py."""

_ORIGINALS = ('mmcv', 'mmcv-full', 'mmcv-lite', 'mmengine', 'mmengine-lite', 'mmsegmentation')
_DEBIAN_PACKAGES = 'libgl1 libglib2.0-0 libxcb1'


def check_installation(installed: Mapping[str, str] | None = None) -> None:
    """Check that the maintained builds are installed, nothing over them, and that ``cv2`` can be imported.

    Args:
        installed: Name → version of the installed distributions; those of this interpreter by default.

    Raises:
        ImportError: Something is not as it must be. The message is one line with the command that mends it.
    """
    if installed is None:
        found = [dist for dist in metadata.distributions() if 'Name' in dist.metadata]  # not in broken ones
        installed = {dist.metadata['Name'].lower(): dist.version for dist in found}
    builds = [pin.partition('==')[0] for pin in PINS]
    present = [name for name in builds if name in installed]
    originals = [name for name in _ORIGINALS if name in installed]
    if originals and present:
        names = ' '.join([*originals, *present])
        raise _problem(
            f'installed over each other, which corrupts both: {names}. To mend it: pip uninstall -y {names} '
            f'&& pip install {" ".join(PINS)}'
        )
    if originals:
        raise _problem(
            f'bdd_seg needs the maintained builds {", ".join(builds)}, and here is {", ".join(originals)}. '
            'Make a new environment and install bdd-seg there; configs and checkpoints stay as they are'
        )
    if len(present) < len(builds):
        missing = [pin for pin, name in zip(PINS, builds, strict=True) if name not in installed]
        raise _problem(f'mmseg is not installed. To mend it: pip install {" ".join(missing)}')
    _check_cv2(installed.get('opencv-python'))


def _problem(message: str) -> ImportError:
    return ImportError(message, name='bdd_seg')  # by the name the command bdd-seg knows it


def _check_cv2(version: str | None) -> None:
    """Import ``cv2``.

    Args:
        version: The version of ``opencv-python``, None without it.

    Raises:
        ImportError: It cannot be imported.
    """
    try:
        importlib.import_module('cv2')
    except ImportError as error:
        # The headless build comes last: it has the same files, which removing the other would take away.
        headless = 'pip install --force-reinstall --no-deps opencv-python-headless'
        if version is not None:
            headless = f'pip uninstall -y opencv-python && {headless}=={version}'
        raise _problem(
            f'cv2 cannot be imported: {" ".join(str(error).split())}. To mend it, as root: apt install '
            f'{_DEBIAN_PACKAGES} (names of Debian and Ubuntu); or without root: {headless}'
        ) from error
