import argparse
import os
import re
from pathlib import Path

import mmseg
import pytest
from helpers import CONFIGS
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop
from mmseg.registry import DATA_SAMPLERS, LOOPS
from PIL import Image

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


def images(folder, *names) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new('L', (2, 2)).save(folder / name)


def folders(root, **dataset) -> Config:
    prefix = {'img_path': 'images', 'seg_map_path': 'labels'}
    settings = {'data_root': str(root), 'data_prefix': prefix, **dataset}
    return Config({'test_dataloader': {'dataset': {'type': 'BaseSegDataset', **settings}}})


@pytest.mark.parametrize(
    'steps, needed',
    [
        ([], False),
        (['LoadImageFromFile', 'PackSegInputs'], False),
        (['LoadImageFromFile', 'LoadAnnotations'], True),
        (
            [{'type': 'TestTimeAug', 'transforms': [[{'type': 'Resize'}], [{'type': 'LoadAnnotations'}]]}],
            True,
        ),
        ([{'type': 'CheckedLoading', 'transform': {'type': 'mmseg.LoadAnnotations'}}], True),
    ],
    ids=str,
)
def test_label_maps_are_needed_where_a_pipeline_loads_them(tmp_path, steps, needed):
    images(tmp_path / 'images', 'a.jpg')
    pipeline = [{'type': step} if isinstance(step, str) else step for step in steps]
    cfg = folders(tmp_path, pipeline=pipeline)
    if needed:
        with pytest.raises(ConfigError, match='a.jpg. has no label map'):
            check_datasets(cfg, 'test_dataloader')
        images(tmp_path / 'labels', 'a.png')
    check_datasets(cfg, 'test_dataloader')


def test_a_pipeline_around_may_load_the_label_maps(tmp_path):
    images(tmp_path / 'images', 'a.jpg')
    cfg = folders(tmp_path, pipeline=[{'type': 'LoadImageFromFile'}])
    cfg.test_dataloader.dataset = {
        'type': 'MultiImageMixDataset',
        'dataset': cfg.test_dataloader.dataset,
        'pipeline': [{'type': 'LoadAnnotations'}],
    }
    with pytest.raises(ConfigError, match='a.jpg. has no label map'):
        check_datasets(cfg, 'test_dataloader')


def test_images_of_other_suffixes_are_told(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('bdd_seg.cli.config_check.print_log', lambda text, *_: said.append(text))
    images(tmp_path / 'images', 'a.jpg', 'b.jpg', 'c.png', 'd.JPG')
    images(tmp_path / 'images/deeper', 'e.png')
    (tmp_path / 'images/notes.txt').write_text('')
    check_datasets(folders(tmp_path, pipeline=[]), 'test_dataloader')
    expected = (
        "^test_dataloader.dataset: takes the 2 images ending in '.jpg' and leaves out others in "
        "'.*/images': 1 .JPG, 2 .png. "
    )
    assert len(said) == 1 and re.match(expected, said[0])
    check_datasets(folders(tmp_path, pipeline=[], img_suffix='.png'), 'test_dataloader')
    assert "takes the 2 images ending in '.png'" in said[1] and ': 1 .JPG, 2 .jpg. ' in said[1]


def test_label_maps_beside_the_images_are_no_other_images(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('bdd_seg.cli.config_check.print_log', lambda text, *_: said.append(text))
    images(tmp_path / 'all', 'a_sat.jpg', 'a_mask.png', 'b_sat.jpg', 'b_mask.png')
    suffixes = {'img_suffix': '_sat.jpg', 'seg_map_suffix': '_mask.png'}
    both = folders(tmp_path, data_prefix={'img_path': 'all', 'seg_map_path': 'all'}, **suffixes)
    check_datasets(both, 'test_dataloader')
    listed = tmp_path / 'list.txt'  # of all that are wanted
    listed.write_text('a_sat\n')
    images(tmp_path / 'all', 'c.png')
    check_datasets(folders(tmp_path, data_prefix={'img_path': 'all'}, ann_file='list.txt'), 'test_dataloader')
    assert said == []


@pytest.fixture
def config(tiny_configs):
    return load_config(tiny_configs['distilled'])


@pytest.mark.parametrize('kind', ['teacher', 'student', 'distilled'])
def test_configs_that_are_right(tiny_configs, kind):
    for mode in ('train', 'test'):
        check_config(load_config(tiny_configs[kind]), mode)


# Of each method the first, of BDD and the plain networks all: the others have the same pairs and losses.
OUR_OWN = {min(folder.glob('*.py')) for folder in CONFIGS.glob('[!_]*')} | {*CONFIGS.glob('[bpt]*/*.py')}


@pytest.mark.parametrize('name', sorted(OUR_OWN), ids=lambda path: path.stem)
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


EPOCHS = {'type': 'EpochBasedTrainLoop', 'max_epochs': 2}


@LOOPS.register_module()
class OwnLoop(EpochBasedTrainLoop):
    """A loop of a user's own."""


@DATA_SAMPLERS.register_module()
class OwnSampler(InfiniteSampler):
    """A sampler of a user's own."""


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
        ({'train_cfg': EPOCHS, 'train_dataloader.sampler.type': 'DefaultSampler'}, 'train', None),
        ({'train_cfg': EPOCHS}, 'train', r'^train_dataloader.sampler \(InfiniteSampler\) never .*Default'),
        ({'train_cfg': {'by_epoch': True, 'max_epochs': 2}}, 'train', r'sampler \(InfiniteSampler\) never'),
        ({'train_cfg': {**EPOCHS, 'type': 'OwnLoop'}}, 'train', r'sampler .* train_cfg \(OwnLoop\)'),
        (
            {'train_cfg': EPOCHS, 'train_dataloader.sampler.type': 'OwnSampler'},
            'train',
            r'sampler \(OwnSampler\) never',
        ),
        ({'train_cfg': EPOCHS}, 'test', None),
        ({'model.data_preprocessor.seg_pad_val': 99}, 'train', 'seg_pad_val is 99, .*ignore_index is 255'),
        ({'model.data_preprocessor.seg_pad_val': 99}, 'test', None),
        ({'model.decode_head.num_classes': 1}, 'train', 'model.decode_head has one output channel'),
        ({'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 8e4}}, 'train', None),
        ({'train_cfg': {'by_epoch': False, 'max_iters': 9, 'val_interval': float('inf')}}, 'train', None),
        ({'train_cfg': {'max_iters': 9}}, 'train', 'train_cfg has no type'),
        ({'train_cfg': {'max_iters': float('inf')}}, 'train', 'train_cfg.max_iters must .* got inf'),
        ({'train_cfg': {'max_iters': float('nan')}}, 'train', 'train_cfg.max_iters must .* got nan'),
    ],
)
def test_configs_that_are_not(config, changes, mode, expected):
    for key, value in changes.items():
        if '.' in key:
            config.merge_from_dict({key: value})
        else:
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
