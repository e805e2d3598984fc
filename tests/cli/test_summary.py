"""The lines that a start prints."""

import re
from types import SimpleNamespace

import pytest
import torch
from helpers import build, train
from mmengine.config import Config
from mmengine.runner import Runner

from bdd_seg.cli.summary import summarize


def facts(lines) -> dict[str, str]:
    """Name → text of the lines of a summary, of equal names the last."""
    rows = [re.fullmatch(r'  (\w+(?: \w+)?) +(\S.*)', line) for line in lines]
    return {row[1].strip(): row[2] for row in rows if row}


def millions(model: torch.nn.Module) -> str:
    return f'{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} M parameters'


def test_a_start_prints_what_runs_and_nothing_else(tiny_configs, scenes, tmp_path):
    """The real tool, from its first line to its first iteration."""
    lines = train(tiny_configs['distilled'], tmp_path, '--cfg-options', 'train_cfg.max_iters=2').splitlines()
    first = next(i for i, line in enumerate(lines) if 'Iter(train)' in line)
    assert first <= 20
    told = facts(lines[:first])
    teacher = build(tiny_configs['teacher'], auxiliary_head=None)
    assert told == {
        'student': f'EncoderDecoder of ResNetV1c and PSPHead, {millions(build(tiny_configs["student"]))}',
        'teacher': f"teacher.py, {tiny_configs['checkpoint']}, {millions(teacher)}, the student's precision",
        'loss': 'BDDLoss, weight 3, distill.loss_bdd, on decode_head.conv_seg of both',
        'data': f'CityscapesDataset in {scenes}, 8 images, batch size 2 × 1 process',
        'iterations': '1 to 2, seed 0',
        'device': 'CPU, 1 thread',
        'work dir': str(tmp_path),
        'log': str(next(tmp_path.glob('*/*.log'))),
    }
    assert not [line for line in lines if 'Warning' in line or 'deprecated' in line or 'prefix' in line]
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'System environment' in log and 'Hooks will be executed' in log and 'teacher.py' in log
    order = [text for text in ('loss', 'distill.loss_bdd', 'distill.teacher_acc', 'decode.loss_ce')]
    positions = [lines[first].index(f' {name}: ') for name in order]
    assert positions == sorted(positions)


@pytest.fixture
def runner(tiny_configs, tmp_path):
    """Builds a runner of a tiny config, as far as a summary needs it."""

    def start(kind: str, **changes) -> Runner:
        cfg = Config.fromfile(tiny_configs[kind])
        cfg.merge_from_dict(changes)
        cfg.update(work_dir=str(tmp_path), experiment_name=f'{tmp_path.name}_{kind}', log_level='ERROR')
        cfg.visualizer.name = cfg.experiment_name
        built = Runner.from_cfg(cfg)
        if kind == 'distilled':
            built.model.init_weights()
        built._train_loop = built.build_train_loop(built._train_loop)
        return built

    return start


def test_a_plain_students_summary(runner, tmp_path):
    lines = summarize(runner('student'), train=True)
    assert [*facts(lines)] == ['student', 'data', 'iterations', 'device', 'work dir', 'log']


def test_many_losses_share_a_line(runner):
    losses = [dict(type='BDDLoss', loss_weight=0.5, loss_name=f'loss_{i}') for i in range(5)]
    losses[1].update(student_tap='backbone.layer4', teacher_tap='backbone.layer3')
    lines = summarize(runner('distilled', **{'model.distill_losses': losses}), train=True)
    assert len(lines) == 10
    assert [line.split(maxsplit=1)[1] for line in lines[2:5]] == [
        'BDDLoss, weight 0.5, distill.loss_0, on decode_head.conv_seg of both',
        "BDDLoss, weight 0.5, distill.loss_1, on backbone.layer4 and the teacher's backbone.layer3, "
        'with 2,048 parameters of its own',
        'distill.loss_2, distill.loss_3, distill.loss_4',
    ]


def test_a_resumed_training_tells_where_it_goes_on(runner):
    resumed = runner('student')
    resumed._load_from = 'iter_3.pth'
    assert facts(summarize(resumed, True))['iterations'] == (
        '1 to 6, seed 0, beginning with the weights of iter_3.pth'
    )
    resumed.train_loop._iter = 3
    assert facts(summarize(resumed, True))['iterations'] == '4 to 6, seed 0, resumed from iter_3.pth'
    resumed.train_loop._iter = 6
    assert facts(summarize(resumed, True))['iterations'].startswith('all 6 are done, seed 0, resumed from')


def test_the_summary_of_a_test(runner, tmp_path, scenes):
    tested = runner('student')
    tested._load_from = 'iter_6.pth'
    tested._test_loop = tested.build_test_loop(tested._test_loop)
    told = facts(summarize(tested, train=False))
    assert told['model'].startswith('EncoderDecoder of ResNetV1c and PSPHead')
    assert told['checkpoint'] == 'iter_6.pth'
    assert told['data'] == f'CityscapesDataset in {scenes}, 4 images'
    assert told['work dir'] == str(tmp_path)


def test_mixed_precision_stands_beside_the_device(runner):
    built = runner('student')
    built.optim_wrapper = SimpleNamespace()
    assert facts(summarize(built, True))['device'] == 'CPU, 1 thread'
    built.optim_wrapper = type('BFloat16OptimWrapper', (), {})()
    assert facts(summarize(built, True))['device'] == 'CPU, 1 thread, bfloat16'
