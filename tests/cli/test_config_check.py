import argparse
import os
import re
from pathlib import Path

import mmseg
import pytest
from helpers import CONFIGS
from mmengine.config import Config

from bdd_seg.cli.arguments import add_config_arguments, config_from, make_folder
from bdd_seg.cli.config_check import check_config, check_datasets
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config


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
    ],
)
def test_other_data_sets_too(tmp_path, dataset, expected):
    missing = {'data_root': str(tmp_path / 'absent'), 'data_prefix': {'img_path': 'images'}}
    for inner in (dataset.get('dataset', dataset), *dataset.get('datasets', [])):
        if 'dataset' not in inner and 'datasets' not in inner:
            inner.update(missing)
    with pytest.raises(ConfigError, match=expected):
        check_datasets(Config({'train_dataloader': {'dataset': dataset}}), 'train_dataloader')


def test_all_label_maps_are_looked_for(tmp_path, scenes):
    prefix = {'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'}
    (tmp_path / 'leftImg8bit').symlink_to(scenes / 'leftImg8bit')
    labels = sorted((scenes / 'gtFine/train').rglob('*_labelTrainIds.png'))
    for path in labels[:-2]:
        link = tmp_path / path.relative_to(scenes)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    with pytest.raises(ConfigError, match=f'has no label map .*{labels[-2].name}., and so 1 others'):
        check_datasets(loader(data_root=str(tmp_path), data_prefix=prefix), 'train_dataloader')


@pytest.mark.parametrize('what', ['a folder', 'a loop of folders'])
def test_folders_that_cannot_be_read(tmp_path, monkeypatch, what):
    prefix = {'img_path': 'images', 'seg_map_path': 'labels'}
    (tmp_path / 'images').mkdir()
    if what == 'a folder':  # of which nothing holds who runs the tests as root

        def scandir(path):
            raise PermissionError(13, 'Permission denied', str(path))

        monkeypatch.setattr(os, 'scandir', scandir)
        expected = "train_dataloader.dataset: '.*images': Permission denied; put the data set there"
    else:
        (tmp_path / 'images/loop').symlink_to(tmp_path / 'images')
        expected = "'.*images/loop/loop/.*': Too many levels of symbolic links"
    with pytest.raises(ConfigError, match=expected):
        check_datasets(loader(data_root=str(tmp_path), data_prefix=prefix), 'train_dataloader')


def test_of_data_elsewhere_one_label_map_is_looked_for(scenes, monkeypatch):
    asked = []
    monkeypatch.setattr(
        'bdd_seg.cli.config_check.exists', lambda path, backend_args: asked.append(path) or True
    )
    prefix = {'img_path': 'leftImg8bit/train', 'seg_map_path': 'gtFine/train'}
    settings = {'data_root': str(scenes), 'data_prefix': prefix, 'backend_args': {'backend': 'local'}}
    check_datasets(loader(**settings), 'train_dataloader')
    assert len(asked) == 1


@pytest.fixture
def config(tiny_configs):
    return load_config(tiny_configs['distilled'])


@pytest.mark.parametrize('kind', ['teacher', 'student', 'distilled'])
def test_configs_that_are_right(tiny_configs, kind):
    for mode in ('train', 'test'):
        check_config(load_config(tiny_configs[kind]), mode)


@pytest.mark.parametrize('name', sorted(CONFIGS.glob('[!_]*/*.py')), ids=lambda path: path.stem)
def test_our_own_are_right(name):
    for mode in ('train', 'test'):
        check_config(load_config(name), mode)


# What some of mmseg's own configs need, and what need not be installed.
OPTIONAL = (
    "no package 'mmdet' is installed|custom_imports names 'mm(det|pretrain).*not found|albumentations is not"
)


def test_mmsegs_own_are_right():
    """Nothing is found in them but packages that are absent: of each folder, the first is looked at."""
    folder = Path(mmseg.__file__).parent / '.mim/configs'
    firsts = {path.parent: path for path in sorted(folder.glob('[!_]*/*.py'), reverse=True)}
    assert len(firsts) > 50
    found = {}
    for path in firsts.values():
        try:
            cfg = load_config(path)
            for mode in ('train', 'test'):
                check_config(cfg, mode)
        except ConfigError as error:
            found[path.name] = str(error)
    assert {name: text for name, text in found.items() if not re.search(OPTIONAL, text)} == {}
    assert len(found) < 6


