import json

import pytest
import yaml
from conftest import ROOT

from bdd_seg.engine import load_config
from bdd_seg.errors import ConfigError
from bdd_seg.study import runs
from bdd_seg.study.runs import check_comparable, iterations_of, make_run, read_scores, seconds_per_iteration
from bdd_seg.study.settings import load_study


@pytest.fixture
def study(tiny_configs, tmp_path):
    def make(kd=None, **changes):
        content = {
            'title': 't',
            'methods': {
                'alone': {'label': 'a', 'config': str(tiny_configs['student'])},
                'kd': {'label': 'b', 'config': str(tiny_configs['distilled']), 'options': kd or {}},
            },
            'control': 'alone',
            'seeds': [1],
            'select_on': 'val',
            'splits': {'val': {}, 'test': {}},
            **changes,
        }
        file = tmp_path / 'study.yaml'
        file.write_text(yaml.safe_dump(content))
        return load_study(file)

    return make


def test_overrides_reach_the_config_the_nearer_the_later(study):
    made = study(
        kd={'loss.tau_forward': 2, 'loss.loss_weight': 5, 'train_dataloader.batch_size': 3},
        options={'train_dataloader.batch_size': 7, 'train_dataloader.num_workers': 0},
        distilled_options={'model.teacher.precision': 'bf16'},
    )
    run = make_run(made, 'kd', 'final', 11, {'loss.loss_weight': 6})
    loss = run.cfg.model.distill_losses[0]
    assert (loss.tau_forward, loss.loss_weight) == (2, 6)
    assert (run.cfg.train_dataloader.batch_size, run.cfg.train_dataloader.num_workers) == (3, 0)
    assert run.cfg.model.teacher.precision == 'bf16'
    assert run.cfg.randomness.seed == 11
    alone = make_run(made, 'alone', 'final', 11, {})
    assert alone.cfg.train_dataloader.batch_size == 7
    assert 'teacher' not in alone.cfg.model


def test_the_length_takes_the_schedule_along(study, tiny_configs):
    made = study(options={'param_scheduler.0.end': 6})
    assert iterations_of(made) == load_config(tiny_configs['student']).train_cfg.max_iters == 6
    cfg = make_run(made, 'alone', 'final', 0, {}, iterations=40).cfg
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[0].end == 40
    assert cfg.train_cfg.val_begin > 40
    assert cfg.default_hooks.checkpoint.interval == 10
    assert iterations_of(study(iterations=9)) == 9
    other = study(options={'param_scheduler.0.end': 3})  # ends before the training does, and still shall
    assert make_run(other, 'alone', 'final', 0, {}, iterations=40).cfg.param_scheduler[0].end == 3


def test_one_config_one_digest_wherever_the_project_lies(study, monkeypatch, tmp_path):
    made = study()
    run = make_run(made, 'alone', 'final', 1, {})
    assert run.sha256 == make_run(made, 'alone', 'search', 1, {}).sha256
    assert run.sha256 != make_run(made, 'alone', 'final', 2, {}).sha256
    assert run.sha256 != make_run(made, 'alone', 'final', 1, {}, iterations=7).sha256
    digests = set()
    for place in ('here', 'there/else'):
        monkeypatch.setattr(runs, 'TOOLS', tmp_path / place / 'tools')
        run.cfg.model.pretrained = str(tmp_path / place / 'weights.pth')
        digests.add(run.sha256)
    assert len(digests) == 1


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('train_dataloader.batch_size', 3),
        ('train_dataloader.dataset.pipeline.3.crop_size', [16, 32]),
        ('optim_wrapper.optimizer.lr', 0.7),
        ('param_scheduler.0.power', 2),
        ('model.backbone.depth', 34),
    ],
)
def test_runs_that_differ_otherwise_are_not_compared(study, option, value):
    with pytest.raises(ConfigError, match=f"'alone' and 'kd' cannot be compared: their .*{option}"):
        check_comparable(study(kd={option: value}))
    check_comparable(study(kd={option: value}, may_differ=[option]))
    check_comparable(study(kd={option: value}, may_differ=[option.rpartition('.')[0]]))


def test_methods_that_differ_in_distillation_are_compared(study):
    check_comparable(study(kd={'loss.tau_forward': 9, 'model.teacher.precision': 'bf16'}))


def test_an_override_that_does_not_fit(study):
    with pytest.raises(ConfigError, match="distilled.py: {'loss.tau_forward.x': 1} does not fit"):
        check_comparable(study(kd={'loss.tau_forward.x': 1}))


def test_what_is_read_of_logs(tmp_path):
    for session, times in (('1', [0.1, 0.2]), ('2', [0.9])):
        folder = tmp_path / session / 'vis_data'
        folder.mkdir(parents=True)
        lines = [{'time': time, 'loss': 1.0} for time in times] + [{'mIoU': 3.0, 'time': 7.0}]
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    assert seconds_per_iteration(tmp_path) == 0.2
    (tmp_path / '2/2.json').write_text(
        '{"mIoU": 30.5, "aAcc": 80, "mAcc": 40, "IoU.road": 90.25, "IoU.train": NaN, "time": 1}\n'
    )
    classes = {'road': 90.25, 'train': None}
    assert read_scores(tmp_path) == {'mIoU': 30.5, 'aAcc': 80, 'mAcc': 40, 'classes': classes}


@pytest.mark.parametrize(
    'file', sorted((ROOT / 'benchmarks/studies').glob('*.yaml')), ids=lambda file: file.stem
)
def test_what_is_shipped_can_be_compared(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_comparable(load_study(file))
