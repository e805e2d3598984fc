"""`bdd-seg new`: the config of a pair, written once one step of it has run."""

import sys
from pathlib import Path

import pytest
from helpers import ROOT, build, complaint
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

from bdd_seg.cli import new
from bdd_seg.runtime.upstream.configs import load_config

TOOL = ROOT / 'bdd_seg/cli/new.py'


def network(pretrained: bool, width: int) -> nn.Module:
    """Return a network of 19 classes, as a function of a user's own may."""
    assert pretrained
    return nn.Sequential(nn.Conv2d(3, width, 3, 8, 1), nn.Conv2d(width, 19, 1))


# It costs a fraction of what an mmseg teacher does.
NETWORK = f'{__name__}:network'
OPTIONS = ['mean=None', 'std=None', 'arguments.width=6', 'arguments.pretrained=True']


@pytest.fixture
def make(tiny_configs, tmp_path, monkeypatch, capsys):
    """Run the command on a student, and return what it printed and the config that it wrote."""

    def run_it(teacher, *flags, student=tiny_configs['student']):
        out = tmp_path / 'pairs/my_pair.py'
        if teacher is tiny_configs['teacher']:
            flags = ['--checkpoint', tiny_configs['checkpoint'], *flags]
        if teacher == NETWORK:
            flags = ['--teacher-options', *OPTIONS, *flags]
        words = ['new', teacher, student, '--out', out, *flags]
        monkeypatch.setattr(sys, 'argv', [*map(str, words)])
        new.main()
        assert [file.name for file in out.parent.iterdir()] == ['my_pair.py']
        return capsys.readouterr().out, load_config(out)

    return run_it


def changed(tiny_configs, folder, text) -> Path:
    """Write a config with the tiny student as its base."""
    file = folder / 'student.py'
    file.write_text(f'_base_ = {str(tiny_configs["student"])!r}\n{text}')
    return file


def test_the_config_trains_and_the_lines_tell_what_was_chosen(make, tiny_configs, batch):
    printed, cfg = make(tiny_configs['teacher'], '--loss', 'BDDLoss', 'FeatureLoss')
    assert cfg.model.type == 'SegDistiller'
    assert cfg.model.decode_head == Config.fromfile(tiny_configs['student']).model.decode_head
    model = build(cfg)
    assert model.loss(*batch)['distill.loss_bdd'].isfinite()
    maps = 'decode_head.conv_seg (2, 19, 4, 8)'
    assert f"loss_bdd    BDDLoss, weight 3, of {maps} and the teacher's {maps}" in printed
    assert 'its gradient is' in printed and "its images  the student's" in printed
    assert printed.splitlines()[-1].startswith('Train with: bdd-seg train')


def test_modules_that_the_student_imports_are_kept(make, tiny_configs, tmp_path):
    student = changed(tiny_configs, tmp_path, "custom_imports = dict(imports='colorsys')\n")
    _, cfg = make(NETWORK, student=student)
    assert cfg.custom_imports.imports == ['bdd_seg', 'colorsys']


def test_features_get_an_adapter(make, tiny_configs):
    taps = ['--student-tap', 'backbone.layer4', '--teacher-tap', 'backbone.layer4']
    printed, cfg = make(tiny_configs['teacher'], '--loss', 'FeatureLoss', *taps)
    assert cfg.model.distill_losses[0].student_tap == 'backbone.layer4'
    assert "(2, 32, 4, 8) and the teacher's backbone.layer4 (2, 128, 4, 8), with 4,224 parameters" in printed


@MODELS.register_module()
class Unweighted(nn.Module):
    """A loss of the user's own, with a name alone."""

    loss_name = 'loss_unweighted'

    def forward(self, student, teacher, seg_label, align_corners, mask=None):
        return (student - teacher).square().mean()


def test_a_loss_of_ones_own_needs_no_weight(make):
    printed, _ = make(NETWORK, '--loss', 'Unweighted')
    assert 'loss_unweighted Unweighted, of decode_head.conv_seg (2, 19, 4, 8) and' in printed


