import importlib
import re

import pytest
from helpers import ROOT

from bdd_seg.runtime.upstream.installation import PINS, check_installation

BUILDS = dict(pin.split('==') for pin in PINS)


def message_of(installed) -> str:
    with pytest.raises(ImportError) as caught:
        check_installation(installed)
    assert caught.value.name == 'bdd_seg'  # the command bdd-seg prints it without a traceback
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_the_maintained_builds_are_right():
    check_installation()
    check_installation({'torch': '2.13.0', **BUILDS})


def test_the_pins_are_those_of_the_project():
    setup = (ROOT / 'setup.py').read_text()
    assert re.findall(r"'(onedl-.*?)'", setup) == [*PINS]
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    assert not set(PINS) - set(lines)
    versions = {line.partition('==')[2] for line in lines if line.startswith('opencv-python')}
    assert len(versions) == 1  # of opencv-python and its headless build


def test_what_is_missing_is_named():
    assert message_of({}) == f'mmseg is not installed. To mend it: pip install {" ".join(PINS)}'
    lacking = {name: version for name, version in BUILDS.items() if name != 'onedl-mmcv'}
    assert message_of(lacking) == f'mmseg is not installed. To mend it: pip install {PINS[0]}'


@pytest.mark.parametrize('original', ['mmcv', 'mmcv-lite', 'mmengine', 'mmsegmentation'])
def test_builds_over_each_other(original):
    said = message_of({**BUILDS, original: '1.0'})
    names = f'{original} {" ".join(BUILDS)}'
    expected = f'corrupts both: {names}. To mend it: pip uninstall -y {names} && pip install {" ".join(PINS)}'
    assert said == f'installed over each other, which {expected}'


def test_openmmlabs_own_releases_are_not_supported():
    said = message_of({'mmcv': '2.1.0', 'mmengine': '0.10.4', 'mmsegmentation': '1.2.2'})
    assert 'and here is mmcv, mmengine, mmsegmentation. Make a new environment and install bdd-seg' in said


@pytest.mark.parametrize('version', ['5.0.0.93', None])
def test_opencv_without_its_system_libraries(monkeypatch, version):
    def fail(name):
        raise ImportError(f'libGL.so.1: cannot open shared object file of {name}')

    monkeypatch.setattr(importlib, 'import_module', fail)
    said = message_of({**BUILDS, **({'opencv-python': version} if version else {})})
    pip = 'pip install --force-reinstall --no-deps opencv-python-headless'
    if version:
        pip = f'pip uninstall -y opencv-python && {pip}=={version}'
    assert said == (
        'cv2 cannot be imported: libGL.so.1: cannot open shared object file of cv2. To mend it, as root: apt '
        f'install libgl1 libglib2.0-0 libxcb1 (names of Debian and Ubuntu); or without root: {pip}'
    )
