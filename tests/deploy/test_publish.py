"""Publishing a checkpoint: half of it, a plain config, and a card that invents nothing."""

import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import build
from mmengine.config import Config
from safetensors.torch import load_file

from bdd_seg.deploy.card import Notes, code, escape
from bdd_seg.deploy.evaluations import find_evaluations
from bdd_seg.deploy.load import load_trained
from bdd_seg.deploy.portable import config_text, portable_config
from bdd_seg.deploy.publish import Published, publish
from bdd_seg.distill.student import plain_config
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config

NAMES = ('a|b', '<script>', '*c*', *(f'class {i}' for i in range(16)))


@pytest.fixture(scope='module')
def model(tiny_configs):
    torch.manual_seed(0)
    return build(Config.fromfile(tiny_configs['student']))


@pytest.fixture(scope='module')
def run(tiny_configs, model, tmp_path_factory) -> Path:
    """The work dir of a training with EMAHook: config, log, checkpoint, and a test of it."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    cfg = Config.fromfile(tiny_configs['distilled'])
    cfg.model.distill_losses = [
        dict(type='BDDLoss', loss_weight=2.5, schedule=dict(reverse_weight=(0.0, 2.0)))
    ]
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1), dict(type='LossStateHook')]
    cfg.work_dir = str(folder)
    for part in (cfg.model, cfg.optim_wrapper, cfg.train_dataloader.dataset, cfg.val_evaluator):
        part['_scope_'] = 'bdd_seg'  # as mmengine has it where a config inherits from bdd_seg::…
    cfg.model.distill_losses[0]['_scope_'] = 'bdd_seg'
    session = folder / '20250101_000000'
    (session / 'vis_data').mkdir(parents=True)
    cfg.dump(folder / 'distilled.py')
    records = [{'loss': 1.0, 'step': 6}, {'mIoU': 11.0, 'aAcc': 50.0, 'step': 3}]
    classes = {f'IoU.{name}': 40.0 + number for number, name in enumerate(NAMES)}
    records.append(
        {'mIoU': 12.34, 'aAcc': 60.0, 'mAcc': 30.0, 'step': 6, **classes, 'IoU.class 0': float('nan')}
    )
    (session / 'vis_data/scalars.json').write_text('\n'.join(map(json.dumps, records)) + '\n{"mIoU": 99.')
    for name, tested, miou in (
        ('20241231_000000', 'iter_6.pth', 99.0),  # of a checkpoint that this one has replaced
        ('20250102_000000', 'iter_6.pth', 13.5),
        ('20250103_000000', 'iter_3.pth', 99.0),
        ('20250104_000000', 'iter_6.pth', 99.0),  # with test-time augmentation
    ):
        (folder / name / 'vis_data').mkdir(parents=True)
        (folder / name / f'{name}.json').write_text(json.dumps({'mIoU': miou}))
        cfg.load_from = f'/elsewhere/{folder.name}/{tested}'
        tested_cfg = copy.deepcopy(cfg)
        if name == '20250104_000000':
            tested_cfg.model = dict(type='SegTTAModel', module=cfg.model)
        tested_cfg.dump(folder / name / 'vis_data/config.py')
    weights = model.state_dict()
    whole = torch.zeros(3, *weights['decode_head.conv_seg.bias'].shape)  # of which one row would be a part
    whole[0] = weights['decode_head.conv_seg.bias']
    weights['decode_head.conv_seg.bias'] = whole[0]
    content = {
        'meta': {
            **{
                'iter': 6,
                'epoch': 0,
                'seed': 41,
                'cfg': f'work_dir={str(folder)!r}',
                'time': '20250101_120000',
                'mmengine_version': f'0.10.12{"1f" * 20}',  # that of the folder in which it ran
            },
            'dataset_meta': {'classes': NAMES, 'palette': [[number] * 3 for number in range(19)]},
        },
        'state_dict': weights,
        'ema_state_dict': {f'module.{key}': value + 1 for key, value in weights.items()},
        'optimizer': {'state': {0: torch.zeros(20_000)}},
        'message_hub': {'log_scalars': {}},
        'distill_losses': {},
    }
    torch.save(content, folder / 'iter_6.pth')
    return folder


@pytest.fixture(scope='module')
def published(run, tmp_path_factory) -> Published:
    notes = Notes(license='apache-2.0', data='Drawn *by hand*.')
    return publish(
        run / 'iter_6.pth', tmp_path_factory.mktemp('out') / 'deep', notes=notes, with_safetensors=True
    )


@pytest.fixture(scope='module')
def card(published) -> str:
    return published.card.read_text()


def test_the_file_holds_weights_and_metadata_alone(published, model):
    content = torch.load(published.weights, weights_only=True)
    assert content.keys() == {'meta', 'state_dict'}
    own = model.state_dict()
    assert content['state_dict'].keys() == own.keys()
    assert all(torch.equal(value, own[key]) for key, value in content['state_dict'].items())  # the averages
    bias = content['state_dict']['decode_head.conv_seg.bias']
    assert bias.untyped_storage().nbytes() == bias.nbytes  # not all of the tensor that it was a part of
    assert content['meta']['dataset_meta']['classes'] == list(NAMES)
    assert content['meta']['normalisation']['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert (content['meta']['iter'], content['meta']['seed'], content['meta']['distilled']) == (6, 41, True)
    assert content['meta']['mmengine_version'] == '0.10.12'
    assert published.weights.stat().st_size < 0.5 * published.bytes_before and published.averaged


def test_names_tell_the_content(published):
    digest = hashlib.sha256(published.weights.read_bytes()).hexdigest()
    assert published.weights.name == f'distilled-{digest[:8]}.pth'
    assert published.config.name == f'distilled-{digest[:8]}.py'
    assert sorted(path.name for path in published.card.parent.iterdir()) == sorted(
        ['README.md', *(f'distilled-{digest[:8]}{suffix}' for suffix in ('.pth', '.py', '.safetensors'))]
    )


def test_safetensors_hold_the_same(published, model):
    weights = load_file(published.safetensors)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert load_trained(published.safetensors).about.palette[0] == (128, 64, 128)  # of the config's data set


def test_the_config_is_the_plain_student(published, run, scenes):
    text = published.config.read_text()
    names = ('teacher', 'distill', 'bdd_seg', 'LossStateHook', 'work_dir', 'load_from')
    for absent in (*names, str(scenes), str(run)):
        assert absent not in text
    cfg = Config.fromfile(published.config)
    assert cfg.model.type == 'EncoderDecoder' and cfg.custom_hooks == [dict(type='EMAHook', momentum=0.1)]
    assert cfg.train_dataloader.dataset.data_root == f'data/{scenes.name}'
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline
    assert any(f'data/{scenes.name} stands for' in change for change in published.changes)


def test_plain_mmseg_loads_it_strictly(published, scenes):
    image = next((scenes / 'leftImg8bit/val').rglob('*.png'))
    script = (
        'import sys, torch\n'
        'from mmseg.apis import inference_model, init_model\n'
        'config, checkpoint, image = sys.argv[1:]\n'
        "model = init_model(config, checkpoint, device='cpu')\n"
        "model.load_state_dict(torch.load(checkpoint, weights_only=True)['state_dict'], strict=True)\n"
        'result = inference_model(model, image).pred_sem_seg.data.sum().item()\n'
        "print(model.dataset_meta['classes'][0], result)\n"
        "assert 'bdd_seg' not in sys.modules\n"
    )
    command = [sys.executable, '-W', 'ignore', '-c', script, published.config, published.weights, image]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=published.card.parent)
    assert done.returncode == 0, done.stderr
    trained = load_trained(published.weights)
    assert trained.about.classes == NAMES
    from mmseg.apis import inference_model

    trained.model.cfg = trained.cfg
    total = inference_model(trained.model, str(image)).pred_sem_seg.data.sum().item()
    assert done.stdout.splitlines()[-1] == f'a|b {total}'


def test_the_card_is_filled_from_the_run(card, published, tiny_configs):
    for text in (
        'leftImg8bit/val | validation of the training, at iteration 6 | 12.34 | 60.00 | 30.00 |',
        '| CityscapesDataset, leftImg8bit/val | test of this checkpoint | 13.50 | unknown | unknown |',
        '| class 2 | 45.00 |',
        '| class 0 | does not occur |',
        'Distilled from `teacher.py` (`ResNetV1c` and `PSPHead`) with `BDDLoss`.',
        'The training ran with mmengine 0.10.12. Published',
        '| `teacher.py` | mmseg | `teacher.pth` |',
        '| `BDDLoss` | class logits | loss\\_weight = 2.5, schedule = ',
        '`SGD` (lr = 0.1, momentum = 0.9',
        '| length | 6 iterations |',
        '| crop (height × width) | 32 × 64 |',
        '| seed | 41 |',
        '2 per process',
        'the average of `EMAHook`',
        '8 images',
        'Drawn \\*by hand\\*.',
        f"init_model('{published.config.name}', '{published.weights.name}'",
        hashlib.sha256(published.weights.read_bytes()).hexdigest(),
        'licences of the data set',
    ):
        assert text in card, text
    assert '99.0' not in card and 'scope' not in card and str(tiny_configs['teacher'].parent) not in card


def test_names_of_classes_are_shown_as_they_are(card):
    assert '| a\\|b | 40.00 |' in card and '| &lt;script&gt; | 41.00 |' in card and '\\*c\\*' in card
    assert '<script>' not in card
    rows = [line for line in card.splitlines() if line.startswith('| a')]
    assert rows and all(line.replace('\\|', '').count('|') == 3 for line in rows)


def test_its_metadata_are_those_of_hugging_face(card):
    facts = yaml.safe_load(card.split('---')[1])
    assert facts['license'] == 'apache-2.0' and facts['pipeline_tag'] == 'image-segmentation'
    assert 'knowledge-distillation' in facts['tags']
    results = facts['model-index'][0]['results']
    assert [result['metrics'][0]['value'] for result in results] == [12.34, 13.5]
    cards = pytest.importorskip('huggingface_hub.repocard_data')
    assert cards.ModelCardData(**facts, ignore_metadata_errors=False).eval_results[0].metric_value == 12.34


@pytest.mark.parametrize(
    'text, shown',
    [
        ('a|b', 'a\\|b'),
        ('two\nlines', 'two lines'),
        ('<b>&', '&lt;b&gt;&amp;'),
        ('[x](y)_z_`#', '\\[x\\](y)\\_z\\_\\`\\#'),
        (3, '3'),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown


def test_code_falls_back_where_a_span_cannot_hold_it():
    assert code('plain.py') == '`plain.py`'
    assert code('a`b|c') == 'a\\`b\\|c'


def test_a_student_alone_of_which_nothing_is_known(tiny_configs, model, tmp_path):
    """No log, no metadata, and a head for training without its weights."""
    weights = {
        key: value for key, value in model.state_dict().items() if not key.startswith('auxiliary_head')
    }
    torch.save(weights, tmp_path / 'w.pth')
    published = publish(tmp_path / 'w.pth', tmp_path / 'out', tiny_configs['student'], Notes(name='mine'))
    assert published.weights.name.startswith('mine-') and not published.averaged
    cfg = Config.fromfile(published.config)
    assert cfg.model.get('auxiliary_head') is None
    assert torch.load(published.weights, weights_only=True)['state_dict'].keys() == weights.keys()
    card = published.card.read_text()
    for text in (
        'Unknown: the work dir holds no evaluation',
        'None: it was trained on labels alone',
        '| seed | unknown |',
        '| this checkpoint | unknown |',
        'The licence of these weights is not stated',
        'No score of it is known',
        'Versions of the training are unknown',
    ):
        assert text in card, text
    assert 'model-index' not in card and 'Trained without a teacher.' in card
    assert torch.load(published.weights, weights_only=True)['meta']['distilled'] is False


def test_evaluations_of_a_replaced_checkpoint_do_not_count(run):
    cfg = Config.fromfile(run / 'distilled.py')

    def miou_of(saved):
        found = find_evaluations(run / 'iter_6.pth', {'iter': 6, 'time': saved}, cfg)
        return {one.source.split()[0]: one.scores['mIoU'] for one in found}

    assert miou_of('20241230_000000') == {'test': 13.5}  # the training on record began later
    assert miou_of('20250101_120000') == {'validation': 12.34, 'test': 13.5}
    assert miou_of('20250102_120000') == {'validation': 12.34}
    found = find_evaluations(run / 'iter_6.pth', {'iter': 6}, cfg)  # saved when the file was written: now
    assert [one.scores['mIoU'] for one in found] == [12.34]


def test_a_student_published_again_stays_distilled(published, tmp_path):
    again = publish(published.weights, tmp_path / 'again')
    assert torch.load(again.weights, weights_only=True)['meta']['distilled'] is True
    card = again.card.read_text()
    assert 'parameters. Distilled.' in card and 'Trained without a teacher' not in card
    assert 'Unknown: the weights are those of a distilled student' in card
    assert 'knowledge-distillation' in card and 'of the teacher and of weights' in card


def test_names_do_not_grow(published, tmp_path):
    again = publish(published.weights, tmp_path / 'again')
    assert re.fullmatch(r'distilled-[0-9a-f]{8}.pth', again.weights.name)
    twice = publish(again.weights, tmp_path / 'twice')
    assert twice.weights.name == again.weights.name


def test_a_test_in_the_work_dir_takes_no_teacher_away(run, published, tmp_path):
    """It leaves its own config, that of the student alone, in the place of the training's."""
    folder = shutil.copytree(run, tmp_path / 'run')
    shutil.copy(folder / 'distilled.py', folder / '20250101_000000/vis_data/config.py')
    plain_config(Config.fromfile(folder / 'distilled.py')).dump(folder / 'distilled.py')
    found = publish(folder / 'iter_6.pth', tmp_path / 'out')
    assert found.weights.name == published.weights.name
    assert torch.load(found.weights, weights_only=True)['meta']['distilled'] is True
    assert 'Distilled from `teacher.py`' in found.card.read_text() and found.test is None
    for session in ('20241231', '20250102', '20250103', '20250104'):
        shutil.rmtree(folder / f'{session}_000000')
    (folder / '20250101_000000/vis_data/scalars.json').write_text('{"loss": 1.0, "step": 6}')
    command = f'bdd-seg test {folder}/distilled.py {folder}/iter_6.pth --work-dir {folder}'
    assert publish(folder, tmp_path / 'untested').test == command
    shutil.copy(folder / 'distilled.py', folder / 'tested.py')
    assert re.fullmatch(r'run-[0-9a-f]{8}.pth', publish(folder, tmp_path / 'again').weights.name)


