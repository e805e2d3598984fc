"""Whole runs through the command lines that users type."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    CONFIGS,
    MMSEG_TOOLS,
    ROOT,
    TEST,
    TRAIN,
    build,
    complaint,
    logged,
    miou,
    run,
    same,
    train,
    weights,
)
from mmengine.config import Config

from bdd_seg.cli import train as cli_train
from bdd_seg.cli.arguments import add_hooks
from bdd_seg.runtime.upstream.checkpoints import load_checkpoint
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.runtime.upstream.installation import PINS


@pytest.fixture(scope='module')
def trained(tiny_configs, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp('trained')
    (work_dir / 'output.txt').write_text(train(tiny_configs['distilled'], work_dir))
    return work_dir


def test_training_logs_losses_and_the_teachers_accuracy(trained):
    records = logged(trained)
    assert [record['step'] for record in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        assert record['distill.loss_bdd'] > 0
        assert 0 <= record['distill.teacher_acc'] <= 100
        parts = [value for key, value in record.items() if '.loss_' in key]
        assert record['loss'] == pytest.approx(sum(parts), rel=1e-4)


def test_an_untrained_teacher_is_warned_about_once(trained):
    output = (trained / 'output.txt').read_text()
    assert output.count('is hardly better than guessing') == 1
    assert 'WARNING - !!!' in output


def test_a_checkpoint_is_a_plain_students(trained, tiny_configs):
    student = build(tiny_configs['student'])
    student.load_state_dict(load_checkpoint(trained / 'iter_6.pth')['state_dict'], strict=True)


def test_both_configs_evaluate_alike(trained, tiny_configs, tmp_path):
    checkpoint = trained / 'iter_6.pth'
    results = [
        miou(run(TEST, tiny_configs[kind], checkpoint, '--work-dir', tmp_path))
        for kind in ('student', 'distilled')
    ]
    assert len(results[0]) == 3
    assert results[0] == results[1]
    own = run(MMSEG_TOOLS / 'test.py', tiny_configs['distilled'], checkpoint, '--work-dir', tmp_path)
    assert miou(own) == results[0]
    for alone in (trained, checkpoint):  # with the config that the training left there
        assert miou(run(TEST, alone, '--work-dir', tmp_path)) == results[0]


def test_mmsegs_own_tool_trains_the_same(trained, tiny_configs, tmp_path):
    train(tiny_configs['distilled'], tmp_path, tool=MMSEG_TOOLS / 'train.py')
    ours, theirs = weights(trained / 'iter_6.pth'), weights(tmp_path / 'iter_6.pth')
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_resume_goes_on_where_it_stopped(trained, tiny_configs, tmp_path):
    (tmp_path / 'iter_3.pth').write_bytes((trained / 'iter_3.pth').read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    output = train(tiny_configs['distilled'], tmp_path, '--resume')
    assert '4 to 6' in output and f'resumed from {tmp_path}/iter_3.pth' in output
    records = logged(tmp_path)
    assert [record['step'] for record in records] == [4, 5, 6]
    assert [r['lr'] for r in records] == [r['lr'] for r in logged(trained)[3:]]
    assert all(record['distill.loss_bdd'] > 0 for record in records)


def test_amp_accumulation_and_ema(trained, tiny_configs, tmp_path):
    config = tmp_path / 'ema.py'
    config.write_text(f"_base_ = '{tiny_configs['distilled']}'\ncustom_hooks = [dict(type='EMAHook')]")
    train(config, tmp_path, '--amp', '--cfg-options', 'optim_wrapper.accumulative_counts=2')
    records, float32 = logged(tmp_path), logged(trained)
    assert records[0]['loss'] == pytest.approx(float32[0]['loss'], rel=0.02)
    assert records[0]['loss'] != float32[0]['loss']
    assert Config.fromfile(tmp_path / 'ema.py').optim_wrapper.type == 'BFloat16OptimWrapper'
    checkpoint = load_checkpoint(tmp_path / 'iter_6.pth')
    student = build(tiny_configs['student']).state_dict()
    assert checkpoint['state_dict'].keys() == student.keys()
    assert {key.removeprefix('module.') for key in checkpoint['ema_state_dict']} - {'steps'} == student.keys()


@pytest.mark.parametrize(
    'device, flags, wrapper',
    [
        ('cpu', {}, 'BFloat16OptimWrapper'),
        ('cuda', {}, 'AmpOptimWrapper'),
        ('cpu', {'bf16': True}, 'BFloat16OptimWrapper'),
        ('cuda', {'bf16': True}, 'BFloat16OptimWrapper'),
    ],
)
def test_the_precision_of_mixed_precision(tiny_configs, monkeypatch, device, flags, wrapper):
    monkeypatch.setattr(cli_train, 'get_device', lambda: device)
    cfg = Config.fromfile(tiny_configs['student'])
    cli_train.enable_amp(cfg, **flags)
    assert cfg.optim_wrapper.type == wrapper
    assert cfg.optim_wrapper.get('loss_scale') == ('dynamic' if wrapper == 'AmpOptimWrapper' else None)


def test_bf16_is_amp_on_a_cpu(tiny_configs, tmp_path):
    weights_of = {}
    for flag in ('--amp', '--bf16'):
        train(tiny_configs['student'], tmp_path / flag, flag)
        weights_of[flag] = weights(tmp_path / flag / 'iter_6.pth')
    assert same(*weights_of.values())


def test_test_time_augmentation_and_saved_predictions(trained, tiny_configs, tmp_path):
    checkpoint, out = trained / 'iter_6.pth', tmp_path / 'predictions'
    output = run(TEST, tiny_configs['distilled'], checkpoint, '--tta', '--work-dir', tmp_path, '--out', out)
    assert len(miou(output)) == 3
    assert len(list(out.glob('*.png'))) == 4


def test_two_processes_train_one_student(tiny_configs, tmp_path):
    """The real tool under torchrun, without GPUs."""
    # SyncBN has no CPU version
    batch_norm = [f'model.{part}.norm_cfg.type=BN' for part in ('backbone', 'decode_head', 'auxiliary_head')]
    run(
        TRAIN,
        tiny_configs['distilled'],
        '--work-dir',
        tmp_path / 'run',
        '--launcher',
        'pytorch',
        '--cfg-options',
        *batch_norm,
        'train_cfg.max_iters=2',
        launcher=['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'],
    )
    assert [record['step'] for record in logged(tmp_path / 'run')] == [1, 2]
    checkpoint = weights(tmp_path / 'run/iter_2.pth')
    assert checkpoint.keys() == build(tiny_configs['student']).state_dict().keys()


def test_a_new_pair_as_the_guide_writes_it(scenes, tmp_path):
    """The guide's config for a pair that ships none of ours, with a smaller teacher and crop."""
    guide = (ROOT / 'docs/own_pair.md').read_text()
    text = re.search(r'```python\n(# my_pair.py.*?)```', guide, re.DOTALL)[1]
    text = text.replace('_r101', '_r18')
    teacher = build(load_config(re.search(r"config='(mmseg::.*?)'", text)[1]), pretrained=None)
    torch.save(teacher.state_dict(), tmp_path / 'teacher.pth')
    (tmp_path / 'my_pair.py').write_text(text.replace('deeplabv3_r18.pth', str(tmp_path / 'teacher.pth')))
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    options = [f'{loader}.dataset.data_root={scenes}' for loader in loaders]
    options += ['model.pretrained=None', 'model.data_preprocessor.size=(32,64)', 'train_cfg.max_iters=2']
    options += [f'{loader}.dataset.pipeline.1.scale=(96,48)' for loader in loaders[1:]]
    options += ['train_dataloader.dataset.pipeline.2.scale=(96,48)', 'default_hooks.logger.interval=1']
    options += ['train_dataloader.dataset.pipeline.3.crop_size=(32,64)']
    train(tmp_path / 'my_pair.py', tmp_path / 'run', '--cfg-options', *options)
    assert [record['distill.loss_bdd'] > 0 for record in logged(tmp_path / 'run')] == [True, True]
    assert len(text.splitlines()) <= 10


