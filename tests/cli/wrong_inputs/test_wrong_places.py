"""Folders, flags and other commands: one line that names the flag, or a run that works."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from spoil import images_of, labels_of, one_wrong_label
from trial import (
    CACHE,
    LONG,
    NO_VALIDATION,
    SAME,
    SHORT,
    TEST,
    TOOLS,
    TRAIN,
    TRAINS,
    Case,
    Trial,
    by_name,
    check,
)

# FILE is a file, SCENES the data set.
PLACES = [
    Case(
        'spaces and other scripts',
        SAME,
        options=['train_dataloader.dataset.data_root=SCENES ß 目'],
        flags=['--work-dir', 'läuft gut 目'],
    ),
    Case('a line break', SAME, flags=['--work-dir', 'a\nb']),
    Case('a long path of short names', SAME, flags=['--work-dir', '/'.join(['y' * 90] * 9)]),
    Case(
        'a work dir with a long name',
        '--work-dir .xxx.* cannot be made: File name too long',
        flags=['--work-dir', LONG],
    ),
    Case(
        'a work dir with a long path',
        '--work-dir .* cannot be made: File name too long',
        flags=['--work-dir', '/'.join(['y' * 200] * 25)],
    ),
    Case(
        'a work dir that is a file',
        '--work-dir .*file. is a file, not a folder',
        flags=['--work-dir', 'FILE'],
    ),
    Case(
        'a work dir below a file',
        '--work-dir .*file/run. cannot be made: Not a',
        flags=['--work-dir', 'FILE/run'],
    ),
    Case(
        'a work dir where none can be',
        '--work-dir ./proc/run. cannot be made',
        flags=['--work-dir', '/proc/run'],
    ),
    Case(
        'a data set with a long name',
        'dataset: ./xx.*too long',
        options=[f'train_dataloader.dataset.data_root=/{LONG}'],
    ),
    Case(
        'a data set that is a file',
        'train_dataloader.dataset: .*Not a',
        options=['train_dataloader.dataset.data_root=FILE'],
    ),
    Case(
        'a data set that is not there',
        "train_dataloader.dataset: folder '/nowhere/leftImg8bit/train' does not exist; put .* --cfg-options",
        options=['train_dataloader.dataset.data_root=/nowhere'],
    ),
    Case(
        'a list of images that is not there',
        'train_dataloader.dataset: cannot be read .*absent.txt',
        options=['train_dataloader.dataset.ann_file=absent.txt'],
    ),
    Case(
        'a crop larger than the images',
        TRAINS,
        options=[
            'train_dataloader.dataset.pipeline.2.crop_size=(64,128)',
            'model.data_preprocessor.size=(64,128)',
        ],
    ),
    Case(
        'one image to a batch',
        r'decode_head.psp_modules.0.1.bn: Expected more than 1 value .*Raise train_dataloader.batch_size',
        options=['train_dataloader.batch_size=1'],
    ),
    Case(
        'one image to a batch, with nothing that pools to a pixel',
        TRAINS,
        options=['train_dataloader.batch_size=1', 'model.decode_head.pool_scales=[2,3]'],
    ),
    Case(
        'a last batch of one image',
        'or set train_dataloader.drop_last=True',
        options=['train_dataloader.sampler.type=DefaultSampler', 'train_dataloader.batch_size=7'],
    ),
    Case(
        'a last batch that is dropped',
        TRAINS,
        options=[
            'train_dataloader.sampler.type=DefaultSampler',
            'train_dataloader.batch_size=7',
            'train_dataloader.drop_last=True',
        ],
    ),
    Case(
        'more workers than images',
        SAME,
        options=['train_dataloader.num_workers=9', 'train_dataloader.persistent_workers=True'],
    ),
    Case(
        'a launcher that did not launch it',
        '--launcher pytorch: RANK is not set. Start the tool by torchrun',
        flags=['--launcher', 'pytorch'],
    ),
    Case(
        'AMP with two optimizers',
        "--amp needs optim_wrapper.type 'OptimWrapper'",
        options=['optim_wrapper.type=OptimWrapperDict'],
        flags=['--amp'],
    ),
]


@pytest.mark.parametrize('case', PLACES, ids=by_name)
def test_places_and_flags(attempt, reference, tiny_configs, scenes, tmp_path, monkeypatch, case):
    (tmp_path / 'file').write_text('text')
    (tmp_path / 'data ß 目').symlink_to(scenes)
    monkeypatch.delenv('RANK', raising=False)
    flags, options = case.filled({'FILE': tmp_path / 'file', 'SCENES': tmp_path / 'data'})
    options = [*SHORT, *NO_VALIDATION, *options]
    check(attempt(TRAIN, tiny_configs['student'], flags=flags, options=options), case.message, reference)


# SPOILT is a data set with a wrong label.
TESTS = [
    Case('a file to save in', '--out .*file. is a file, not a folder', flags=['--out', 'FILE']),
    Case('a file to paint in', '--show-dir .*file. is a file, not a folder', flags=['--show-dir', 'FILE']),
    Case(
        'no display',
        '--show needs a display, and there is none. --show-dir FOLDER needs none',
        flags=['--show'],
    ),
    Case(
        'no hook that paints',
        'need default_hooks.visualization',
        options=['default_hooks.visualization=None'],
        flags=['--show'],
    ),
    Case(
        'no pipeline for --tta',
        '--tta needs a tta_pipeline in the config',
        options=['tta_pipeline=None'],
        flags=['--tta'],
    ),
    Case(
        'no model for --tta',
        '--tta needs a tta_model in the config',
        options=['tta_model=None'],
        flags=['--tta'],
    ),
    Case('no data', 'the config has no test_dataloader, needed to test', options=['test_dataloader=None']),
    Case(
        'data that is not there',
        'test_dataloader.dataset: folder',
        options=['test_dataloader.dataset.data_root=/nowhere'],
    ),
    Case(
        'labels beyond the classes',
        "/val/.*Ids.png' has labels 19",
        options=['test_dataloader.dataset.data_root=SPOILT'],
    ),
    Case(
        'labels beyond the classes, at several scales',
        "/val/.*Ids.png' has labels 19",
        options=['tta_pipeline.0.backend_args=None', 'test_dataloader.dataset.data_root=SPOILT'],
        flags=['--tta'],
    ),
    Case(
        'a misspelt metric',
        r'test_evaluator \(IoUMetrc\).*IoUMetric',
        options=['test_evaluator.type=IoUMetrc'],
    ),
    Case(
        'a misspelt name of a metric',
        'KeyError.*mIuO.* is not supported',
        options=['test_evaluator.iou_metrics=[mIuO]'],
        traceback=True,
    ),
]


@pytest.mark.parametrize('case', TESTS, ids=by_name)
def test_testing(refused, tiny_configs, data, tmp_path, monkeypatch, case):
    monkeypatch.setattr('matplotlib.pyplot.get_backend', lambda: 'agg')
    (tmp_path / 'file').write_text('text')
    for path in labels_of(data, 'val') if 'SPOILT' in str(case.options) else ():
        one_wrong_label(path)
    flags, options = case.filled({'FILE': tmp_path / 'file', 'SPOILT': data})
    arguments = [TEST, tiny_configs['teacher'], tiny_configs['checkpoint']]
    refused(case.message, *arguments, flags=flags, options=options, bug=case.traceback)


# SPOILT is a data set with an image that is a text.
CACHES = [
    Case('no teacher', 'has no model.teacher: give the config of a distillation'),
    Case('no model', 'has no model$', options=['model=None'], config='distilled'),
    Case('no data', 'has no train_dataloader$', options=['train_dataloader=None'], config='distilled'),
    Case(
        'no pipeline for whole images',
        'has no val_dataloader, whose',
        options=['val_dataloader=None'],
        config='distilled',
    ),
    Case(
        'a file to write to',
        'file. cannot be written: .*File exists',
        flags=['--out', 'FILE'],
        config='distilled',
    ),
    Case(
        'fewer than no workers',
        '--workers must be at least 0, not -1',
        flags=['--workers', '-1'],
        config='distilled',
    ),
    Case(
        'a tap that is not there',
        "tap 'nowhere' names no module",
        flags=['--taps', 'nowhere'],
        config='distilled',
    ),
    Case(
        'a misspelt loss',
        'model.distill_losses.0 .*BDDLoss',
        options=['model.distill_losses.0.type=BDLoss'],
        config='distilled',
    ),
    Case(
        'an image that is a text',
        "8bit.png' cannot be read: is it whole",
        options=['train_dataloader.dataset.data_root=SPOILT'],
        config='distilled',
    ),
]


@pytest.mark.parametrize('case', CACHES, ids=by_name)
def test_caching(refused, tiny_configs, data, tmp_path, case):
    images_of(data)[3].write_text('text')
    (tmp_path / 'file').write_text('text')
    flags, options = case.filled({'FILE': tmp_path / 'file', 'SPOILT': data})
    refused(case.message, CACHE, tiny_configs[case.config], flags=flags, options=options)
    assert not list(tmp_path.rglob('*.part'))


@dataclass(frozen=True)
class Command:
    """Arguments of another tool, and the line that they lead to."""

    name: str
    message: str
    tool: str
    arguments: Sequence[object]


COMMANDS = [
    Command('no study', "study 'nowhere.yaml' cannot be read: .*No such file", 'study.py', ['nowhere.yaml']),
    Command('a study that is a folder', "study '.' cannot be read: .*Is a directory", 'study.py', ['.']),
    Command(
        'a study of bytes', "study 'bytes' cannot be read: 'utf-8' codec can't decode", 'study.py', ['bytes']
    ),
    Command(
        'a study that is a text', "study 'file': Input should be a valid dictionary", 'study.py', ['file']
    ),
    Command(
        'scenes of no height', 'height must be from 32 to 8192', 'make_street_scenes.py', ['--size', 0, 64]
    ),
    Command('fewer than no scenes', 'num_train must be at least 0', 'make_street_scenes.py', ['--train', -1]),
    Command('scenes in a file', "File exists: 'file'", 'make_street_scenes.py', ['--out', 'file']),
    Command('scenes where none can be', "'/proc/scenes'", 'make_street_scenes.py', ['--out', '/proc/scenes']),
]


@pytest.mark.parametrize('case', COMMANDS, ids=by_name)
def test_other_tools(monkeypatch, tmp_path, case):
    (tmp_path / 'file').write_text('text')
    (tmp_path / 'bytes').write_bytes(bytes([255, 254, 0, 1]))
    trial = Trial(monkeypatch, tmp_path, TOOLS / case.tool, *case.arguments)
    assert re.search(case.message, trial.message), trial.message
    assert 'Traceback' not in trial.errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bytes', 'file']