def test_a_key_that_resembles_another_causes_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr('bdd_seg.cli.config_check.print_log', lambda text, *_: said.append(text))
    folder = Path(mmseg.__file__).parent / '.mim/configs'
    mistaken = load_config(folder / 'bisenetv2/bisenetv2_fcn_4xb4-ohem-160k_cityscapes-1024x1024.py')
    check_config(mistaken, 'train')
    assert said == ["the config's key models is not used. Did you mean model?"]


@pytest.mark.parametrize(
    'changes, mode, expected',
    [
        (
            {'param_schedulers': [], 'param_scheduler': None},
            'train',
            r'param_schedulers is not used. Did you mean param_scheduler\?.*-options param_schedulers=None',
        ),
        ({'param_schedulers': []}, 'train', None),
        ({'train_dataloader_a': {}, 'val_evaluator2': {}, 'env_cfgs': {}}, 'train', None),
        ({'param_schedulers': 3}, 'train', None),  # no settings, so a name of its own
        ({'test_cfg': None}, 'train', 'no test_cfg: test_dataloader, test_cfg, test_evaluator belong'),
        ({'val_dataloader': None, 'val_cfg': None}, 'test', 'no val_dataloader and no val_cfg: val'),
        ({'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None}, 'train', None),
        ({'train_dataloader': None, 'train_cfg': None, 'optim_wrapper': None}, 'test', None),
        ({'train_dataloader': [1]}, 'train', r'train_dataloader must be a dict, got \[1\]'),
        ({'test_dataloader': {'dataset': 'x'}}, 'train', "test_dataloader.dataset must be a dict, got 'x'"),
        ({'optim_wrapper': {'optimizer': 'SGD'}}, 'train', "optimizer must be a dict, got 'SGD'"),
        ({'optim_wrapper': {'optimizer': {'type': 'SDG'}}}, 'train', "no optimizer is called 'SDG'.*SGD"),
        ({'optim_wrapper': {'type': 'OptimWrapperDict', 'a': {'optimizer': {}}}}, 'train', None),
        ({'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 0}}, 'train', 'cfg.max_epochs must'),
        ({'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 2}}, 'train', None),
        ({'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 8e4}}, 'train', None),
        ({'train_cfg': {'by_epoch': False, 'max_iters': 9, 'val_interval': float('inf')}}, 'train', None),
        ({'train_cfg': {'max_iters': 9}}, 'train', 'train_cfg has no type'),
        ({'train_cfg': {'max_iters': float('inf')}}, 'train', 'train_cfg.max_iters must .* got inf'),
        ({'train_cfg': {'max_iters': float('nan')}}, 'train', 'train_cfg.max_iters must .* got nan'),
    ],
)
def test_configs_that_are_not(config, changes, mode, expected):
    for key, value in changes.items():
        config[key] = value
    if expected is None:
        check_config(config, mode)
    else:
        with pytest.raises(ConfigError, match=expected):
            check_config(config, mode)


def parse(*arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    return parser.parse_args([*map(str, arguments)])


@pytest.mark.parametrize(
    'text, value',
    [
        ('/data/city scapes', '/data/city scapes'),
        ("'quoted'", 'quoted'),
        ('3', 3),
        ('1e-3', 1e-3),
        ('None', None),
        ('True', True),
        ('a=b', 'a=b'),
        ('[a, b]', ['a', 'b']),
        ('1,2', [1, 2]),
        ('[(1,2),(3,4)]', [(1, 2), (3, 4)]),
        ('', ''),
    ],
)
def test_values_of_overrides(tiny_configs, text, value):
    args = parse(tiny_configs['student'], '--cfg-options', f'img_ratios={text}')
    assert config_from(args).img_ratios == value


def test_overrides_may_be_given_twice_and_add_what_the_runner_reads(tiny_configs):
    options = ['--cfg-options', 'find_unused_parameters=True', '--cfg-options', 'randomness.seed=3']
    cfg = config_from(parse(tiny_configs['student'], *options))
    assert (cfg.find_unused_parameters, cfg.randomness.seed) == (True, 3)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    make_folder(tmp_path / 'a/b', '--out')
    make_folder(tmp_path / 'a/b', '--out')
    assert (tmp_path / 'a/b').is_dir()
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK)
    with pytest.raises(ConfigError, match='--out .*a/b. cannot be written to'):
        make_folder(tmp_path / 'a/b', '--out')