def test_a_teacher_that_is_gone_is_named_alone(run, tmp_path):
    cfg = Config.fromfile(run / 'distilled.py')
    cfg.model.teacher.config = '/gone/big.py'
    cfg.dump(tmp_path / 'distilled.py')
    card = publish(run / 'iter_6.pth', tmp_path / 'out', tmp_path / 'distilled.py').card.read_text()
    assert 'Distilled from `big.py` with `BDDLoss`.' in card


def test_another_card_is_kept(run, published, tmp_path):
    publish(run, tmp_path)
    card = tmp_path / 'README.md'
    card.write_text('mine')
    with pytest.raises(ConfigError, match=r'README.md.* exists. Choose another folder, or replace it'):
        publish(run, tmp_path)
    assert card.read_text() == 'mine'
    again = publish(run, tmp_path, replace_card=True)
    assert card.read_text() != 'mine'
    assert again.weights.read_bytes() == published.weights.read_bytes()  # nothing in it tells the time


CAMVID = """
custom_imports = dict(imports=['bdd_seg', 'tiny_segmentors'])
model = dict(
    type='SegDistiller', teacher=dict(config='/secret/t.py'), distill_losses=[], pretrained='torchvision://r',
    backbone=dict(type='ResNetV1c', depth=18, init_cfg=[dict(type='Pretrained', checkpoint='/secret/x.pth'),
                                                        dict(type='Kaiming', layer='Conv2d')]),
    decode_head=dict(type='FCNHead', init_cfg=dict(type='Normal', std=0.1)))
images = [dict(type='CheckedLoading', transform=dict(type='LoadImageFromFile')), dict(type='PackSegInputs')]
labelled = dict(type='CamVidDataset', data_root='/secret/camvid', data_prefix=dict(img_path='images/train'),
                pipeline=[dict(type='ReadTeacherCache', cache='/secret/c', transforms=images)])
train_dataloader = dict(
    batch_size=2, sampler=dict(type='MixedSampler', unlabelled=0.5, shuffle=True),
    dataset=dict(type='WithUnlabelled', dataset=labelled,
                 unlabelled=dict(type='UnlabelledImages', images='/secret')))
val_dataloader = dict(batch_size=1, dataset=dict(type='UnlabelledImages', images='x', pipeline=images))
val_evaluator = dict(type='ClassIoUMetric')
val_cfg = dict(type='ValLoop')
test_evaluator = dict(type='ClassIoUMetric', iou_metrics=['mIoU'])
optim_wrapper = dict(type='BFloat16OptimWrapper', optimizer=dict(type='SGD', lr=0.1))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)
default_hooks = dict(timer=dict(type='IterTimerHook'), rehearsal=dict(type='RehearsalHook'), logger=None)
work_dir = '/secret/w'
check_data = True
"""


