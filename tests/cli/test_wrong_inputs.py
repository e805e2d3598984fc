"""What the tools do with wrong and with unusual input: say one line that names key or file, or work.

Each case is tried with the real tool, in this process.
"""

import gc
import io
import json
import math
import multiprocessing
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from bdd_seg.runtime.upstream.checkpoints import load_checkpoint

TOOLS = ROOT / 'tools'
TRAIN, TEST, CACHE = (TOOLS / name for name in ('train.py', 'test.py', 'cache_teacher.py'))
SHORT = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2']
NO_VALIDATION = ['val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']


class Trial:
    """One run of a tool.

    Attributes:
        message: The line after ``error: `` that it ended with, None if it did its work.
        errors: What it wrote to stderr.
        losses: The losses that it logged.
    """

    def __init__(self, monkeypatch, folder: Path, tool: Path, *arguments) -> None:
        monkeypatch.setattr(sys, 'argv', [str(tool), *map(str, arguments)])
        monkeypatch.chdir(folder)
        given = set(folder.rglob('*.pth'))
        self.message, stderr = None, io.StringIO()
        try:
            with redirect_stderr(stderr):
                runpy.run_path(str(tool), run_name='__main__')
        except SystemExit as ended:
            self.message = ended.code
        self.errors = stderr.getvalue()
        if multiprocessing.active_children():  # torch waits 5 s for each whose loader is garbage by then
            for found in gc.get_objects():
                if isinstance(found, _MultiProcessingDataLoaderIter):
                    found._shutdown_workers()
        if isinstance(self.message, str):  # else it is the status of argparse, which has written the line
            assert self.message.startswith('error: ')
            self.message = self.message.removeprefix('error: ')
            assert '\n' not in self.message
        logs = sorted(folder.rglob('scalars.json'))
        records = [json.loads(line) for path in logs for line in path.open()]
        self.losses = [record['loss'] for record in records if 'loss' in record]
        for path in {*folder.rglob('*.pth')} - given:  # nothing is half-written
            load_checkpoint(path)


