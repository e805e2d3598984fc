"""Several processes do what one does; tests/stress has what takes longer."""

import pytest
from gradients_of_processes import HALF, WHOLE, check_gradients, gradients_of
from helpers import CONFIGS, complaint, logged, weights
from many_processes import TEST, TRAIN, failure, job, relative_errors, torchrun, write_config
from mmengine.config import Config
from mmengine.runner import Runner

from bdd_seg.distill.student import plain_model
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.processes import check_sync_bn

RUNS = [
    ('channel', 'float32', 0.0),
    ('channel', 'float64', 0.0),
    ('pixel', 'float32', 0.0),
    ('feature', 'float32', 0.0),
    ('masked channel', 'float64', WHOLE),
    ('masked pixel', 'float64', HALF),
]


@pytest.fixture(scope='module')
def gradients(tiny_configs, tmp_path_factory) -> dict:
    return gradients_of(2, tiny_configs['distilled'], tmp_path_factory.mktemp('gradients'), RUNS)


@pytest.mark.parametrize('case, dtype, ignored', RUNS)
def test_two_processes_have_the_gradients_of_one(gradients, tiny_configs, case, dtype, ignored):
    check_gradients(gradients, 2, tiny_configs['distilled'], case, dtype, ignored)


def test_sync_bn_has_no_cpu_version(gradients):
    """Which is why these tests have BatchNorm in eval mode."""
    assert 'SyncBatchNorm expected input tensor to be on GPU' in gradients['sync_bn']


def test_no_config_asks_ddp_to_look_for_unused_parameters():
    configs = [*CONFIGS.rglob('*.py')]
    assert len(configs) > 10
    assert not [path for path in configs if 'find_unused_parameters' in path.read_text()]
    assert not Config.fromfile(configs[0]).get('find_unused_parameters')


def test_a_restarted_job_ends_as_one_process_that_was_never_killed(tiny_configs, tmp_path):
    one = Config.fromfile(write_config(tmp_path / 'one.py', tiny_configs['distilled'], batch_size=4))
    one.work_dir, one.experiment_name = str(tmp_path / 'one'), tmp_path.name
    Runner.from_cfg(one).train()
    marker, run = tmp_path / 'killed', tmp_path / 'two'
    killed = failure(rank=1, iteration=4, how='die', marker=str(marker))
    config = write_config(tmp_path / 'two.py', tiny_configs['distilled'], batch_size=2, extra=killed)
    command = [*torchrun(2, '--max-restarts=1'), TRAIN, config, '--work-dir', run]
    command += ['--launcher', 'pytorch', '--resume']
    with job(command, tmp_path / 'log.txt', tmp_path) as started:
        assert started.wait() == 0, started.output[-3000:]
    assert marker.exists()
    assert 'exitcode: -9' in started.output  # torchrun says which one died, and how
    assert [record['step'] for record in logged(run)] == [1, 2, 3, 4, 4, 5, 6]
    errors = relative_errors(weights(run / 'iter_6.pth'), weights(tmp_path / 'one/iter_6.pth'))
    assert errors[0] < 1e-5
    sessions = {path.parts[-2] for path in run.glob('*/*.log')}
    assert len(sessions) == 2
    files = ['{0}/{0}.log', '{0}/vis_data/{0}.json', '{0}/vis_data/scalars.json', '{0}/vis_data/config.py']
    assert {str(path.relative_to(run)) for path in run.rglob('*') if path.is_file()} == {
        *('two.py', 'iter_3.pth', 'iter_6.pth', 'last_checkpoint'),
        *(file.format(session) for file in files for session in sessions),
    }


def test_a_restart_that_fails_is_refused_before_anything_starts(tiny_configs, monkeypatch, tmp_path):
    """torchrun tells its processes that it shares its store with them."""
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '2')
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    for tool, *arguments in ((TRAIN,), (TEST, 'checkpoint.pth')):
        message = complaint(monkeypatch, tool, tiny_configs['distilled'], *arguments)
        assert message.startswith(
            'error: --max-restarts=2: restarted processes would look for those that died'
        )


@pytest.mark.parametrize('norm, refused', [('SyncBN', True), ('BN', False)])
def test_sync_bn_needs_gpus_where_it_trains(monkeypatch, norm, refused):
    monkeypatch.setattr('bdd_seg.runtime.upstream.processes.get_device', lambda: 'cpu')
    monkeypatch.setattr('bdd_seg.runtime.upstream.processes.get_world_size', lambda: 2)
    model = {'backbone': {'norm_cfg': {'type': norm}}, 'decode_head': [{'norm_cfg': {'type': 'BN'}}]}
    if refused:
        with pytest.raises(ConfigError, match='--cfg-options model.backbone.norm_cfg.type=BN$'):
            check_sync_bn(model)
    else:
        check_sync_bn(model)
    teacher = {'type': 'SegDistiller', 'teacher': {'config': model}, 'distill_losses': []}
    check_sync_bn(plain_model(teacher))