def test_parts_of_this_package_are_replaced_or_left_out(tmp_path):
    file = tmp_path / 'camvid.py'
    file.write_text(CAMVID)
    cfg = Config.fromfile(file, import_custom_modules=False)
    before = cfg.pretty_text
    settings, changes = portable_config(cfg)
    assert cfg.pretty_text == before
    text = config_text(settings)
    assert 'secret' not in text and 'bdd_seg' not in text
    again = Config.fromstring(text, '.py').to_dict()
    assert again == settings
    assert settings['custom_imports']['imports'] == ['tiny_segmentors']
    assert settings['model'] == {
        'type': 'EncoderDecoder',
        'backbone': {'type': 'ResNetV1c', 'depth': 18},
        'decode_head': {'type': 'FCNHead', 'init_cfg': {'type': 'Normal', 'std': 0.1}},
    }
    train = settings['train_dataloader']
    assert train['sampler'] == {'type': 'InfiniteSampler', 'shuffle': True}
    assert train['dataset']['type'] == 'BaseSegDataset' and train['dataset']['data_root'] == 'data/camvid'
    assert train['dataset']['metainfo']['classes'][0] == 'sky' and train['dataset']['img_suffix'] == '.jpg'
    assert train['dataset']['pipeline'] == [{'type': 'LoadImageFromFile'}, {'type': 'PackSegInputs'}]
    assert settings['optim_wrapper']['type'] == 'OptimWrapper'
    assert settings['default_hooks'] == {'timer': {'type': 'IterTimerHook'}, 'logger': None}
    assert settings['test_evaluator'] == {'type': 'IoUMetric', 'iou_metrics': ['mIoU']}
    assert 'val_dataloader' not in settings and 'val_cfg' not in settings
    assert any('need bdd_seg (UnlabelledImages)' in change for change in changes)
    assert any('images without labels' in change for change in changes)


