"""Wrong configs and overrides: each ends in one line that names the key or the file."""

import re
from dataclasses import dataclass

import pytest
from trial import CACHE, LONG, SHORT, TEST, TRAIN, Case, by_name

OVERRIDES = [
    Case(
        'a list index beyond the list',
        r'--cfg-options model.distill_losses.3.tau_forward=1 does not fit.*Index 3 exceeds',
        options=['model.distill_losses.3.tau_forward=1'],
        config='distilled',
    ),
    Case(
        'a key of a list',
        'model.distill_losses.tau=1 does not fit',
        options=['model.distill_losses.tau=1'],
        config='distilled',
    ),
    Case('a key below a number', 'randomness.seed.x=1 does not fit', options=['randomness.seed.x=1']),
    Case(
        'a misspelt first key',
        "the config has no 'optim_wraper', and nothing uses it. Did you mean optim_wrapper",
        options=['optim_wraper.optimizer.lr=1'],
    ),
    Case(
        'a key without the one above',
        "the config has no 'max_iters'.* Did you mean train_cfg.max_iters",
        options=['max_iters=3'],
    ),
    Case('no model', 'the config has no model', options=['model=None']),
    Case('a model that is a number', 'model must be a dict, got 3', options=['model=3']),
    Case('no train_dataloader', 'the config has no train_dataloader', options=['train_dataloader=None']),
    Case('no train_cfg', 'the config has no train_cfg', options=['train_cfg=None']),
    Case('no optim_wrapper', 'the config has no optim_wrapper', options=['optim_wrapper=None']),
    Case('no val_cfg', 'no val_cfg: val_dataloader, val_cfg, val_evaluator belong', options=['val_cfg=None']),
    Case(
        'a misspelt model',
        r"model \(EncoderDecodr\): no model is called 'EncoderDecodr'. Did you mean .*EncoderDecoder",
        options=['model.type=EncoderDecodr'],
    ),
    Case(
        'a misspelt backbone',
        'model.backbone.*ResNetV1c',
        options=['model.backbone.type=ResNetV1z'],
        config='distilled',
    ),
    Case('a misspelt head', 'model.decode_head .*mean.* PSPHead', options=['model.decode_head.type=PSPHed']),
    Case(
        'a misspelt loss of mmseg',
        r'model.decode_head.loss_decode \(CrossEntropyLos\).*Did you mean CrossEntropyLoss',
        options=['model.decode_head.loss_decode.type=CrossEntropyLos'],
    ),
    Case(
        'a misspelt distillation loss',
        'model.distill_losses.0 .*Did you mean BDDLoss',
        options=['model.distill_losses.0.type=BDLoss'],
        config='distilled',
    ),
    Case(
        'a misspelt transform',
        r'train_dataloader.dataset.pipeline.3 \(RandomFlp\): no transform is called.*RandomFlip',
        options=['train_dataloader.dataset.pipeline.3.type=RandomFlp'],
    ),
    Case(
        'a misspelt transform of validation',
        'val_dataloader.dataset.pipeline.2 .*PackSegInputs',
        options=['val_dataloader.dataset.pipeline.2.type=PackSegInput'],
    ),
    Case(
        'a misspelt data set',
        'train_dataloader.dataset .*CityscapesDataset',
        options=['train_dataloader.dataset.type=CityscapeDataset'],
    ),
    Case(
        'a misspelt sampler',
        'train_dataloader.sampler .*Infinite',
        options=['train_dataloader.sampler.type=InfinitSampler'],
    ),
    Case(
        'a misspelt hook', 'default_hooks.logger .*LoggerH', options=['default_hooks.logger.type=LogerHook']
    ),
    Case(
        'a misspelt optimizer',
        r"optim_wrapper.optimizer \(SDG\): no optimizer is called 'SDG'.* SGD",
        options=['optim_wrapper.optimizer.type=SDG'],
    ),
    Case(
        'a misspelt optim_wrapper', 'optim_wrapper .*OptimWrapper', options=['optim_wrapper.type=OptimWraper']
    ),
    Case('a misspelt schedule', 'param_scheduler.0 .*PolyLR', options=['param_scheduler.0.type=PolyL']),
    Case('a misspelt metric', 'val_evaluator .*IoUMetric', options=['val_evaluator.type=IoUMetrc']),
    Case(
        'a misspelt teacher',
        'model.teacher .*MMSegTeacher',
        options=['model.teacher.type=MMSegTeecher'],
        config='distilled',
    ),
    Case(
        'a hook without a type', 'default_hooks.loger has no type', options=['default_hooks.loger.interval=1']
    ),
    Case(
        'a misspelt argument of the model',
        r"model \(EncoderDecoder\).*'decode_hed'.* decode_head",
        options=['model.decode_hed.channels=8'],
    ),
    Case(
        'a misspelt argument of a backbone',
        r"model.backbone \(ResNetV1c\).*'dept'.* Did you mean depth",
        options=['model.backbone.dept=18'],
        config='distilled',
    ),
    Case(
        'a misspelt argument of a loss',
        r"model.distill_losses.0 \(BDDLoss\).*'tau_foward'.* Did you mean tau_forward",
        options=['model.distill_losses.0.tau_foward=2'],
        config='distilled',
    ),
    Case(
        'a misspelt argument of the teacher',
        "model.teacher .*'chekpoint'.* Did you mean checkpoint",
        options=['model.teacher.chekpoint=x'],
        config='distilled',
    ),
    Case(
        'a misspelt argument of a transform',
        "dataset.pipeline.3 .*'probb'.* prob",
        options=['train_dataloader.dataset.pipeline.3.probb=0.1'],
    ),
    Case(
        'a misspelt argument of a data set',
        "train_dataloader.dataset .*'dataroot'.*data_root",
        options=['train_dataloader.dataset.dataroot=x'],
    ),
    Case(
        'a misspelt argument of a data loader',
        "train_dataloader: .*'batchsize'.* Did you mean batch_size",
        options=['train_dataloader.batchsize=2'],
    ),
    Case(
        'a misspelt argument of the loop',
        "train_cfg .*'max_iter'.* max_iters",
        options=['train_cfg.max_iter=2'],
    ),
    Case(
        'a misspelt argument of the optimizer',
        r"optim_wrapper.optimizer \(SGD\).*'lrr'.* Did you mean lr",
        options=['optim_wrapper.optimizer.lrr=1'],
    ),
    Case(
        'a weight that is a word',
        r"model.distill_losses.0 \(BDDLoss\): loss_weight must be a number, got 'abc'",
        options=['model.distill_losses.0.loss_weight=abc'],
        config='distilled',
    ),
    Case(
        'a temperature of 0',
        r'model.distill_losses.0 \(BDDLoss\): tau_forward must be a positive number, got 0',
        options=['model.distill_losses.0.tau_forward=0'],
        config='distilled',
    ),
    Case(
        'an unknown domain',
        'domain must be one of.*channel',
        options=['model.distill_losses.0.domain=chanel'],
        config='distilled',
    ),
    Case(
        'a weight of mmseg that is a word',
        "model.decode_head.loss_decode.loss_weight must be a number, got 'abc'",
        options=['model.decode_head.loss_decode.loss_weight=abc'],
    ),
    Case(
        'a learning rate that is a word',
        "optim_wrapper.optimizer.lr must be a number, got 'abc'",
        options=['optim_wrapper.optimizer.lr=abc'],
    ),
    Case(
        'a negative learning rate',
        r'optim_wrapper.optimizer \(SGD\): Invalid learning rate: -1',
        options=['optim_wrapper.optimizer.lr=-1'],
    ),
    Case(
        'a depth that ResNet has not',
        'KeyError: .*invalid depth 17',
        options=['model.backbone.depth=17'],
        traceback=True,
    ),
    Case('a seed that is a word', '^TypeError', options=['randomness.seed=abc'], traceback=True),
    Case('a log level that there is not', "^KeyError: 'LOUD'", options=['log_level=LOUD'], traceback=True),
    Case(
        'no iterations',
        'train_cfg.max_iters must be a whole number from 1',
        options=['train_cfg.max_iters=0'],
    ),
    Case('half an iteration', 'train_cfg.max_iters .* got 2.5', options=['train_cfg.max_iters=2.5']),
    Case(
        'a validation every 0 iterations', 'train_cfg.val_interval must', options=['train_cfg.val_interval=0']
    ),
    Case(
        'a batch of none',
        'train_dataloader.batch_size must be a whole number from 1 on, got 0',
        options=['train_dataloader.batch_size=0'],
    ),
    Case(
        'fewer than no workers',
        'train_dataloader.num_workers must be a whole number from 0 on, got -1',
        options=['train_dataloader.num_workers=-1'],
    ),
    Case(
        'a crop of no height',
        r'pipeline.2 \(RandomCrop\): assert crop_size\[0\] > 0 and crop_size\[1\] > 0 does not hold',
        options=['train_dataloader.dataset.pipeline.2.crop_size=(0,64)'],
    ),
    Case(
        'a head for another number of channels',
        '^RuntimeError',
        options=['model.decode_head.in_channels=7'],
        traceback=True,
    ),
    Case(
        'fewer classes than the data set has',
        'model.decode_head.num_classes is 7, but the data set of train_dataloader has 19 classes',
        options=['model.decode_head.num_classes=7'],
    ),
    Case(
        'an auxiliary head with fewer classes',
        'model.auxiliary_head.num_classes is 7',
        options=['model.auxiliary_head.num_classes=7'],
    ),
    Case(
        'a teacher of other classes',
        'predicts 19 classes, the student 7',
        options=['model.decode_head.num_classes=7'],
        config='distilled',
    ),
    Case(
        'no teacher',
        'the model has no teacher: give it teacher=dict',
        options=['model.teacher=None'],
        config='distilled',
    ),
    Case(
        'a teacher that is a file',
        "model.teacher must be a dict.*'a.pth'",
        options=['model.teacher=a.pth'],
        config='distilled',
    ),
    Case(
        "no file of the teacher's config",
        "teacher: config 'nowhere.py' does not exist",
        options=['model.teacher.config=nowhere.py'],
        config='distilled',
    ),
    Case(
        'a tap that is not there',
        r"teacher \(.*\): tap 'decode_head.conv_sge' names no module .*Names nearby: decode_head.conv_seg",
        options=['model.distill_losses.0.teacher_tap=decode_head.conv_sge'],
        config='distilled',
    ),
    Case(
        'a tap of the student that is not there',
        "model.distill_losses.0.student_tap: tap 'decode_head.conv_sge' names no .*decode_head.conv_seg",
        options=['model.distill_losses.0.student_tap=decode_head.conv_sge'],
        config='distilled',
    ),
    Case(
        'an argument that another loss has',
        r"model.distill_losses.0 \(BDDLoss\) takes no argument 'tau'; it takes domain, tau_forward, "
        '.*mask_ignored.* Did you mean .*tau_forward',
        options=['model.distill_losses.0.tau=2.0'],
        config='distilled',
    ),
    Case(
        'an argument that no loss has',
        r"model.distill_losses.0 \(BDDLoss\) takes no argument 'softness'; it takes domain, tau_forward",
        options=['model.distill_losses.0.softness=2.0'],
        config='distilled',
    ),
    Case(
        'a misspelt loss',
        r"model.distill_losses.0 \(BDLoss\): no loss is called 'BDLoss'. Did you mean BDDLoss",
        options=['model.distill_losses.0.type=BDLoss'],
        config='distilled',
    ),
    Case(
        'a teacher without a distiller',
        r"model \(EncoderDecoder\) takes no teacher: write type='SegDistiller' beside it",
        options=['model.type=EncoderDecoder'],
        config='distilled',
    ),
    Case(
        'a cache that is not there',
        "'/nowhere' is no cache of a teacher",
        options=['model.teacher.type=CachedTeacher', 'model.teacher.cache=/nowhere'],
        config='distilled',
    ),
    Case(
        'an unknown precision',
        "teacher.precision must .* got 'fp4'",
        options=['model.teacher.precision=fp4'],
        config='distilled',
    ),
    Case(
        "no file of the teacher's weights",
        "teacher .*'nowhere.pth' does not exist",
        options=['model.teacher.checkpoint=nowhere.pth'],
        config='distilled',
    ),
    Case(
        'no server of the weights',
        "'http://127.0.0.1:9/nowhere.pth' cannot be downloaded",
        options=['model.teacher.checkpoint=http://127.0.0.1:9/nowhere.pth'],
        config='distilled',
    ),
    Case(
        'pretrained weights that are not there',
        "checkpoint 'nowhere.pth' does not exist",
        options=['model.pretrained=nowhere.pth'],
    ),
]