@pytest.mark.parametrize(
    'options, expected',
    [
        (['model.teacher.checkpoint=nowhere.pth'], "checkpoint 'nowhere.pth' does not exist"),
        ([f'model.teacher.checkpoint={ROOT / "LICENSE"}'], 'is no readable checkpoint'),
        (['model.teacher.config=nowhere.py'], "config 'nowhere.py' does not exist"),
        (['model.distill_losses.0.student_tap=decode_head.conv_sge'], 'Names nearby: decode_head.conv_seg'),
        (['model.distill_losses.0.tau_forward=-1'], 'tau_forward must be a positive number, got -1'),
        (['model.decode_head.num_classes=7'], 'predicts 19 classes, the student 7'),
        (
            ['train_dataloader.dataset.data_root=/nowhere'],
            "folder '/nowhere/leftImg8bit/train' does not exist",
        ),
        (['val_dataloader.dataset.data_root=/nowhere'], 'val_dataloader.dataset: folder'),
        (['train_dataloader.dataset.img_suffix=.jpeg'], "no image ending in '.jpeg'"),
    ],
)
def test_wrong_input_ends_in_one_line(monkeypatch, tiny_configs, tmp_path, options, expected):
    options = ['--work-dir', tmp_path, '--cfg-options', *options, f'experiment_name={tmp_path.name}']
    assert expected in complaint(monkeypatch, TRAIN, tiny_configs['distilled'], *options)
    assert not list(tmp_path.glob('*.pth'))