def test_other_classes_get_a_map(make, tiny_configs, tmp_path):
    text = (
        'model = dict(decode_head=dict(num_classes=11), auxiliary_head=dict(num_classes=11))\n'
        "train_dataloader = dict(dataset=dict(type='CamVidDataset'))\n"
    )
    printed, cfg = make(tiny_configs['teacher'], student=changed(tiny_configs, tmp_path, text))
    assert cfg.model.teacher.class_map == 'cityscapes_to_camvid'
    assert "classes     16 of the teacher's 19 classes stand for 11 of 11" in printed


def test_weights_that_are_still_to_be_downloaded_are_random_for_the_step(make):
    teacher = 'mmseg::cgnet/cgnet_fcn_4xb4-60k_cityscapes-680x680.py'
    printed, cfg = make(teacher)
    assert cfg.model.teacher.config == teacher
    assert cfg.model.teacher.checkpoint.startswith('https://')
    assert f'random for this step; a training downloads {cfg.model.teacher.checkpoint}' in printed


def test_arguments_of_a_function_and_weights_that_cannot_be_fetched(make, tiny_configs, tmp_path):
    """The student's pretrained weights are left out, in a list, too; what the teacher is asked for is not."""
    fetched = "[dict(type='Kaiming', layer='Conv2d'), dict(type='Pretrained', checkpoint='https://x.invalid/r.pth')]"
    text = f'model = dict(backbone=dict(init_cfg={fetched}))'
    printed, cfg = make(NETWORK, student=changed(tiny_configs, tmp_path, text))
    assert cfg.model.teacher.arguments == dict(width=6, pretrained=True)
    assert len(cfg.model.backbone.init_cfg) == 2
    assert "the teacher's logits (2, 19, 4, 8)" in printed


def test_a_student_that_recomputes_activations(make, tiny_configs, tmp_path):
    text = 'model = dict(backbone=dict(with_cp=True))'
    printed, cfg = make(NETWORK, student=changed(tiny_configs, tmp_path, text))
    assert cfg.model.backbone.with_cp
    assert 'loss_bdd    BDDLoss, weight 3' in printed
    assert 'its gradient is' not in printed  # that of one loss alone cannot be computed


def test_a_student_that_takes_images_of_one_size(make, tiny_configs, tmp_path):
    backbone = (
        "dict(_delete_=True, type='BEiT', img_size=(288, 288), patch_size=32, embed_dims=32, num_layers=1, "
        'num_heads=1, mlp_ratio=1, out_indices=(0,), qv_bias=True, init_values=0.1)'
    )
    text = (
        'model = dict(data_preprocessor=dict(size=(288, 288)), auxiliary_head=None, '
        f'decode_head=dict(in_index=0), backbone={backbone})\n'
    )
    printed, _ = make(NETWORK, student=changed(tiny_configs, tmp_path, text))
    assert 'decode_head.conv_seg (2, 19, 9, 9)' in printed


def test_class_names_are_mapped_unless_they_shall_not_be_compared(make):
    names = ['road', 'sidewalk', *(f'thing {i}' for i in range(17))]
    stated = f'class_names=[{",".join(names)}]'
    _, cfg = make(NETWORK, stated)
    assert cfg.model.teacher.class_map['road'] == 'road'
    _, cfg = make(NETWORK, stated, 'check_class_names=False', '--force')
    assert 'class_map' not in cfg.model.teacher


def test_a_cascade_gets_its_distiller(make, tiny_configs, tmp_path):
    head = "dict(type='FCNHead', in_channels=32, channels=8, num_classes=19, norm_cfg=dict(type='BN'))"
    ocr = (
        "dict(type='OCRHead', in_channels=32, channels=8, ocr_channels=8, num_classes=19, "
        "norm_cfg=dict(type='BN'))"
    )
    text = f"model = dict(type='CascadeEncoderDecoder', num_stages=2, decode_head=[{head}, {ocr}])"
    printed, cfg = make(NETWORK, student=changed(tiny_configs, tmp_path, text))
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
        (
            lambda p: [p['checkpoint'], p['student']],
            'is a checkpoint. Give the config that trained it, and --checkpoint',
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