@pytest.mark.parametrize('case', OVERRIDES, ids=by_name)
def test_overrides(refused, tiny_configs, tmp_path, case):
    options = [*SHORT, *case.options]
    refused(case.message, TRAIN, tiny_configs[case.config], options=options, bug=case.traceback)
    assert not list(tmp_path.rglob('*.pth'))


@dataclass(frozen=True)
class Files:
    """The text of config.py, that of base.py, and the line that they lead to."""

    name: str
    message: str
    text: str
    base: str = ''


FILES = [
    Files(
        'a parenthesis not closed',
        r"config .*config\.py', line 1: SyntaxError: '\(' was never",
        'model = dict(',
    ),
    Files(
        'a base with a syntax error',
        r"base\.py', line 2: SyntaxError",
        "_base_ = 'base.py'",
        base='x = 1\ny = = 1',
    ),
    Files(
        'a name that is not defined',
        r"config\.py', line 2: NameError: name 'z' is not defined",
        'x = 1\ny = z',
    ),
    Files('a base that is not there', r'inherits from a file that.*absent\.py', "_base_ = 'absent.py'"),
    Files(
        'a base that is a circle', 'inherits from itself', "_base_ = 'base.py'", base="_base_ = 'config.py'"
    ),
    Files(
        'a key of two bases',
        r"config\.py.*Duplicate key.*'model'",
        "_base_ = ['base.py', {student!r}]",
        base='model = 1',
    ),
    Files(
        'another kind than in the base',
        r'config\.py.*log_level=.* cannot inherit',
        '_base_ = {student!r}\nlog_level = dict(x=1)',
    ),
    Files('an empty file', 'the config has no model', ''),
    Files(
        'a misspelt first key',
        "the config's key optim_wraper is not used. Did you mean optim_wrapper",
        '_base_ = {student!r}\noptim_wraper = dict(optimizer=dict(lr=1))\noptim_wrapper = None',
    ),
    Files(
        'a misspelt hook of its own',
        r'custom_hooks.0 \(LosStateHook\): no hook is called.*LossStateHook',
        "_base_ = {student!r}\ncustom_hooks = [dict(type='LosStateHook')]",
    ),
    Files(
        'a misspelt argument of a hook',
        "EMAHook.: .*'momentun' of ExponentialMovingAverage. Did you mean momentum",
        "_base_ = {student!r}\ncustom_hooks = [dict(type='EMAHook', momentun=0.1)]",
    ),
    Files(
        'a loader without a data set',
        'train_dataloader has no dataset',
        '_base_ = {student!r}\ntrain_dataloader = dict(_delete_=True, batch_size=2)',
    ),
    Files(
        'losses that are no list',
        'model.distill_losses must be a list of dicts',
        "_base_ = {distilled!r}\nmodel = dict(distill_losses=dict(_delete_=True, type='BDDLoss'))",
    ),
    Files(
        'a teacher without weights',
        r"model.teacher \(MMSegTeacher\) lacks 'checkpoint'",
        '_base_ = {distilled!r}\nmodel = dict(teacher=dict(_delete_=True, config={teacher!r}))',
    ),
    Files(
        'a teacher with a misspelt backbone',
        r'teacher \(base.py\): model.backbone \(ResNetV1z\).*ResNetV1c',
        "_base_ = {distilled!r}\nmodel = dict(teacher=dict(config='base.py'))",
        base="_base_ = {teacher!r}\nmodel = dict(backbone=dict(type='ResNetV1z'))",
    ),
    Files(
        'a teacher with a syntax error',
        r"teacher: config 'base.py', line 1: SyntaxError",
        "_base_ = {distilled!r}\nmodel = dict(teacher=dict(config='base.py'))",
        base='1 +',
    ),
    Files(
        'a teacher of another depth',
        r'does not fit the teacher \(base.py\): \d+ missing: backbone.layer3.6',
        "_base_ = {distilled!r}\nmodel = dict(teacher=dict(config='base.py'))",
        base='_base_ = {teacher!r}\nmodel = dict(backbone=dict(depth=101))',
    ),
]