def test_wrong_arguments_end_in_one_line(monkeypatch, tiny_configs, tmp_path):
    assert 'does not exist' in complaint(monkeypatch, TRAIN, CONFIGS / 'bdd/absent.py')
    assert "'absent.pth' does not exist" in complaint(
        monkeypatch, TEST, tiny_configs['student'], 'absent.pth'
    )
    amp = ['--amp', '--cfg-options', 'optim_wrapper.type=OptimWrapperDict', '--work-dir', tmp_path]
    assert '--amp needs' in complaint(monkeypatch, TRAIN, tiny_configs['student'], *amp)


@pytest.mark.parametrize(
    'tool', ['train.py', 'test.py', 'demo.py', 'make_street_scenes.py', 'cache_teacher.py', 'study.py']
)
def test_a_python_without_mmseg_is_told_what_to_install(tool):
    done = subprocess.run(
        [sys.executable, '-S', ROOT / 'tools' / tool, '--help'],
        capture_output=True,
        text=True,
        env={'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 1
    assert 'ImportError: mmseg is not installed' in done.stderr
    assert done.stderr.rstrip().endswith('pip install ' + ' '.join(PINS))


def flags(monkeypatch, capsys, tool: Path) -> set[str]:
    monkeypatch.setattr(sys, 'argv', [str(tool), '--help'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(tool), run_name='__main__')
    return set(re.findall(r'^  (--[\w-]+)', capsys.readouterr().out, re.MULTILINE))


@pytest.mark.parametrize('name', ['train.py', 'test.py'])
def test_flags_are_mmsegs_and_few_more(monkeypatch, capsys, name):
    ours, theirs = (flags(monkeypatch, capsys, folder / name) for folder in (TRAIN.parent, MMSEG_TOOLS))
    assert len(theirs) >= 5
    assert ours - theirs == {'--verbose', '--config' if name == 'test.py' else '--bf16'}
    assert theirs <= ours


def test_hooks_are_added_once_and_may_be_given_arguments_or_left_out():
    cfg = Config(
        {
            'default_hooks': {'finite': {'max_skips': 2}, 'loss_state': None},
            'custom_hooks': [{'type': 'mmseg.ExactResumeHook'}],
        }
    )
    add_hooks(
        cfg, {'finite': 'FiniteLossHook', 'loss_state': 'LossStateHook', 'exact_resume': 'ExactResumeHook'}
    )
    assert cfg.default_hooks == {'finite': {'type': 'FiniteLossHook', 'max_skips': 2}}


def test_a_setting_that_forbids_weights_only_does_not_hinder(monkeypatch, tiny_configs, tmp_path):
    """It is what people set for mmengine's own loader."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    (tmp_path / 'text.pth').write_text('text')
    message = complaint(monkeypatch, TEST, tiny_configs['student'], tmp_path / 'text.pth')
    assert 'torch cannot read it' in message