@pytest.fixture(autouse=True)
def _in_half_the_time(monkeypatch):
    """Runs leave out what takes half of a short one: laying out their configs, and looking for compilers."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)


def named(folder: Path) -> list[str]:
    """Names under which mmengine finds no logger or visualizer of an earlier run in this process."""
    return [f'experiment_name={folder.name}', f'visualizer.name={folder.name}']


@pytest.fixture
def attempt(monkeypatch, tmp_path):
    """Runs a tool with the work dir ``run``."""

    def start(tool: Path, *arguments, options=(), flags=()) -> Trial:
        options = [*map(str, options), *named(tmp_path)]
        work_dir = [] if '--work-dir' in flags else ['--work-dir', tmp_path / 'run']
        arguments = [*arguments, *work_dir, *flags, '--cfg-options', *options]
        return Trial(monkeypatch, tmp_path, tool, *arguments)

    return start


@pytest.fixture
def refused(attempt):
    """Runs a tool, and checks that it ends with the expected line, before it has written a checkpoint."""

    def start(expected: str, *arguments, bug=False, **more) -> str:
        trial = attempt(*arguments, **more)
        assert isinstance(trial.message, str), trial.losses
        assert re.search(expected, trial.message), trial.message
        assert ('Traceback' in trial.errors) == bug
        return trial.message

    return start


# Config, overrides, what the line says. An exclamation mark: a traceback comes before the line, since the
# error is no usual complaint about a setting, and may be a bug of whoever wrote the code.
OPTIONS = {
    'a list index beyond the list': (
        'distilled', ['model.distill_losses.3.tau_forward=1'],
        r'--cfg-options model.distill_losses.3.tau_forward=1 does not fit.*Index 3 exceeds',
    ),
    'a key of a list': (
        'distilled', ['model.distill_losses.tau=1'], 'model.distill_losses.tau=1 does not fit'
    ),
    'a key below a number': ('student', ['randomness.seed.x=1'], 'randomness.seed.x=1 does not fit'),
    'a misspelt first key': (
        'student', ['optim_wraper.optimizer.lr=1'],
        "the config has no 'optim_wraper', and nobody reads it. Did you mean optim_wrapper",
    ),
    'a key without the one above': (
        'student', ['max_iters=3'], "the config has no 'max_iters'.* Did you mean train_cfg.max_iters"
    ),
    'no model': ('student', ['model=None'], 'the config has no model'),
    'a model that is a number': ('student', ['model=3'], 'model must be a dict, got 3'),
    'no train_dataloader': ('student', ['train_dataloader=None'], 'the config has no train_dataloader'),
    'no train_cfg': ('student', ['train_cfg=None'], 'the config has no train_cfg'),
    'no optim_wrapper': ('student', ['optim_wrapper=None'], 'the config has no optim_wrapper'),
    'no val_cfg': ('student', ['val_cfg=None'], 'no val_cfg: val_dataloader, val_cfg, val_evaluator belong'),
    'a misspelt model': (
        'student', ['model.type=EncoderDecodr'],
        r"model \(EncoderDecodr\): no model is called 'EncoderDecodr'. Did you mean .*EncoderDecoder",
    ),
    'a misspelt backbone': ('distilled', ['model.backbone.type=ResNetV1z'], 'model.backbone.*ResNetV1c'),
    'a misspelt head': ('student', ['model.decode_head.type=PSPHed'], 'model.decode_head .*mean.* PSPHead'),
    'a misspelt loss of mmseg': (
        'student', ['model.decode_head.loss_decode.type=CrossEntropyLos'],
        r'model.decode_head.loss_decode \(CrossEntropyLos\).*Did you mean CrossEntropyLoss',
    ),
    'a misspelt distillation loss': (
        'distilled', ['model.distill_losses.0.type=BDLoss'], 'model.distill_losses.0 .*Did you mean BDDLoss'
    ),
    'a misspelt transform': (
        'student', ['train_dataloader.dataset.pipeline.3.type=RandomFlp'],
        r"train_dataloader.dataset.pipeline.3 \(RandomFlp\): no transform is called.*RandomFlip",
    ),
    'a misspelt transform of validation': (
        'student', ['val_dataloader.dataset.pipeline.2.type=PackSegInput'],
        'val_dataloader.dataset.pipeline.2 .*PackSegInputs',
    ),
    'a misspelt data set': (
        'student', ['train_dataloader.dataset.type=CityscapeDataset'],
        'train_dataloader.dataset .*CityscapesDataset',
    ),
    'a misspelt sampler': (
        'student', ['train_dataloader.sampler.type=InfinitSampler'], 'train_dataloader.sampler .*Infinite'
    ),
    'a misspelt hook': ('student', ['default_hooks.logger.type=LogerHook'], 'default_hooks.logger .*LoggerH'),
    'a misspelt optimizer': (
        'student', ['optim_wrapper.optimizer.type=SDG'],
        "optim_wrapper.optimizer: no optimizer is called 'SDG'",
    ),
    'a misspelt optim_wrapper': (
        'student', ['optim_wrapper.type=OptimWraper'], 'optim_wrapper .*OptimWrapper'
    ),
    'a misspelt schedule': ('student', ['param_scheduler.0.type=PolyL'], 'param_scheduler.0 .*PolyLR'),
    'a misspelt metric': ('student', ['val_evaluator.type=IoUMetrc'], 'val_evaluator .*IoUMetric'),
    'a misspelt teacher': (
        'distilled', ['model.teacher.type=FrozenTeecher'], 'model.teacher .*FrozenTeacher'
    ),
    'a hook without a type': (
        'student', ['default_hooks.loger.interval=1'], 'default_hooks.loger has no type'
    ),
    'a misspelt argument of the model': (
        'student', ['model.decode_hed.channels=8'], r"model \(EncoderDecoder\).*'decode_hed'.* decode_head",
    ),
    'a misspelt argument of a backbone': (
        'distilled', ['model.backbone.dept=18'], r"model.backbone \(ResNetV1c\).*'dept'.* Did you mean depth",
    ),
    'a misspelt argument of a loss': (
        'distilled', ['model.distill_losses.0.tau_foward=2'],
        r"model.distill_losses.0 \(BDDLoss\).*'tau_foward'.* Did you mean tau_forward",
    ),
    'a misspelt argument of the teacher': (
        'distilled', ['model.teacher.chekpoint=x'], "model.teacher .*'chekpoint'.* Did you mean checkpoint"
    ),
    'a misspelt argument of a transform': (
        'student', ['train_dataloader.dataset.pipeline.3.probb=0.1'], "dataset.pipeline.3 .*'probb'.* prob",
    ),
    'a misspelt argument of a data set': (
        'student', ['train_dataloader.dataset.dataroot=x'],
        "train_dataloader.dataset: .*'dataroot'.*data_root",
    ),
    'a misspelt argument of a data loader': (
        'student', ['train_dataloader.batchsize=2'],
        "train_dataloader: .*'batchsize'.* Did you mean batch_size",
    ),
    'a misspelt argument of the loop': (
        'student', ['train_cfg.max_iter=2'], "train_cfg .*'max_iter'.* max_iters"
    ),
    'a misspelt argument of the optimizer': (
        'student', ['optim_wrapper.optimizer.lrr=1'],
        r"optim_wrapper.optimizer \(SGD\).*'lrr'.* Did you mean lr",
    ),
    'a weight that is a word': (
        'distilled', ['model.distill_losses.0.loss_weight=abc'],
        "model.distill_losses.0.loss_weight must be a number, got 'abc'",
    ),
    'a temperature of 0': (
        'distilled', ['model.distill_losses.0.tau_forward=0'],
        r'model.distill_losses.0 \(BDDLoss\): tau_forward must be a positive number, got 0',
    ),
    'an unknown domain': (
        'distilled', ['model.distill_losses.0.domain=chanel'], 'domain must be one of.*channel'
    ),
    'a weight of mmseg that is a word': (
        'student', ['model.decode_head.loss_decode.loss_weight=abc'],
        '!model.decode_head.loss_decode: TypeError',
    ),
    'a learning rate that is a word': (
        'student', ['optim_wrapper.optimizer.lr=abc'], r'!optim_wrapper.optimizer \(SGD\): TypeError'
    ),
    'a negative learning rate': (
        'student', ['optim_wrapper.optimizer.lr=-1'],
        r'optim_wrapper.optimizer \(SGD\): Invalid learning rate: -1',
    ),
    'a depth that ResNet has not': (
        'student', ['model.backbone.depth=17'], '!model.backbone .*invalid depth 17'
    ),
    'a seed that is a word': ('student', ['randomness.seed=abc'], '!randomness: TypeError'),
    'a log level that there is not': ('student', ['log_level=LOUD'], "!log_level: KeyError: 'LOUD'"),
    'no iterations': (
        'student', ['train_cfg.max_iters=0'], 'train_cfg.max_iters must be a whole number from 1'
    ),
    'half an iteration': ('student', ['train_cfg.max_iters=2.5'], 'train_cfg.max_iters .* got 2.5'),
    'a validation every 0 iterations': (
        'student', ['train_cfg.val_interval=0'], 'train_cfg.val_interval must'
    ),
    'a batch of none': (
        'student', ['train_dataloader.batch_size=0'], 'train_dataloader: batch_size should be'
    ),
    'fewer than no workers': (
        'student', ['train_dataloader.num_workers=-1'], 'train_dataloader: num_workers'
    ),
    'a crop of no height': (
        'student', ['train_dataloader.dataset.pipeline.2.crop_size=(0,64)'],
        r'pipeline.2 \(RandomCrop\): assert crop_size\[0\] > 0 and crop_size\[1\] > 0 does not hold',
    ),
    'a head for another number of channels': (
        'student', ['model.decode_head.in_channels=7'],
        '!model.decode_head.psp_modules.0.1.conv: RuntimeError',
    ),
    'fewer classes than the data set has': (
        'student', ['model.decode_head.num_classes=7'],
        'model.decode_head.num_classes is 7, but the data set of train_dataloader has 19 classes',
    ),
    'an auxiliary head with fewer classes': (
        'student', ['model.auxiliary_head.num_classes=7'], 'model.auxiliary_head.num_classes is 7'
    ),
    'a teacher of other classes': (
        'distilled', ['model.decode_head.num_classes=7'], 'predicts 19 classes, the student 7'
    ),
    'no teacher': ('distilled', ['model.teacher=None'], 'the model has no teacher: give it teacher=dict'),
    'a teacher that is a file': (
        'distilled', ['model.teacher=a.pth'], "model.teacher must be a dict.*'a.pth'"
    ),
    "no file of the teacher's config": (
        'distilled', ['model.teacher.config=nowhere.py'], "teacher: config 'nowhere.py' does not exist"
    ),
    'a tap that is not there': (
        'distilled', ['model.distill_losses.0.teacher_tap=decode_head.conv_sge'],
        "tap 'decode_head.conv_sge' names no module .*Names nearby: decode_head.conv_seg",
    ),
    'a cache that is not there': (
        'distilled', ['model.teacher.type=CachedTeacher', 'model.teacher.cache=/nowhere'],
        "'/nowhere' is no cache of a teacher",
    ),
    'an unknown precision': (
        'distilled', ['model.teacher.precision=fp4'], "teacher.precision must .* got 'fp4'"
    ),
    "no file of the teacher's weights": (
        'distilled', ['model.teacher.checkpoint=nowhere.pth'], "teacher .*'nowhere.pth' does not exist"
    ),
    'no server of the weights': (
        'distilled', ['model.teacher.checkpoint=http://127.0.0.1:9/nowhere.pth'],
        "'http://127.0.0.1:9/nowhere.pth' cannot be downloaded",
    ),
    'pretrained weights that are not there': (
        'student', ['model.pretrained=nowhere.pth'], "checkpoint 'nowhere.pth' does not exist"
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', OPTIONS)
def test_overrides(refused, tiny_configs, tmp_path, case):
    config, options, expected = OPTIONS[case]
    bug = expected.startswith('!')
    refused(expected.removeprefix('!'), TRAIN, tiny_configs[config], options=[*SHORT, *options], bug=bug)
    assert not list(tmp_path.rglob('*.pth'))


# The text of config.py, and of base.py, and what the line says of them.
CONFIGS = {
    'a parenthesis not closed': (
        'model = dict(', '', r"config .*config\.py', line 1: SyntaxError: '\(' was never"
    ),
    'a base with a syntax error': ("_base_ = 'base.py'", 'x = 1\ny = = 1', r"base\.py', line 2: SyntaxError"),
    'a name that is not defined': (
        'x = 1\ny = z', '', r"config\.py', line 2: NameError: name 'z' is not defined"
    ),
    'a base that is not there': ("_base_ = 'absent.py'", '', r'inherits from a file that.*absent\.py'),
    'a base that is a circle': ("_base_ = 'base.py'", "_base_ = 'config.py'", 'inherits from itself'),
    'a key of two bases': (
        "_base_ = ['base.py', {student!r}]", 'model = 1', r"config\.py.*Duplicate key.*'model'"
    ),
    'another kind than in the base': (
        '_base_ = {student!r}\nlog_level = dict(x=1)', '', r'config\.py.*log_level=.* cannot inherit'
    ),
    'an empty file': ('', '', 'the config has no model'),
    'a misspelt first key': (
        '_base_ = {student!r}\noptim_wraper = dict(optimizer=dict(lr=1))\noptim_wrapper = None', '',
        "nobody reads the config's optim_wraper. Did you mean optim_wrapper",
    ),
    'a misspelt hook of its own': (
        "_base_ = {student!r}\ncustom_hooks = [dict(type='LosStateHook')]", '',
        r'custom_hooks.0 \(LosStateHook\): no hook is called.*LossStateHook',
    ),
    'a misspelt argument of a hook': (
        "_base_ = {student!r}\ncustom_hooks = [dict(type='EMAHook', momentun=0.1)]", '',
        "EMAHook: .*'momentun' of ExponentialMovingAverage. Did you mean momentum",
    ),
    'a loader without a data set': (
        '_base_ = {student!r}\ntrain_dataloader = dict(_delete_=True, batch_size=2)', '',
        'train_dataloader has no dataset',
    ),
    'losses that are no list': (
        "_base_ = {distilled!r}\nmodel = dict(distill_losses=dict(_delete_=True, type='BDDLoss'))", '',
        'model.distill_losses must be a list of dicts',
    ),
    'a teacher without weights': (
        '_base_ = {distilled!r}\nmodel = dict(teacher=dict(_delete_=True, config={teacher!r}))', '',
        r"model.teacher \(FrozenTeacher\) lacks 'checkpoint'",
    ),
    'a teacher with a misspelt backbone': (
        "_base_ = {distilled!r}\nmodel = dict(teacher=dict(config='base.py'))",
        "_base_ = {teacher!r}\nmodel = dict(backbone=dict(type='ResNetV1z'))",
        r'teacher \(base.py\): model.backbone \(ResNetV1z\).*ResNetV1c',
    ),
    'a teacher with a syntax error': (
        "_base_ = {distilled!r}\nmodel = dict(teacher=dict(config='base.py'))", '1 +',
        r"teacher: config 'base.py', line 1: SyntaxError",
    ),
    'a teacher of another depth': (
        "_base_ = {distilled!r}\nmodel = dict(teacher=dict(config='base.py'))",
        "_base_ = {teacher!r}\nmodel = dict(backbone=dict(depth=101))",
        r'does not fit the teacher \(base.py\): \d+ missing: backbone.layer3.6',
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', CONFIGS)
def test_config_files(refused, tiny_configs, tmp_path, case):
    text, base, expected = CONFIGS[case]
    places = {key: str(path) for key, path in tiny_configs.items()}
    for name, content in (('config.py', text), ('base.py', base)):
        for key, path in places.items():
            content = content.replace(f'{{{key}!r}}', repr(path))
        (tmp_path / name).write_text(content)
    bug = expected.startswith('!')
    options = SHORT if '_base_ = {' in text else ()
    refused(expected.removeprefix('!'), TRAIN, 'config.py', options=options, bug=bug)
    assert not list(tmp_path.rglob('*.pth'))


@pytest.fixture(scope='module')
def reference(tiny_configs, tmp_path_factory) -> list[float]:
    """The losses of the student on the data set as it is."""
    folder = tmp_path_factory.mktemp('reference')
    arguments = [tiny_configs['student'], '--work-dir', 'run', '--cfg-options', *SHORT, *NO_VALIDATION]
    with pytest.MonkeyPatch.context() as patch:
        trial = Trial(patch, folder, TRAIN, *arguments, *named(folder))
    assert (trial.message, len(trial.losses)) == (None, 2)
    return trial.losses


@pytest.fixture
def data(scenes, tmp_path) -> Path:
    """A data set that may be spoilt."""
    return Path(shutil.copytree(scenes, tmp_path / 'data'))


def images_of(data: Path, split: str = 'train') -> list[Path]:
    return sorted((data / 'leftImg8bit' / split).rglob('*_leftImg8bit.png'))


def labels_of(data: Path, split: str = 'train') -> list[Path]:
    return sorted((data / 'gtFine' / split).rglob('*_gtFine_labelTrainIds.png'))


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def write(path: Path, array: np.ndarray, **options) -> None:
    """As a file of the format that the name says, or of the given one."""
    Image.fromarray(array).save(path, **options)


def resize(size: tuple[int, int]) -> Callable[[Path], None]:
    return lambda path: write(path, cv2.resize(pixels(path), size, interpolation=cv2.INTER_NEAREST))


def fill(value: int) -> Callable[[Path], None]:
    return lambda path: write(path, np.full_like(pixels(path), value))


def crop(height: int, width: int) -> Callable[[Path], None]:
    return lambda path: write(path, pixels(path)[:height, :width])


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_palette(path: Path) -> None:
    image = Image.open(path)
    image.load()
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(path)
    assert Image.open(path).mode == 'P'


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_mode(mode: str, **options) -> Callable[[Path], None]:
    return lambda path: Image.open(path).convert(mode).save(path, **options)


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def one_wrong_label(path: Path) -> None:
    labels = pixels(path)
    labels[::8, ::8] = 19
    write(path, labels)


SAME, TRAINS = 'the same losses', 'finite losses'

# Which split, what happens to each image and to each label map of it, and what the line says, or that it
# trains: with the very losses of the data set as it was, or with finite ones.
FILES = {
    'labels beyond the classes': (
        'train', None, fill(200), "labelTrainIds.png' has labels 200; the classes are"
    ),
    'a label one beyond the classes': (
        'train', None, one_wrong_label, "labelTrainIds.png' has labels 19; the"
    ),
    'labels of validation beyond the classes': (
        'val', None, fill(200), "val/.*' has labels 200; the classes are"
    ),
    'smaller label maps': (
        'train', None, resize((48, 24)), r"TrainIds.png' has 24×48 .*8bit.png' 48×96 where they"
    ),
    'larger label maps': ('train', None, resize((192, 96)), r"TrainIds.png' has 96×192 .*8bit.png' 48×96"),
    'label maps a column less wide': ('train', None, resize((95, 48)), "TrainIds.png' has 48×95 .*' 48×96"),
    'smaller label maps of validation': ('val', None, resize((48, 24)), r"val/.*' has 24×48 .*' 48×96"),
    'label maps in colours': ('train', None, as_mode('RGB'), "labelTrainIds.png' has 3 channels, as colours"),
    'label maps of validation in colours': (
        'val', None, as_mode('RGB'), "val/.*' has 3 channels, as colours"
    ),
    'label maps with transparency': ('train', None, as_mode('LA'), "labelTrainIds.png' has 2 channels"),
    'label maps of 16 bits beyond 8': (
        'train', None, lambda path: write(path, pixels(path).astype(np.uint16) * 256),
        r"labelTrainIds.png' has values up to \d+, which mmseg cuts to 8 bits",
    ),
    'label maps of 16 bits within 8': (
        'train', None, lambda path: write(path, pixels(path).astype(np.uint16)), SAME
    ),
    'label maps with a palette': ('train', None, with_palette, SAME),
    'label maps of one bit': ('train', None, lambda path: write(path, pixels(path) > 5), TRAINS),
    'nothing but ignored pixels': ('train', None, fill(255), TRAINS),
    'images with transparency': ('train', as_mode('RGBA'), None, SAME),
    'images of 16 bits': (
        'train', lambda path: cv2.imwrite(str(path), cv2.imread(str(path)).astype(np.uint16) * 257), None,
        SAME,
    ),
    'grey images': ('train', as_mode('L'), None, TRAINS),
    'images in CMYK': ('train', as_mode('CMYK', format='JPEG'), None, TRAINS),
    'images of 3 by 3 pixels': ('train', crop(3, 3), crop(3, 3), TRAINS),
    'images of 1 pixel': (
        'train', crop(1, 1), crop(1, 1), "TrainIds.png' has a single row or column of pixels"
    ),
    'empty images': (
        'train', lambda path: path.write_bytes(b''), None, "8bit.png' cannot be read: it is empty"
    ),
    'halves of PNG images': ('train', halve, None, r"8bit.png' cannot be read: is it whole"),
    'halves of JPEG images': (
        'train', lambda path: (as_mode('RGB', format='JPEG')(path), halve(path)), None,
        r"8bit.png' cannot be read: is it whole",
    ),
    'images that are texts': (
        'train', lambda path: path.write_text('text'), None, "8bit.png' cannot be read"
    ),
    'images of validation that are texts': (
        'val', lambda path: path.write_text('text'), None, "image .*/val/.*8bit.png' cannot be read"
    ),
    'images that are folders': ('train', as_folder, None, r"no image ending in '_leftImg8bit.png' in"),
    'images that are links to themselves': ('train', as_loop, None, '8bit.png.: Too many levels of symbolic'),
    'no images': (
        'train', Path.unlink, None, "train_dataloader.dataset: no image ending in '_leftImg8bit.png'"
    ),
    'no label maps': ('train', None, Path.unlink, "8bit.png' has no label map .*Ids.png', and so 7 others"),
    'no label maps of validation': (
        'val', None, Path.unlink, "val_dataloader.dataset: .* has no label map .*/val"
    ),
    'empty label maps': (
        'train', None, lambda path: path.write_bytes(b''), "TrainIds.png' cannot be read: it is e"
    ),
    'halves of label maps': (
        'train', None, halve, "Ids.png' cannot be read: .*OSError: image file is truncated"
    ),
    'label maps that are texts': (
        'train', None, lambda path: path.write_text('text'), "Ids.png' cannot be read"
    ),
    'label maps that are folders': ('train', None, as_folder, "TrainIds.png' cannot be read: Is a directory"),
}  # fmt: skip


@pytest.mark.parametrize('case', FILES)
def test_data_sets(attempt, reference, tiny_configs, data, case):
    split, change_image, change_label, expected = FILES[case]
    for path in images_of(data, split) if change_image else ():
        change_image(path)
    for path in labels_of(data, split) if change_label else ():
        change_label(path)
    options = [f'{loader}.dataset.data_root={data}' for loader in ('train_dataloader', 'val_dataloader')]
    options += [*SHORT, *(NO_VALIDATION if split == 'train' else ())]
    check(attempt(TRAIN, tiny_configs['student'], options=options), expected, reference)


def check(trial: Trial, expected: str, reference: list[float]) -> None:
    """What happened is what was expected, and no traceback was needed to say it."""
    assert 'Traceback' not in trial.errors
    if expected not in (SAME, TRAINS):
        assert re.search(expected, trial.message), trial.message
    elif expected == SAME:
        assert (trial.message, trial.losses) == (None, reference)
    else:
        assert trial.message is None
        assert len(trial.losses) == 2
        assert trial.losses != reference
        assert all(map(math.isfinite, trial.losses))


class Command:
    """Pickles as a call of ``Path.touch``, as code in a file from elsewhere might."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def cut_short(path: Path, weights: dict) -> None:
    torch.save({'state_dict': weights}, path)
    halve(path)


