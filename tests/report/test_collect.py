"""bdd-seg report: from work dirs, studies and exported files to the content of the page."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, build, complaint, logged, train
from mmengine.config import Config
from mmseg.models import EncoderDecoder
from PIL import Image
from written_runs import write_config, write_run

from bdd_seg.cli import report as command
from bdd_seg.errors import ConfigError
from bdd_seg.report import networks, subjects
from bdd_seg.report.collect import Options, collect
from bdd_seg.report.data import Report
from bdd_seg.report.gallery import both_ends, choose
from bdd_seg.report.subjects import live_teacher
from bdd_seg.teachers.segmentors import run as run_segmentor

TOOL = ROOT / 'bdd_seg/cli/report.py'


@pytest.fixture(scope='module')
def runs(tiny_configs, tmp_path_factory) -> Path:
    """Work dirs of the tiny pair: the distilled student trained, the one alone written."""
    folder = tmp_path_factory.mktemp('runs')
    train(tiny_configs['distilled'], folder / 'distilled')
    write_run(folder / 'alone', tiny_configs['student'])
    return folder


@pytest.fixture(scope='module')
def report(runs) -> Report:
    return collect([runs / 'distilled', runs / 'alone'], Options(pictures=1, command='bdd-seg report x'))


def test_three_networks_on_the_same_images(report, runs, tiny_configs):
    assert [network.key for network in report.networks] == ['teacher', 'alone', 'distilled']
    assert report.dataset.startswith('4 images of CityscapesDataset')
    assert len(report.classes) == len(report.palette) == 19 and report.image_size == (48, 96)
    pixels = {network.evaluation.confusion.sum() for network in report.networks}
    assert len(pixels) == 1 and pixels.pop() > 0.9 * 4 * 48 * 96
    for network in report.networks:
        assert len(network.evaluation.image_mious) == 4
        assert network.evaluation.calibration.pixels.sum() == network.evaluation.confusion.sum()
        assert network.latency > 0 and network.flops > 0
    teacher, alone, distilled = report.networks
    assert teacher.label == 'teacher' and teacher.source == str(tiny_configs['checkpoint'])
    assert teacher.parameters > alone.parameters == distilled.parameters
    assert alone.latency == distilled.latency  # one network, measured once
    assert {network.device for network in report.networks} == {'1 CPU thread'}


def test_the_scores_are_those_of_the_training(report, runs):
    """The validation after the last iteration, by mmseg."""
    lines = [line for file in (runs / 'distilled').glob('*/vis_data/scalars.json') for line in file.open()]
    scores = next(record for record in map(json.loads, lines) if 'mIoU' in record)
    network = report.first('distilled')
    assert network.miou == pytest.approx(scores['mIoU'], abs=0.006)
    assert network.evaluation.pixel_accuracy == pytest.approx(scores['aAcc'], abs=0.006)
    curves = {curve.name: curve for curve in network.curves}
    np.testing.assert_allclose(
        curves['loss'].values, [record['loss'] for record in logged(runs / 'distilled')]
    )
    assert curves['mIoU'].iterations == [6] and curves['distill.loss_bdd'].values[0] > 0


def test_cost_is_that_of_inference(report, tiny_configs):
    """The auxiliary head does not count."""
    model = build(Config.fromfile(tiny_configs['student'])).eval()
    of_auxiliary = sum(parameter.numel() for parameter in model.auxiliary_head.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert report.first('distilled').parameters == total - of_auxiliary
    # The convolution that puts out logits has 8·19 weights at each of the 6×12 positions, and there are more.
    assert run_segmentor(model, torch.zeros(1, 3, 48, 96)).shape[1:] == (19, 6, 12)
    assert report.first('distilled').flops > 8 * 19 * 6 * 12


def test_pictures(report):
    gains = report.first('distilled').evaluation.image_mious - report.first('alone').evaluation.image_mious
    assert [picture.gain for picture in report.pictures] == pytest.approx([gains.max(), gains.min()])
    for picture in report.pictures:
        keys = ('teacher', 'alone', 'distilled')
        assert set(picture.layers) == {'image', 'truth', *keys, *(f'error.{key}' for key in keys)}
        opened = {key: Image.open(io.BytesIO(content)) for key, content in picture.layers.items()}
        assert {image.size for image in opened.values()} == {(96, 48)}
        assert {image.format for image in opened.values()} == {'JPEG', 'PNG'}
        assert picture.name.endswith('_leftImg8bit.png') and '/' not in picture.name
        truth, answer = (np.array(opened[key].convert('RGB')).astype(int) for key in ('truth', 'alone'))
        marked = np.array(opened['error.alone'].convert('RGB')).astype(int)
        wrong = (truth != answer).any(-1) & truth.any(-1)
        red = marked[..., 0] - marked[..., 2]
        assert red[wrong].mean() > red[~wrong].mean() + 80  # JPEG blurs colours


def test_what_makes_it_again(report, runs):
    assert report.commands[-1] == 'bdd-seg report x'
    assert any(
        line.startswith('bdd-seg test ') and 'distilled/iter_6.pth' in line for line in report.commands
    )
    assert report.environment['torch'] == torch.__version__ and 'bdd-seg' in report.environment
    assert any('2% of the diagonal' in note for note in report.notes)


def test_a_second_call_opens_no_network(report, runs, monkeypatch):
    monkeypatch.setattr(subjects, 'load_model', lambda *arguments: pytest.fail('opened for nothing'))
    monkeypatch.setattr(subjects, 'MODELS', None)
    monkeypatch.setattr(networks, 'in_turns', None)
    again = collect([runs / 'distilled', runs / 'alone'], Options(pictures=1))
    for one, two in zip(report.networks, again.networks, strict=True):
        np.testing.assert_array_equal(one.evaluation.confusion, two.evaluation.confusion)
        assert (one.parameters, one.flops, one.latency) == (two.parameters, two.flops, two.latency)
    assert [picture.layers for picture in again.pictures] == [picture.layers for picture in report.pictures]


def test_another_checkpoint_is_evaluated_anew(report, runs, tiny_configs, tmp_path):
    work_dir = shutil.copytree(runs / 'alone', tmp_path / 'alone')
    shutil.copy(runs / 'distilled/iter_6.pth', work_dir / 'iter_6.pth')
    (network,) = collect([work_dir], Options(pictures=0)).networks
    assert network.role == 'plain' and network.note == ''
    np.testing.assert_array_equal(
        network.evaluation.confusion, report.first('distilled').evaluation.confusion
    )


def test_latencies_of_other_networks_are_taken_again(report, runs, tiny_configs, tmp_path, monkeypatch):
    """In an earlier report a network took turns with others."""
    work_dir = shutil.copytree(runs / 'alone', tmp_path / 'alone')
    cfg = Config.fromfile(tiny_configs['student'])
    cfg.model.test_cfg = dict(mode='slide', crop_size=(32, 64), stride=(16, 48))
    other = write_run(tmp_path / 'windows', cfg)
    calls, plain = [], EncoderDecoder._forward

    def forward(self, inputs, data_samples=None):
        logits = plain(self, inputs, data_samples)
        calls.append((inputs.shape[2:], logits.shape[2:]))
        return logits

    def in_turns(forms, seconds):
        with monkeypatch.context() as patch:
            patch.setattr(EncoderDecoder, '_forward', forward)
            patch.setattr(EncoderDecoder, 'predict', None)
            for form in forms.values():
                form()
        return {name: [1000.0 * (number + 1)] for number, name in enumerate(forms)}

    monkeypatch.setattr(networks, 'in_turns', in_turns)
    assert collect([work_dir], Options(pictures=0)).networks[0].latency == 1.0 != report.networks[1].latency
    calls.clear()
    first, second = collect([work_dir, other], Options(pictures=0)).networks
    assert (first.latency, second.latency) == (1.0, 2.0)
    # The network alone, logits on its own grid; the other one in 2 × 2 windows, as in the evaluation.
    assert calls == [((48, 96), (6, 12))] + 4 * [((32, 64), (4, 8))]
    assert second.flops == pytest.approx(4 * first.flops * (32 * 64) / (48 * 96), rel=0.1)
    calls.clear()
    assert collect([other, work_dir], Options(pictures=0)).networks[1].latency == 1.0 and calls == []


def test_the_gallery_compares_what_the_page_compares(runs, tmp_path):
    second = shutil.copytree(runs / 'distilled', tmp_path / 'second')
    shutil.copy(runs / 'alone/iter_6.pth', second / 'iter_6.pth')
    found = collect([runs / 'distilled', second], Options(pictures=1))
    assert [network.key for network in found.networks] == ['teacher', 'distilled', 'distilled-2']
    assert [network.key for network in found.compared] == ['distilled', 'distilled-2']
    for picture in found.pictures:
        assert picture.gain == picture.mious['distilled-2'] - picture.mious['distilled'] != 0


def test_a_network_that_fails_leaves_the_others(report, runs, tiny_configs, tmp_path):
    bad, nan = (shutil.copytree(runs / 'alone', tmp_path / name) for name in ('bad', 'nan'))
    content = torch.load(bad / 'iter_6.pth')
    content['state_dict']['decode_head.conv_seg.bias'].fill_(float('nan'))
    torch.save(content, nan / 'iter_6.pth')
    content['state_dict']['decode_head.conv_seg.bias'] = torch.zeros(7)
    torch.save(content, bad / 'iter_6.pth')
    found = collect([runs / 'alone', bad, nan], Options(pictures=0))
    alone, bad_one, nan_one = found.networks
    assert alone.miou == report.first('alone').miou and 'not finite' not in alone.note
    assert bad_one.evaluation is None and 'conv_seg.bias' in bad_one.note
    assert any(note.startswith('bad is not evaluated: ') for note in found.notes)
    assert nan_one.evaluation.calibration is None
    assert 'its probabilities are not all finite (NaN), so it has no calibration' in nan_one.note
    with pytest.raises(ConfigError, match='conv_seg.bias'):
        collect([bad], Options(pictures=0))


def test_other_classes_than_the_images_have(runs, tiny_configs, tmp_path):
    content = torch.load(runs / 'alone/iter_6.pth')
    names = collect([runs / 'alone'], Options(pictures=0)).classes
    for name, classes in (
        ('same', [one.replace(' ', '_').title() for one in names]),
        ('moved', [*names[1:], names[0]]),
    ):
        work_dir = shutil.copytree(runs / 'alone', tmp_path / name)
        torch.save({**content, 'meta': {'dataset_meta': {'classes': classes}}}, work_dir / 'iter_6.pth')
    options = Options(pictures=0, config=str(tiny_configs['student']))
    same, moved = collect([tmp_path / 'same', tmp_path / 'moved'], options).networks
    assert same.evaluation is not None and moved.evaluation is None
    assert "19 against 19, the first that differ are 'sidewalk' and 'road'" in moved.note


def test_the_page(report, runs, tmp_path, monkeypatch, capsys):
    pytest.importorskip('plotly')
    out = tmp_path / 'page.html'
    words = [runs / 'alone', runs / 'distilled', '--out', out, '--images', 1]
    monkeypatch.setattr(sys, 'argv', ['bdd-seg report', *map(str, words)])
    command.main()
    printed = capsys.readouterr().out
    scores = ', '.join(f'{network.label} {network.miou:.2f}' for network in report.networks)
    assert f'mIoU: {scores}\n' in printed and f'{out} (' in printed
    assert f'{report.first("distilled").miou:.1f}' in out.read_text()


def test_a_run_without_checkpoint_has_its_curves(report, runs, tmp_path, tiny_configs, monkeypatch, capsys):
    work_dir = write_run(tmp_path / 'begun', tiny_configs['student'], None)
    found = collect([work_dir], Options())
    assert found.networks[0].evaluation is None and found.networks[0].note == 'has no checkpoint yet'
    assert [curve.name for curve in found.networks[0].curves] == ['loss', 'lr']
    assert found.pictures == [] and found.classes == [] and found.image_size is None
    monkeypatch.setattr(sys, 'argv', ['bdd-seg report', str(work_dir), '--out', str(tmp_path / 'page.html')])
    command.main()
    assert capsys.readouterr().out.startswith('begun: has no checkpoint yet\nno network could be evaluated\n')
    both = collect([work_dir, runs / 'alone'], Options(pictures=1))
    assert [network.evaluation is None for network in both.networks] == [True, False]
    assert both.pictures[0].gain is None


def test_a_teacher_that_cannot_be_built_is_noted(runs, tmp_path):
    work_dir = shutil.copytree(runs / 'distilled', tmp_path / 'distilled')
    for file in [work_dir / 'distilled.py', *work_dir.glob('*/vis_data/config.py')]:
        cfg = Config.fromfile(file)
        cfg.model.teacher.checkpoint = str(tmp_path / 'gone.pth')
        write_config(file, cfg)
    found = collect([work_dir], Options(pictures=0))
    teacher, distilled = found.networks
    assert teacher.evaluation is None and 'gone.pth' in teacher.note and distilled.evaluation is not None
    assert any(note.startswith('The teacher is not evaluated: ') for note in found.notes)
    assert found.gap_closed is None


def test_a_teacher_of_other_classes(runs, tiny_configs, tmp_path):
    """It answers in the student's classes, and pixels of classes unknown to it do not count."""
    classes = collect([runs / 'alone'], Options(pictures=0)).classes
    cfg = Config.fromfile(tiny_configs['distilled'])
    content = torch.load(tiny_configs['checkpoint'])
    known = {name: name for name in classes[:10]} | {'car': 'truck'}
    torch.save({**content, 'meta': {'dataset_meta': {'classes': classes}}}, tmp_path / 'teacher.pth')
    cfg.model.teacher.update(checkpoint=str(tmp_path / 'teacher.pth'), class_map=known)
    work_dir = write_run(tmp_path / 'distilled', cfg)
    cfg.model.pretrained = 'absent.pth'  # of the beginning of its training
    write_config(next(work_dir.glob('*/vis_data/config.py')), cfg)
    found = collect([work_dir], Options(pictures=0))
    teacher, distilled = (network.evaluation.confusion for network in found.networks)
    unknown = [i for i, name in enumerate(classes) if name not in known.values()]
    assert teacher[unknown].sum() == teacher[:, unknown].sum() == 0
    kept = [i for i in range(19) if i not in unknown]
    np.testing.assert_array_equal(teacher[kept].sum(1), distilled[kept].sum(1))
    assert any('unknown to the teacher' in note and 'bicycle' in note for note in found.notes)


