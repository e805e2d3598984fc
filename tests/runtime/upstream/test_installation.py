import pytest

from bdd_seg.runtime.upstream.installation import check_installation


def test_one_set_of_distributions_is_right():
    check_installation()
    check_installation(['torch', 'onedl-mmcv', 'onedl-mmengine', 'onedl-mmsegmentation'])
    check_installation(['torch', 'mmcv', 'mmengine', 'mmsegmentation'])


def test_both_or_neither_are_explained():
    with pytest.raises(ImportError, match=r'mmseg is not installed(?s:.*)pip install -c constraints.txt -e'):
        check_installation(['torch', 'onedl-mmcv'])
    with pytest.raises(
        ImportError,
        match=r'(?s)installed twice.*: mmsegmentation onedl-mmsegmentation.*pip uninstall -y .*pip install',
    ):
        check_installation(['mmsegmentation', 'onedl-mmsegmentation', 'onedl-mmcv'])
