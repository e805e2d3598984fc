import pytest

from bdd_seg.environment import check_environment


def test_one_set_of_distributions_is_right():
    check_environment()
    check_environment(['torch', 'onedl-mmcv', 'onedl-mmengine', 'onedl-mmsegmentation'])
    check_environment(['torch', 'mmcv', 'mmengine', 'mmsegmentation'])


def test_both_or_neither_are_explained():
    with pytest.raises(ImportError, match=r'mmseg is not installed(?s:.*)pip install -c constraints.txt -e'):
        check_environment(['torch', 'onedl-mmcv'])
    with pytest.raises(
        ImportError,
        match=r'(?s)installed twice.*: mmsegmentation onedl-mmsegmentation.*pip uninstall -y .*pip install',
    ):
        check_environment(['mmsegmentation', 'onedl-mmsegmentation', 'onedl-mmcv'])