@pytest.mark.parametrize('cache', [{}, {'type': 'CachedTeacher', 'cache': '/absent'}])
def test_settings_of_a_live_teacher(cache):
    live = {'type': 'MMSegTeacher', 'config': 'a.py', 'checkpoint': 'a.pth'}
    assert live_teacher(Config({'model': {'teacher': {**live, **cache}}})) == live


def test_a_cache_alone_names_no_teacher():
    cfg = Config({'model': {'teacher': {'type': 'CachedTeacher', 'cache': 'c'}}})
    with pytest.raises(ConfigError, match="names the cached outputs 'c' alone"):
        live_teacher(cfg)


def test_other_images_are_refused_unless_they_are_named(runs, tiny_configs, tmp_path, scenes, monkeypatch):
    cfg = Config.fromfile(tiny_configs['student'])
    copied = shutil.copytree(scenes, tmp_path / 'scenes')
    cfg.val_dataloader.dataset.data_root = str(copied)
    other = write_run(tmp_path / 'other', cfg)
    message = complaint(monkeypatch, TOOL, runs / 'alone', other)
    assert 'other cannot be compared' in message and message.endswith('--config CONFIG.py')
    options = Options(pictures=0, config=str(tiny_configs['student']), max_images=2)
    found = collect([runs / 'alone', other], options)
    assert found.dataset.startswith('2 of 4 images')
    assert found.notes[0] == 'Scores are those of 2 of 4 images.'


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['absent'], "'absent' does not exist"),
        (['.', '--out', '/absent/page.html'], "--out '/absent/page.html' is in a folder that does not exist"),
        (['.', '--out', 'model.pth'], "--out 'model.pth' is no .html file. Give one, such as report.html"),
        (['./page.html', '--out', 'page.html'], "--out 'page.html' is one of the networks"),
        (['.', '--max-images', '0'], '--max-images must be at least 1, not 0'),
        (['.', '--images', '-1'], '--images must be at least 0, not -1'),
    ],
)
def test_wrong_flags(words, message, monkeypatch):
    assert message in complaint(monkeypatch, TOOL, *words)


def test_the_ends_of_the_gains():
    gains = np.array([1.0, -3.0, np.nan, 2.0, 0.0, -1.0])
    assert choose(gains, 1) == [3, 1]
    assert choose(gains, 2) == [3, 0, 5, 1]
    assert choose(gains, 9) == [3, 0, 4, 5, 1]
    assert choose(gains, 3) == [3, 0, 4, 5, 1]
    # None is hurt, and so none fills that half.
    assert choose(gains + 4, 2) == [3, 0] and choose(gains - 4, 1) == [1]
    assert both_ends(gains + 4, 1) == [3, 1] and both_ends(gains + 4, 9) == [3, 0, 4, 5, 1]