@pytest.mark.parametrize('case', FILES, ids=by_name)
def test_config_files(refused, tiny_configs, tmp_path, case):
    for name, content in (('config.py', case.text), ('base.py', case.base)):
        for key, path in tiny_configs.items():
            content = content.replace(f'{{{key}!r}}', repr(str(path)))
        (tmp_path / name).write_text(content)
    options = SHORT if '_base_ = {' in case.text else ()
    refused(case.message, TRAIN, 'config.py', options=options)
    assert not list(tmp_path.rglob('*.pth'))


@dataclass(frozen=True)
class NoConfig:
    """The argument given as the config, and the line that it leads to."""

    name: str
    message: str
    given: str


NO_CONFIGS = [
    NoConfig('nothing', "config 'nowhere.py' does not exist", 'nowhere.py'),
    NoConfig('nearly its name', "config .*studnt.py' does not exist. Did you mean student.py", 'studnt.py'),
    NoConfig(
        'nearly a name of mmseg',
        'Did you mean .*cityscapes-512x1024.py',
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1025.py',
    ),
    NoConfig('a long name', "config 'xxx.* does not exist", f'{LONG}.py'),
    NoConfig('a folder', "config '.*' is a folder. Give the file in it", '.'),
    NoConfig('a text', "config '.*notes.txt' is no config file, which would end in .py$", 'notes.txt'),
    NoConfig('a checkpoint', "teacher.pth' is no config file, .* A checkpoint comes after", 'teacher.pth'),
    NoConfig('bytes', "bytes.py': UnicodeDecodeError", 'bytes.py'),
    NoConfig('a list in YAML', 'list.yaml.: AttributeError', 'list.yaml'),
    NoConfig('half a JSON', 'half.json., line 1: JSONDecodeError', 'half.json'),
]


@pytest.mark.parametrize('tool', [TRAIN, TEST, CACHE], ids=lambda path: path.name)
@pytest.mark.parametrize('case', NO_CONFIGS, ids=by_name)
def test_files_that_are_no_configs(refused, tiny_configs, tmp_path, tool, case):
    for key in ('student', 'checkpoint'):
        (tmp_path / tiny_configs[key].name).symlink_to(tiny_configs[key])
    (tmp_path / 'notes.txt').write_text('text')
    (tmp_path / 'bytes.py').write_bytes(b'\xff\xfe')
    (tmp_path / 'list.yaml').write_text('- 1\n- 2')
    (tmp_path / 'half.json').write_text('{"a": ')
    refused(case.message, tool, case.given, *([tiny_configs['student']] if tool == TEST else []))
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
