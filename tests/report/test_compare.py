"""bdd-seg compare: two networks in the terminal."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, complaint
from mmengine.config import Config
from safetensors.torch import save_file
from written_runs import write_config, write_run

from bdd_seg.cli import compare
from bdd_seg.deploy.about import About
from bdd_seg.deploy.load import load_trained
from bdd_seg.report.collect import Options, collect
from bdd_seg.report.runs import normal_path
from bdd_seg.report.terminal import confusion_changes

TOOL = ROOT / 'bdd_seg/cli/compare.py'


@pytest.fixture(scope='module')
def runs(tiny_configs, tmp_path_factory) -> Path:
    """Work dirs of the tiny student alone and distilled, with other random weights."""
    folder = tmp_path_factory.mktemp('runs')
    write_run(folder / 'alone', tiny_configs['student'], seed=1)
    write_run(folder / 'distilled', tiny_configs['distilled'], seed=2)
    write_run(folder / 'twin', tiny_configs['distilled'], seed=1)
    return folder


@pytest.fixture
def printed(monkeypatch, capsys):
    def run(*words) -> str:
        monkeypatch.setattr(sys, 'argv', ['bdd-seg compare', *map(str, words)])
        compare.main()
        return capsys.readouterr().out

    return run


def row(text: str, name: str) -> list[float]:
    """The numbers of a row: A, B, and B − A."""
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return [float(number.replace('−', '-')) for number in re.findall(r'[+−]?\d+\.\d+(?!\d)', line)[-3:]]


def test_twenty_lines(printed, runs):
    text = printed(runs / 'alone', runs / 'distilled')
    report = collect([runs / 'alone', runs / 'distilled'], Options(pictures=0, find_teacher=False))
    alone, distilled = report.first('alone'), report.first('distilled')
    values = {
        'mIoU (%)': (alone.miou, distilled.miou),
        'boundary IoU (%)': (alone.evaluation.boundary_miou, distilled.evaluation.boundary_miou),
        'pixel accuracy (%)': (alone.evaluation.pixel_accuracy, distilled.evaluation.pixel_accuracy),
        'calibration error (%)': tuple(100 * one.evaluation.calibration.error for one in (alone, distilled)),
        'parameters (M)': (alone.parameters / 1e6, distilled.parameters / 1e6),
        'GFLOPs at 48×96': (alone.flops / 1e9, distilled.flops / 1e9),
    }
    for name, (one, two) in values.items():
        assert row(text, name) == pytest.approx([one, two, two - one], abs=0.0051)
    assert row(text, 'latency (ms), 1 CPU thread')[0] > 0
    assert 'latency: the network on one prepared image, without the resize of its logits' in text
    gains = distilled.evaluation.ious - alone.evaluation.ious
    best = int(np.nanargmax(gains))
    assert f'gained most: {report.classes[best]} +{gains[best]:.1f}' in text
    worst = int(np.nanargmin(gains))
    assert f'lost most: {report.classes[worst]} −{-gains[worst]:.1f}' in text
    assert "  − model.type = 'EncoderDecoder'\n  + model.type = 'SegDistiller'" in text
    assert 'configs: 5 lines differ (− A, + B)' in text
    assert 'Their seeds differ (1 and 2)' in text and 'randomness.seed=0' in text
    assert 'seeds differ' not in printed(runs / 'alone', runs / 'twin')
    assert len(text.splitlines()) <= 26


def test_the_order_is_that_of_the_command(printed, runs):
    forth, back = printed(runs / 'alone', runs / 'distilled'), printed(runs / 'distilled', runs / 'alone')
    assert row(forth, 'mIoU')[:2] == row(back, 'mIoU')[1::-1]
    assert row(forth, 'mIoU')[2] == -row(back, 'mIoU')[2]


def test_paths_are_shown_without_detours(printed, runs):
    text = printed(runs / 'alone/../alone', runs / 'alone/../distilled/iter_6.pth')
    assert f'A: {runs}/alone\n' in text and f'B: {runs}/distilled/iter_6.pth\n' in text


def test_a_detour_through_a_link_stays(tmp_path):
    (tmp_path / 'a/b').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'a/b')
    assert normal_path(tmp_path / 'link/../b') == f'{tmp_path}/link/../b'
    assert normal_path(tmp_path / 'a/b/../c') == f'{tmp_path}/a/c'


def test_confusions_in_percent_of_the_true_class():
    first = np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]])
    second = np.array([[16, 0, 4], [5, 5, 0], [0, 0, 0]])
    assert confusion_changes(first, second) == [(1, 0, 50.0), (0, 1, -20.0), (0, 2, 20.0)]
    assert confusion_changes(first, first) == []


def write_convolution(file: Path, about: About, size=(48, 96)) -> None:
    """Write an ONNX file as bdd-seg export does, of a network that is one convolution."""
    onnx = pytest.importorskip('onnx')
    weight = onnx.numpy_helper.from_array(
        np.random.default_rng(0).normal(size=(19, 3, 8, 8)).astype('f'), 'w'
    )
    node = onnx.helper.make_node('Conv', ['image', 'w'], ['logits'], strides=[8, 8])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (('image', [1, 3, *size]), ('logits', [1, 19, size[0] // 8, size[1] // 8]))
    ]
    graph = onnx.helper.make_graph([node], 'g', ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8)
    onnx.helper.set_model_props(model, {'bdd_seg': about.model_dump_json()})
    onnx.save(model, file)


def test_exported_files(printed, runs, tmp_path, tiny_configs, monkeypatch):
    """A file that runs without a config, and plain weights with their config beside them."""
    trained = load_trained(runs / 'alone/iter_6.pth')
    about = trained.about.model_copy(update={'size': (48, 96)})
    exported, plain = tmp_path / 'convolution.onnx', tmp_path / 'student.safetensors'
    write_convolution(exported, about)
    save_file(trained.model.state_dict(), plain)
    write_config(tmp_path / 'student.py', Config.fromfile(tiny_configs['student']))
    text = printed(exported, plain, '--config', tiny_configs['student'])
    own = row(printed(runs / 'alone', runs / 'distilled'), 'mIoU')[0]
    assert row(text, 'mIoU')[1] == pytest.approx(own, abs=0.0051) and row(text, 'mIoU')[0] > 0
    assert re.search(r'^role +exported +plain', text, re.MULTILINE)
    small = tmp_path / 'small.onnx'
    write_convolution(small, about.model_copy(update={'size': (24, 48)}), (24, 48))
    text = printed(small, exported, '--config', tiny_configs['student'])
    assert 'small.onnx (takes images of 24 × 48 pixels, to which others are resized)' in text
    moved = about.model_copy(update={'classes': (*about.classes[1:], about.classes[0])})
    write_convolution(tmp_path / 'moved.onnx', moved)
    message = complaint(
        monkeypatch, TOOL, tmp_path / 'moved.onnx', plain, '--config', tiny_configs['student']
    )
    assert 'moved.onnx was trained for other classes than the images have: 19 against 19' in message


def test_wrong_inputs(monkeypatch, runs, tiny_configs, tmp_path):
    alone = runs / 'alone'
    assert 'A and B are the same network' in complaint(monkeypatch, TOOL, alone, alone)
    message = complaint(monkeypatch, TOOL, runs, alone)
    assert 'holds 3 networks, and two are compared. Give one of' in message and f"'{alone}'" in message
    begun = write_run(tmp_path / 'begun', tiny_configs['student'], None)
    assert 'has no checkpoint yet: there is nothing to compare' in complaint(monkeypatch, TOOL, alone, begun)
    (tmp_path / 'model.onnx').write_bytes(b'')
    message = complaint(monkeypatch, TOOL, tmp_path / 'model.onnx', tmp_path / 'absent')
    assert "absent' does not exist" in message
    (tmp_path / 'other.onnx').write_bytes(b'')
    message = complaint(monkeypatch, TOOL, tmp_path / 'model.onnx', tmp_path / 'other.onnx')
    assert 'names no images to evaluate it on. Name a config that does: --config CONFIG.py' in message