# How the file is made of the weights that would be right, and what the line says.
CHECKPOINTS = {
    'a folder': (lambda path, _: path.mkdir(), r'\.pth. is a folder'),
    'an empty file': (lambda path, _: path.write_bytes(b''), r'\.pth. is no readable checkpoint'),
    'a half': (cut_short, r'\.pth. is no readable checkpoint'),
    'a text': (lambda path, _: path.write_text('weights'), r'\.pth. (is no readable|holds more than)'),
    'random bytes': (
        lambda path, _: path.write_bytes(np.random.default_rng(0).bytes(999)),
        r'\.pth. (is no readable|holds more)',
    ),
    'a command': (
        lambda path,
        weights: torch.save({'state_dict': weights, 'x': Command(path.with_suffix('.ran'))}, path),
        r'\.pth. holds more than weights and is refused',
    ),
    'safetensors': (
        lambda path, weights: save_file(weights, path), r'\.pth. (is no readable|holds more than)'
    ),
    'a list': (lambda path, weights: torch.save([*weights.values()], path), r'\.pth. holds a list'),
    'no weights': (lambda path, _: torch.save({'epoch': 3}, path), r'\.pth. holds no dict of named tensors'),
    'another network': (
        lambda path,
        weights: torch.save({'state_dict': {f'other.{key}': weights[key] for key in weights}}, path),
        r'\.pth. does not fit .*\d+ missing: backbone.stem.0.weight, .*\d+ unexpected: other.backbone',
    ),
    'other shapes': (
        lambda path, weights: torch.save({key: torch.stack([weights[key]] * 2) for key in weights}, path),
        r'\.pth. does not fit .*\d+ of another shape: .* instead of',
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    'case, place',
    [
        (case, place)
        for case in CHECKPOINTS
        for place in ('teacher', 'test', 'load_from', 'resume')
        if (case, place) != ('a folder', 'resume')  # no checkpoint: the training begins
    ],
)
def test_checkpoints(refused, tiny_configs, tmp_path, place, case):
    make, expected = CHECKPOINTS[case]
    path = tmp_path / 'run/iter_3.pth'
    path.parent.mkdir()
    make(path, load_checkpoint(tiny_configs['checkpoint'])['state_dict'])
    if place == 'test':
        refused(expected, TEST, tiny_configs['teacher'], path)
    elif place == 'teacher':
        refused(expected, TRAIN, tiny_configs['distilled'], options=[f'model.teacher.checkpoint={path}'])
    elif place == 'load_from':
        refused(expected, TRAIN, tiny_configs['teacher'], options=[*SHORT, f'load_from={path}'])
    else:
        (path.parent / 'last_checkpoint').write_text(str(path))
        refused(expected, TRAIN, tiny_configs['teacher'], flags=['--resume'], options=SHORT)
    assert [found.name for found in tmp_path.rglob('*.pth')] == ['iter_3.pth']
    assert not list(tmp_path.rglob('*.ran'))


def test_resuming_where_there_is_nothing_yet_begins(attempt, reference, tiny_configs):
    trial = attempt(TRAIN, tiny_configs['student'], flags=['--resume'], options=[*SHORT, *NO_VALIDATION])
    check(trial, SAME, reference)


LONG = 'x' * 300


def filled(texts: list[str], places: dict[str, Path]) -> list[str]:
    """The texts, with paths for the names of places."""
    for name, path in places.items():
        texts = [text.replace(name, str(path)) for text in texts]
    return texts


# Flags, overrides, and what the line says. FILE is a file, SCENES the data set.
PLACES = {
    'spaces and other scripts': (
        ['--work-dir', 'läuft gut 目'], ['train_dataloader.dataset.data_root=SCENES ß 目'], SAME
    ),
    'a line break': (['--work-dir', 'a\nb'], [], SAME),
    'a long path of short names': (['--work-dir', '/'.join(['y' * 90] * 9)], [], SAME),
    'a work dir with a long name': (
        ['--work-dir', LONG], [], '--work-dir .xxx.* cannot be made: File name too long'
    ),
    'a work dir with a long path': (
        ['--work-dir', '/'.join(['y' * 200] * 25)], [], '--work-dir .* cannot be made: File name too long'
    ),
    'a work dir that is a file': (['--work-dir', 'FILE'], [], '--work-dir .*file. is a file, not a folder'),
    'a work dir below a file': (
        ['--work-dir', 'FILE/run'], [], '--work-dir .*file/run. cannot be made: Not a'
    ),
    'a work dir where none can be': (
        ['--work-dir', '/proc/run'], [], '--work-dir ./proc/run. cannot be made'
    ),
    'a data set with a long name': (
        [], [f'train_dataloader.dataset.data_root=/{LONG}'], 'dataset: ./xx.*too long'
    ),
    'a data set that is a file': (
        [], ['train_dataloader.dataset.data_root=FILE'], 'train_dataloader.dataset: .*Not a'
    ),
    'a data set that is not there': (
        [], ['train_dataloader.dataset.data_root=/nowhere'],
        "train_dataloader.dataset: folder '/nowhere/leftImg8bit/train' does not exist; put .* --cfg-options",
    ),
    'a list of images that is not there': (
        [], ['train_dataloader.dataset.ann_file=absent.txt'],
        'train_dataloader.dataset: cannot be read .*absent.txt',
    ),
    'a crop larger than the images': (
        [],
        ['train_dataloader.dataset.pipeline.2.crop_size=(64,128)', 'model.data_preprocessor.size=(64,128)'],
        TRAINS,
    ),
    'one image to a batch': (
        [], ['train_dataloader.batch_size=1'],
        r'decode_head.psp_modules.0.1.bn: Expected more than 1 value .*Raise train_dataloader.batch_size',
    ),
    'one image to a batch, with nothing that pools to a pixel': (
        [], ['train_dataloader.batch_size=1', 'model.decode_head.pool_scales=[2,3]'], TRAINS
    ),
    'a last batch of one image': (
        [], ['train_dataloader.sampler.type=DefaultSampler', 'train_dataloader.batch_size=7'],
        'or set train_dataloader.drop_last=True',
    ),
    'a last batch that is dropped': (
        [],
        ['train_dataloader.sampler.type=DefaultSampler', 'train_dataloader.batch_size=7',
         'train_dataloader.drop_last=True'],
        TRAINS,
    ),
    'more workers than images': (
        [], ['train_dataloader.num_workers=9', 'train_dataloader.persistent_workers=True'], SAME
    ),
    'a launcher that did not launch it': (
        ['--launcher', 'pytorch'], [], '--launcher pytorch: RANK is not set. Start the tool by torchrun'
    ),
    'AMP with two optimizers': (
        ['--amp'], ['optim_wrapper.type=OptimWrapperDict'], "--amp needs optim_wrapper.type 'OptimWrapper'"
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', PLACES)
def test_places_and_flags(attempt, reference, tiny_configs, scenes, tmp_path, monkeypatch, case):
    flags, options, expected = PLACES[case]
    (tmp_path / 'file').write_text('text')
    (tmp_path / 'data ß 目').symlink_to(scenes)
    monkeypatch.delenv('RANK', raising=False)
    places = {'FILE': tmp_path / 'file', 'SCENES': tmp_path / 'data'}
    flags, options = filled(flags, places), filled(options, places)
    options = [*SHORT, *NO_VALIDATION, *options]
    check(attempt(TRAIN, tiny_configs['student'], flags=flags, options=options), expected, reference)


# What is given as the config, and what the line says.
NO_CONFIGS = {
    'nothing': ('nowhere.py', "config 'nowhere.py' does not exist"),
    'nearly its name': ('studnt.py', "config .*studnt.py' does not exist. Did you mean student.py"),
    'nearly a name of mmseg': (
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1025.py',
        'Did you mean .*cityscapes-512x1024.py',
    ),
    'a long name': (f'{LONG}.py', "config 'xxx.* does not exist"),
    'a folder': ('.', "config '.*' is a folder. Give the file in it"),
    'a text': ('notes.txt', "config '.*notes.txt' is no config file, which would end in .py$"),
    'a checkpoint': ('teacher.pth', "teacher.pth' is no config file, .* The order is CONFIG CHECKPOINT"),
    'bytes': ('bytes.py', "bytes.py': UnicodeDecodeError"),
    'a list in YAML': ('list.yaml', 'list.yaml.: AttributeError'),
    'half a JSON': ('half.json', 'half.json., line 1: JSONDecodeError'),
}


@pytest.mark.parametrize('tool', [TRAIN, TEST, CACHE], ids=lambda path: path.name)
@pytest.mark.parametrize('case', NO_CONFIGS)
def test_what_is_no_config(refused, tiny_configs, tmp_path, tool, case):
    name, expected = NO_CONFIGS[case]
    for key in ('student', 'checkpoint'):
        (tmp_path / tiny_configs[key].name).symlink_to(tiny_configs[key])
    (tmp_path / 'notes.txt').write_text('text')
    (tmp_path / 'bytes.py').write_bytes(b'\xff\xfe')
    (tmp_path / 'list.yaml').write_text('- 1\n- 2')
    (tmp_path / 'half.json').write_text('{"a": ')
    refused(expected, tool, name, *([tiny_configs['student']] if tool == TEST else []))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('tool', [TRAIN, TEST, CACHE], ids=lambda path: path.name)
@pytest.mark.parametrize(
    'option, expected',
    [
        ('optim_wrapper', "expected key=value, got 'optim_wrapper'"),
        ('=3', "expected key=value, got '=3'"),
        ('img_ratios=[1,2', 'Imbalanced brackets'),
    ],
)
def test_overrides_that_cannot_be_parsed(attempt, tiny_configs, tool, option, expected):
    trial = attempt(tool, tiny_configs['student'], *(['a.pth'] if tool == TEST else []), options=[option])
    assert trial.message == 2  # argparse's status
    assert re.search(f'error: argument --cfg-options: .*{expected}', trial.errors.splitlines()[-1])
    assert 'Traceback' not in trial.errors


# Flags of tools/test.py, overrides, and what the line says.
TESTS = {
    'a file to save in': (['--out', 'FILE'], [], '--out .*file. is a file, not a folder'),
    'a file to paint in': (['--show-dir', 'FILE'], [], '--show-dir .*file. is a file, not a folder'),
    'no display': (['--show'], [], '--show needs a display, and there is none. --show-dir FOLDER needs none'),
    'no hook that paints': (
        ['--show'], ['default_hooks.visualization=None'], 'need default_hooks.visualization'
    ),
    'no pipeline for --tta': (['--tta'], ['tta_pipeline=None'], '--tta needs a tta_pipeline in the config'),
    'no model for --tta': (['--tta'], ['tta_model=None'], '--tta needs a tta_model in the config'),
    'no data': ([], ['test_dataloader=None'], 'the config has no test_dataloader, needed to test'),
    'data that is not there': (
        [], ['test_dataloader.dataset.data_root=/nowhere'], 'test_dataloader.dataset: folder'
    ),
    'labels beyond the classes': (
        [], ['test_dataloader.dataset.data_root=SPOILT'], "/val/.*Ids.png' has labels 19"
    ),
    'labels beyond the classes, at several scales': (
        ['--tta'], ['tta_pipeline.0.backend_args=None', 'test_dataloader.dataset.data_root=SPOILT'],
        "/val/.*Ids.png' has labels 19",
    ),
    'a misspelt metric': ([], ['test_evaluator.type=IoUMetrc'], r'test_evaluator \(IoUMetrc\).*IoUMetric'),
    'a misspelt name of a metric': (
        [], ['test_evaluator.iou_metrics=[mIuO]'], "!KeyError.*mIuO.* is not supported"
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', TESTS)
def test_testing(refused, tiny_configs, data, tmp_path, monkeypatch, case):
    flags, options, expected = TESTS[case]
    monkeypatch.setattr('matplotlib.pyplot.get_backend', lambda: 'agg')
    (tmp_path / 'file').write_text('text')
    for path in labels_of(data, 'val') if 'SPOILT' in str(options) else ():
        one_wrong_label(path)
    places = {'FILE': tmp_path / 'file', 'SPOILT': data}
    flags, options = filled(flags, places), filled(options, places)
    bug = expected.startswith('!')
    arguments = [TEST, tiny_configs['teacher'], tiny_configs['checkpoint']]
    refused(expected.removeprefix('!'), *arguments, flags=flags, options=options, bug=bug)


@pytest.mark.parametrize(
    'spoil, expected',
    [
        (lambda data: images_of(data)[3].write_text('text'), "8bit.png' cannot be read: is it whole, and an"),
        (lambda data: one_wrong_label(labels_of(data)[3]), "labelTrainIds.png' has labels 19"),
        (lambda data: crop(40, 40)(labels_of(data)[3]), "labelTrainIds.png' has 40×40 pixels"),
    ],
    ids=['text', 'label', 'size'],
)  # fmt: skip
def test_what_worker_processes_find(refused, tiny_configs, data, spoil, expected):
    spoil(data)
    options = [f'train_dataloader.dataset.data_root={data}', 'train_dataloader.num_workers=2', *SHORT]
    options += ['train_dataloader.batch_size=8', 'train_dataloader.persistent_workers=True']
    refused(expected, TRAIN, tiny_configs['student'], options=options)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('domain', ['channel', 'pixel'])
def test_distilling_where_all_pixels_are_ignored(attempt, reference, tiny_configs, data, domain, masked):
    for path in labels_of(data):
        fill(255)(path)
    options = [f'model.distill_losses.0.{key}' for key in (f'domain={domain}', f'mask_ignored={masked}')]
    options += [*SHORT, *NO_VALIDATION, f'train_dataloader.dataset.data_root={data}']
    check(attempt(TRAIN, tiny_configs['distilled'], options=options), TRAINS, reference)


@pytest.mark.parametrize('left', [1, 7])
def test_a_data_set_of_fewer_images(attempt, reference, tiny_configs, data, left):
    """One image, and one label map without an image, which nobody misses."""
    for path in images_of(data)[left:]:
        path.unlink()
    options = [*SHORT, *NO_VALIDATION, f'train_dataloader.dataset.data_root={data}']
    check(attempt(TRAIN, tiny_configs['student'], options=options), TRAINS, reference)


# Arguments of tools/cache_teacher.py, overrides, and what the line says.
CACHES = {
    'no teacher': ('student', [], [], 'has no model.teacher: give the config of a distillation'),
    'no model': ('distilled', [], ['model=None'], 'has no model$'),
    'no data': ('distilled', [], ['train_dataloader=None'], 'has no train_dataloader$'),
    'no pipeline for whole images': (
        'distilled', [], ['val_dataloader=None'], 'has no val_dataloader, whose'
    ),
    'a file to write to': ('distilled', ['--out', 'FILE'], [], 'file. cannot be written: .*File exists'),
    'fewer than no workers': ('distilled', ['--workers', '-1'], [], '--workers must be at least 0, not -1'),
    'a tap that is not there': ('distilled', ['--taps', 'nowhere'], [], "tap 'nowhere' names no module"),
    'a misspelt loss': (
        'distilled', [], ['model.distill_losses.0.type=BDLoss'], 'model.distill_losses.0 .*BDDLoss'
    ),
    'an image that is a text': (
        'distilled', [], ['train_dataloader.dataset.data_root=SPOILT'],
        "8bit.png' cannot be read: is it whole",
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', CACHES)
def test_caching(refused, tiny_configs, data, tmp_path, case):
    config, flags, options, expected = CACHES[case]
    images_of(data)[3].write_text('text')
    (tmp_path / 'file').write_text('text')
    places = {'FILE': tmp_path / 'file', 'SPOILT': data}
    flags, options = filled(flags, places), filled(options, places)
    refused(expected, CACHE, tiny_configs[config], flags=flags, options=options)
    assert not list(tmp_path.rglob('*.part'))


# Arguments of the other tools, and what the line says.
OTHERS = {
    'no study': ('study.py', ['nowhere.yaml'], "study 'nowhere.yaml' cannot be read: .*No such file"),
    'a study that is a folder': ('study.py', ['.'], "study '.' cannot be read: .*Is a directory"),
    'a study of bytes': ('study.py', ['bytes'], "study 'bytes' cannot be read: 'utf-8' codec can't decode"),
    'a study that is a text': ('study.py', ['file'], "study 'file': Input should be a valid dictionary"),
    'scenes of no height': ('make_street_scenes.py', ['--size', 0, 64], 'height must be from 32 to 8192'),
    'fewer than no scenes': ('make_street_scenes.py', ['--train', -1], 'num_train must be at least 0'),
    'scenes in a file': ('make_street_scenes.py', ['--out', 'file'], "File exists: 'file'"),
    'scenes where none can be': ('make_street_scenes.py', ['--out', '/proc/scenes'], "'/proc/scenes'"),
}  # fmt: skip


@pytest.mark.parametrize('case', OTHERS)
def test_other_tools(monkeypatch, tmp_path, case):
    tool, arguments, expected = OTHERS[case]
    (tmp_path / 'file').write_text('text')
    (tmp_path / 'bytes').write_bytes(bytes([255, 254, 0, 1]))
    trial = Trial(monkeypatch, tmp_path, TOOLS / tool, *arguments)
    assert re.search(expected, trial.message), trial.message
    assert 'Traceback' not in trial.errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bytes', 'file']
