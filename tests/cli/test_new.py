"""`bdd-seg new`: the config of a pair, written once one step of it has run."""

import sys

import pytest
from helpers import ROOT, build, complaint
from mmengine.config import Config

from bdd_seg.cli import new
from bdd_seg.runtime.upstream.configs import load_config

TOOL = ROOT / 'bdd_seg/cli/new.py'


@pytest.fixture
def make(tiny_configs, tmp_path, monkeypatch, capsys):
    """Run the command on the tiny pair, and return what it printed and the config that it wrote."""

    def run_it(*flags, teacher=tiny_configs['teacher'], student=tiny_configs['student']):
        out = tmp_path / 'pairs/my_pair.py'
        given = (
            ['--checkpoint', str(tiny_configs['checkpoint'])] if teacher is tiny_configs['teacher'] else []
        )
        monkeypatch.setattr(
            sys, 'argv', ['new', str(teacher), str(student), '--out', str(out), *given, *flags]
        )
        new.main()
        assert [file.name for file in out.parent.iterdir()] == ['my_pair.py']
        return capsys.readouterr().out, load_config(out)

    return run_it


def test_the_config_trains_and_the_lines_tell_what_was_chosen(make, tiny_configs, batch):
    printed, cfg = make('--loss', 'BDDLoss', 'FeatureLoss')
    assert cfg.model.type == 'SegDistiller'
    assert cfg.model.decode_head == Config.fromfile(tiny_configs['student']).model.decode_head
    model = build(cfg)
    assert model.loss(*batch)['distill.loss_bdd'].isfinite()
    maps = 'decode_head.conv_seg (2, 19, 4, 8)'
    assert f"loss_bdd    3 × BDDLoss of {maps} and the teacher's {maps}" in printed
    assert 'its gradient is' in printed and "its images  the student's" in printed
    assert printed.splitlines()[-1].startswith('Train with: bdd-seg train')


def test_features_get_an_adapter(make):
    taps = ['--student-tap', 'backbone.layer4', '--teacher-tap', 'backbone.layer4']
    printed, cfg = make('--loss', 'FeatureLoss', *taps)
    assert cfg.model.distill_losses[0].student_tap == 'backbone.layer4'
    assert "(2, 32, 4, 8) and the teacher's backbone.layer4 (2, 128, 4, 8), with 4,224 parameters" in printed


def test_other_classes_get_a_map(make, tiny_configs, tmp_path, batch):
    student = tmp_path / 'camvid.py'
    student.write_text(
        f'_base_ = {str(tiny_configs["student"])!r}\n'
        'model = dict(decode_head=dict(num_classes=11), auxiliary_head=dict(num_classes=11))\n'
        "train_dataloader = dict(dataset=dict(type='CamVidDataset'))\n"
    )
    printed, cfg = make(student=student)
    assert cfg.model.teacher.class_map == 'cityscapes_to_camvid'
    assert "classes     16 of the teacher's 19 classes stand for 11 of 11" in printed


def test_weights_that_are_still_to_be_downloaded_are_random_for_the_step(make, tiny_configs):
    teacher = 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    printed, cfg = make(teacher=teacher)
    assert cfg.model.teacher.config == teacher
    assert cfg.model.teacher.checkpoint.startswith('https://')
    assert f'random for this step; a training downloads {cfg.model.teacher.checkpoint}' in printed


def test_a_cascade_gets_its_distiller(make, tiny_configs, tmp_path):
    student = tmp_path / 'cascade.py'
    head = "dict(type='FCNHead', in_channels=32, channels=8, num_classes=19, norm_cfg=dict(type='BN'))"
    ocr = (
        "dict(type='OCRHead', in_channels=32, channels=8, ocr_channels=8, num_classes=19, "
        "norm_cfg=dict(type='BN'))"
    )
    student.write_text(
        f'_base_ = {str(tiny_configs["student"])!r}\n'
        f"model = dict(type='CascadeEncoderDecoder', num_stages=2, decode_head=[{head}, {ocr}])\n"
    )
    printed, cfg = make(student=student)
    assert cfg.model.type == 'CascadeSegDistiller'
    assert 'decode_head.1.conv_seg (2, 19, 4, 8)' in printed


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda p: ['nope.py', p['student']], "config 'nope.py' does not exist"),
        (lambda p: [p['teacher'], p['student']], 'give its weights, --checkpoint'),
        (lambda p: [p['teacher'], p['distilled'], '--checkpoint', p['checkpoint']], 'trains alone'),
        (
            lambda p: [p['teacher'], p['student'], '--checkpoint', 'no.pth'],
            "checkpoint 'no.pth' does not exist",
        ),
        (
            lambda p: [p['teacher'], p['student'], '--checkpoint', p['checkpoint'], '--loss', 'BDLoss'],
            'Did you mean BDDLoss',
        ),
        (
            lambda p: [
                p['teacher'],
                p['student'],
                '--checkpoint',
                p['checkpoint'],
                '--teacher-tap',
                'backbone.layer9',
            ],
            "'backbone.layer9' names no module",
        ),
    ],
)
def test_wrong_inputs_end_in_a_line_and_leave_no_file(tiny_configs, tmp_path, monkeypatch, change, message):
    out = tmp_path / 'out/pair.py'
    said = complaint(monkeypatch, TOOL, *change(tiny_configs), '--out', out)
    assert message in said
    assert not [*out.parent.glob('*')]


def test_a_file_is_not_overwritten(tiny_configs, tmp_path, monkeypatch):
    out = tmp_path / 'pair.py'
    out.write_text('mine')
    said = complaint(monkeypatch, TOOL, tiny_configs['teacher'], tiny_configs['student'], '--out', out)
    assert 'exists. Choose another name, or add --force' in said
    assert out.read_text() == 'mine'
    assert 'must be a Python file' in complaint(monkeypatch, TOOL, 'a.py', 'b.py', '--out', tmp_path / 'pair')
