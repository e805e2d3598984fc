import pytest
from conftest import CONFIGS
from mmengine.config import Config

from bdd_seg.engine import check_datasets, load_config
from bdd_seg.errors import ConfigError


def test_mmsegs_own_configs(tmp_path):
    name = 'mmseg::deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    assert load_config(name).model.decode_head.type == 'ASPPHead'
    heir = tmp_path / 'heir.py'
    heir.write_text(f'_base_ = {name!r}\nmodel = dict(backbone=dict(depth=50))')
    cfg = load_config(heir)
    assert (cfg.model.decode_head.type, cfg.model.backbone.depth) == ('ASPPHead', 50)


def test_what_does_not_exist(tmp_path):
    path = CONFIGS / 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1025.py'
    with pytest.raises(
        ConfigError, match='does not exist. Did you mean pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    ):
        load_config(path)
    (tmp_path / 'orphan.py').write_text("_base_ = './absent.py'")
    with pytest.raises(
        ConfigError, match=r'orphan\.py.* inherits from a file that does not exist.*absent\.py'
    ):
        load_config(tmp_path / 'orphan.py')


@pytest.mark.parametrize(
    'module, content, expected',
    [
        (
            'my_absent_loss',
            None,
            "names 'my_absent_loss', which is not found. .* begin the line with PYTHONPATH=.",
        ),
        ('bdd_seg.absent', None, "names 'bdd_seg.absent', which is not found"),
        (
            'my_loss_a',
            'import my_absent_helper',
            "my_loss_a' cannot be imported: ModuleNotFoundError: No module named 'my_absent_helper'$",
        ),
        (
            'my_loss_b',
            'from bdd_seg.losses import AbsentLoss',
            "my_loss_b' cannot be imported: ImportError: cannot import name 'AbsentLoss' from 'bdd_seg.lo",
        ),
    ],
)
def test_modules_that_cannot_be_imported(tmp_path, monkeypatch, module, content, expected):
    monkeypatch.syspath_prepend(tmp_path)
    if content is not None:
        (tmp_path / f'{module}.py').write_text(content)
    config = tmp_path / 'config.py'
    config.write_text(f"custom_imports = dict(imports=['bdd_seg', {module!r}])")
    with pytest.raises(ConfigError, match=f'config .*config.py.: custom_imports.*{expected}'):
        load_config(config)


def test_a_config_that_itself_imports_what_is_absent(tmp_path):
    (tmp_path / 'config.py').write_text('classes = __import__("my_absent_helper").CLASSES')
    with pytest.raises(ConfigError, match=r"config\.py.: No module named 'my_absent_helper'$"):
        load_config(tmp_path / 'config.py')


def loader(**dataset):
    return Config({'train_dataloader': {'dataset': {'type': 'CityscapesDataset', **dataset}}})


def test_data_sets_are_looked_at_first(tmp_path, scenes):
    prefix = {'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'}
    check_datasets(loader(data_root=str(scenes), data_prefix=prefix), 'train_dataloader', 'val_dataloader')
    advice = 'put the data set there, or pass --cfg-options train_dataloader.dataset.data_root=FOLDER'
    with pytest.raises(ConfigError, match=f'leftImg8bit/train. does not exist; {advice}'):
        check_datasets(loader(data_root=str(tmp_path), data_prefix=prefix), 'train_dataloader')
    images = tmp_path / 'leftImg8bit/train'
    images.mkdir(parents=True)
    with pytest.raises(ConfigError, match=f'no image ending in ._leftImg8bit.png. in .*; {advice}'):
        check_datasets(loader(data_root=str(tmp_path), data_prefix=prefix), 'train_dataloader')
    (images / 'a_leftImg8bit.png').write_bytes(b'')
    with pytest.raises(ConfigError, match='a_leftImg8bit.png. has no label map .*a_gtFine_labelTrainIds.png'):
        check_datasets(loader(data_root=str(tmp_path), data_prefix=prefix), 'train_dataloader')


@pytest.mark.parametrize(
    'dataset, expected',
    [
        ({'type': 'PascalVOCDataset', 'ann_file': 'train.txt'}, 'train_dataloader.dataset: cannot be read'),
        (
            {'type': 'RepeatDataset', 'times': 2, 'dataset': {'type': 'CityscapesDataset'}},
            'dataset.dataset: folder',
        ),
        ({'type': 'ConcatDataset', 'datasets': [{'type': 'CityscapesDataset'}]}, 'dataset.datasets: folder'),
        ({'type': 'CityscapesDataset', 'data_rot': 'x'}, 'data_rot'),
    ],
)
def test_other_data_sets_too(tmp_path, dataset, expected):
    missing = {'data_root': str(tmp_path / 'absent'), 'data_prefix': {'img_path': 'images'}}
    for inner in (dataset.get('dataset', dataset), *dataset.get('datasets', [])):
        if 'dataset' not in inner and 'datasets' not in inner:
            inner.update(missing)
    with pytest.raises(ConfigError, match=expected):
        check_datasets(Config({'train_dataloader': {'dataset': dataset}}), 'train_dataloader')
