"""benchmarks/divergence_gradients.py: a probe that changes nothing, and what it writes down."""

import json

import numpy as np
import pytest
import torch
from divergence_gradients import GradientProbe
from helpers import ROOT, logged_losses, run, train
from scipy.special import softmax

TOOL = ROOT / 'benchmarks/divergence_gradients.py'


def test_the_gradients_are_those_of_the_closed_form():
    """Norms, cosine, divergences and shares, of one image with two classes and 2×3 positions."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 1, 2, 2, 3))
    label = torch.tensor([[[0, 1, 0], [0, 0, 1]]])
    probe = GradientProbe('channel', tau=2.0, interval=1)
    value = probe(torch.tensor(student), torch.tensor(teacher), seg_label=label, align_corners=False)
    assert value == 0
    p, q = (softmax(maps.reshape(2, 6) / 2.0, axis=-1) for maps in (teacher, student))
    forward = 2.0 * (q - p) / 2
    kl = (q * np.log(q / p)).sum(-1, keepdims=True)
    reverse = 2.0 * q * (np.log(q / p) - kl) / 2
    (record,) = probe.records
    assert record['norm forward'] == pytest.approx(np.linalg.norm(forward), rel=1e-5)
    assert record['norm reverse'] == pytest.approx(np.linalg.norm(reverse), rel=1e-5)
    cosine = (forward * reverse).sum() / np.linalg.norm(forward) / np.linalg.norm(reverse)
    assert record['cosine'] == pytest.approx(cosine, rel=1e-5)
    assert record['forward divergence'] == pytest.approx(4.0 * (p * np.log(p / q)).sum() / 2, rel=1e-5)
    shares = 100 * np.abs(forward).sum(-1) / np.abs(forward).sum()
    assert record['classes forward'] == pytest.approx(shares.tolist(), rel=1e-5)
    wrong = teacher.argmax(1) != label.numpy()
    at_wrong = np.abs(reverse).reshape(2, 2, 3)[:, wrong[0]].sum() / np.abs(reverse).sum()
    assert record['teacher wrong reverse (%)'] == pytest.approx(100 * at_wrong, rel=1e-5)


def test_ignored_pixels_do_not_count():
    maps = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    label[:, :2] = 255
    records = []
    for change in (0.0, 5.0):
        student = maps[0].clone()
        student[:, :, :2] += change * torch.randn(1, 3, 2, 4)
        probe = GradientProbe('channel', tau=1.0, interval=1)
        probe(student, maps[1], seg_label=label, align_corners=False)
        records.append(probe.records)
    assert records[0] == records[1]


def test_the_training_is_the_same_with_the_probe(tiny_configs, tmp_path):
    train(tiny_configs['distilled'], tmp_path / 'plain')
    output = run(TOOL, tiny_configs['distilled'], '--work-dir', tmp_path / 'probed', '--interval', 4)
    found = json.loads((tmp_path / 'probed/gradients.json').read_text())
    assert [record['iteration'] for record in found['records']] == [0, 4]
    assert len(found['classes']) == 19 == len(found['records'][0]['classes reverse'])
    assert '| iteration | forward divergence |' in output
    losses = [
        {key: value for key, value in record.items() if key != 'distill.loss_probe'}
        for record in logged_losses(tmp_path / 'probed')
    ]
    assert losses == logged_losses(tmp_path / 'plain')


def test_a_config_without_a_teacher_is_refused(tiny_configs, tmp_path):
    output = run(TOOL, tiny_configs['student'], '--work-dir', tmp_path, expect=1)
    assert output.splitlines()[-1].startswith('error: ')
    assert 'model.distill_losses is missing; give the config of a distillation' in output