def test_a_config_of_this_package_loses_its_scope(tmp_path):
    file = tmp_path / 'mine.py'
    base = 'bdd/bdd_pspnet_r50-d8-w16_pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
    file.write_text(f"_base_ = 'bdd_seg::{base}'")
    cfg = load_config(file)
    assert cfg.model['_scope_'] == 'bdd_seg'
    text = config_text(portable_config(cfg).settings)
    assert 'bdd_seg' not in text and "type='EncoderDecoder'" in text


def test_different_folders_stay_different(tmp_path):
    file = tmp_path / 'paths.py'
    loaders = [
        f"{part}_dataloader = dict(dataset=dict(type='BaseSegDataset', data_root='{root}', "
        f"data_prefix=dict(img_path='/x/{part}/images', seg_map_path='/x/{part}/labels/'), pipeline=[]))"
        for part, root in (('train', '/x'), ('val', '/x/'), ('test', '/y/deep'))
    ]
    file.write_text('\n'.join(["model = dict(type='EncoderDecoder')", *loaders]))
    settings, changes = portable_config(Config.fromfile(file))
    found = {part: settings[f'{part}_dataloader']['dataset'] for part in ('train', 'val', 'test')}
    for part, dataset in found.items():
        assert dataset['data_prefix'] == {
            'img_path': f'data/{part}/images',
            'seg_map_path': f'data/{part}/labels',
        }
    assert [dataset['data_root'] for dataset in found.values()] == ['data/x', 'data/x', 'data/deep']
    assert sum('stands for an absolute path' in change for change in changes) == 8
