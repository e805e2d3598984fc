import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, TRAIN, build, complaint, logged, same
from helpers import run as run_tool
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from mmseg.registry import HOOKS, TRANSFORMS
from torch import nn

from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.finite_loss import FiniteLossHook
from bdd_seg.runtime.upstream.bfloat16 import BFloat16OptimWrapper

NAN, INF = float('nan'), float('inf')
TERMS = 'decode.loss_ce is nan, aux.loss_ce is nan'


@TRANSFORMS.register_module()
class SpoilImage(BaseTransform):
    """Makes a pixel of the first image NaN, in given iterations of batches of two, on one process."""

    def __init__(self, iterations, rank=0):
        self.iterations, self.rank, self.draws = iterations, rank, 0

    def transform(self, results):
        iteration, position = divmod(self.draws, 2)
        self.draws += 1
        if iteration + 1 in self.iterations and position == 0 and get_rank() == self.rank:
            results['img'] = results['img'].astype('float32')
            results['img'][0, 0] = math.nan
        return results


@HOOKS.register_module()
class RecordStates(Hook):
    """Keeps what a training changes, after each iteration, on disk where a folder is given."""

    priority = 'VERY_LOW'  # after the EMA

    def __init__(self, folder=None):
        self.folder, self.states = folder, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        state = {
            'model': model.state_dict(),
            'optimizer': runner.optim_wrapper.optimizer.state_dict()['state'],
        }
        for hook in runner.hooks:
            if type(hook).__name__ == 'EMAHook':
                state['ema'] = hook.ema_model.state_dict()
        self.states.append(copy.deepcopy(state))
        if self.folder:
            torch.save(self.states, f'{self.folder}/states_{get_rank()}.pth')


def spoilt(base, folder, iterations, rank=0, **finite):
    """A config file whose training data is spoilt in some iterations."""
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations'},
        {'type': 'RandomCrop', 'crop_size': (32, 64)},
        {'type': 'SpoilImage', 'iterations': iterations, 'rank': rank},
        {'type': 'PackSegInputs'},
    ]
    path = folder / 'spoilt.py'
    path.write_text(
        f'_base_ = {str(base)!r}\n'
        f'experiment_name = {folder.name!r}\n'
        f'visualizer = dict(name={folder.name!r})\n'
        "custom_imports = dict(imports=['bdd_seg', 'test_finite_loss'])\n"
        f'train_dataloader = dict(dataset=dict(pipeline={pipeline!r}))\n'
        f'default_hooks = dict(finite=dict(type="FiniteLossHook", **{finite!r}))\n'
        'val_dataloader = val_cfg = val_evaluator = None\n'
    )
    return path


def train(config, work_dir, **changes) -> Runner:
    """Train in this process with states recorded; a complaint of the hook leaves no error."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict({'work_dir': str(work_dir), **changes})
    cfg.custom_hooks = [{'type': 'EMAHook', 'momentum': 0.1}, {'type': 'RecordStates'}]
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def states_of(runner) -> list[dict]:
    return next(hook.states for hook in runner.hooks if isinstance(hook, RecordStates))


def test_a_run_ends_before_the_step_and_says_all(monkeypatch, tiny_configs, tmp_path):
    config = spoilt(tiny_configs['student'], tmp_path, iterations=[5])
    message = complaint(monkeypatch, TRAIN, config, '--work-dir', tmp_path / 'run')
    file = tmp_path / 'run/nonfinite/iter_5_rank_0.pth'
    saved = torch.load(file, weights_only=True)
    assert message.startswith(f'error: iteration 5: {TERMS}; images ')
    assert message.index('; images ') < message.index(', '.join(map(repr, saved['image_paths'])))
    assert f'; the batch is in {str(file)!r}. ' in message
    assert f'Last good checkpoint: {str(tmp_path / "run/iter_3.pth")!r}. Resume from it' in message
    assert 'default_hooks.finite.max_skips=K' in message
    assert [record['step'] for record in logged(tmp_path / 'run')] == [1, 2, 3, 4]
    assert not (tmp_path / 'run/iter_6.pth').exists()

    assert (saved['iteration'], saved['rank']) == (5, 0)
    assert saved['losses'].keys() == {'decode.loss_ce', 'aux.loss_ce'}
    assert all(map(math.isnan, saved['losses'].values()))
    images, samples = saved['batch']['inputs'], saved['batch']['data_samples']
    assert [image.shape for image in images] == [(3, 32, 64)] * 2
    assert images[0].isnan().sum() == 3 and images[0][:, 0, 0].isnan().all()
    assert images[1].dtype == torch.uint8
    for sample, path in zip(samples, saved['image_paths'], strict=True):
        assert sample['img_path'] == path and path.endswith('_leftImg8bit.png')
        label = sample['gt_sem_seg']['data']
        assert label.shape == (1, 32, 64) and label.unique().numel() > 1


def test_a_teacher_that_is_not_finite(monkeypatch, tiny_configs, tmp_path):
    checkpoint = torch.load(tiny_configs['checkpoint'], weights_only=True)
    checkpoint['state_dict']['decode_head.conv_seg.bias'][0] = NAN
    torch.save(checkpoint, tmp_path / 'teacher.pth')
    config = spoilt(tiny_configs['distilled'], tmp_path, iterations=[])
    options = ['--cfg-options', f'model.teacher.checkpoint={tmp_path / "teacher.pth"}']
    message = complaint(monkeypatch, TRAIN, config, '--work-dir', tmp_path / 'run', *options)
    assert message.startswith("error: iteration 1: distill.loss_bdd is nan; images '")
    assert 'Last good checkpoint: none yet. Begin again with' in message
    losses = torch.load(tmp_path / 'run/nonfinite/iter_1_rank_0.pth', weights_only=True)['losses']
    assert [name for name, value in losses.items() if not math.isfinite(value)] == ['distill.loss_bdd']


@pytest.mark.parametrize('amp', [False, True])
def test_a_skipped_iteration_leaves_no_trace(tiny_configs, tmp_path, amp):
    config = spoilt(tiny_configs['distilled'], tmp_path, iterations=[1, 3, 4], max_skips=3)
    changes = {'optim_wrapper.type': 'BFloat16OptimWrapper'} if amp else {}
    runner = train(config, tmp_path / 'run', **changes)
    states = states_of(runner)
    assert len(states) == 6
    for number in (3, 4):
        before, after = states[number - 2 : number]
        assert same(after['model'], before['model'])
        assert same(after['optimizer'], before['optimizer'])
        for name, _ in runner.model.named_parameters():  # moves on towards the weights
            moved = torch.lerp(before['ema'][f'module.{name}'], before['model'][name], 0.1)
            assert torch.equal(after['ema'][f'module.{name}'], moved)
    for number in (2, 5, 6):
        for key in ('model', 'optimizer', 'ema'):
            assert not same(states[number - 1][key], states[number - 2][key]), key
    assert states[0]['optimizer'] == {}  # no momentum was begun
    assert all(value.isfinite().all() for key in ('model', 'ema') for value in states[-1][key].values())
    records = logged(tmp_path / 'run')
    assert [record['step'] for record in records] == [2, 3, 4, 5, 6]  # the first has no loss to show
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[2]['loss'] == records[1]['loss'] == records[0]['loss']  # the mean of those before
    assert sorted(path.name for path in (tmp_path / 'run/nonfinite').iterdir()) == [
        f'iter_{number}_rank_0.pth' for number in (1, 3, 4)
    ]
    (log,) = (tmp_path / 'run').glob('*/*.log')
    warnings = [line for line in log.read_text().splitlines() if 'FiniteLossHook: left out' in line]
    assert len(warnings) == 3
    assert f'left out (2 of at most 3) iteration 3: distill.loss_bdd is nan, {TERMS}' in warnings[1]


def test_a_resumed_run_goes_on_counting(tiny_configs, tmp_path):
    run = tmp_path / 'run'
    config = spoilt(tiny_configs['student'], tmp_path, iterations=[2], max_skips=1)
    train(config, run, **{'train_cfg.max_iters': 3})
    resumed = {'resume': True, 'load_from': str(run / 'iter_3.pth'), 'experiment_name': f'{tmp_path.name}_b'}
    with pytest.raises(
        ConfigError, match=r'^iteration 5: .*max_skips=1 were left out before\. Last good .*_3'
    ):
        train(config, run, **resumed)
    assert [record['step'] for record in logged(run)] == [1, 2, 3, 4]


@pytest.fixture
def on_two_processes(tiny_configs, tmp_path, monkeypatch):
    """Trains with images of the second process spoilt in iterations 2 and 4; what is printed."""

    def run(**finite) -> str:
        config = spoilt(tiny_configs['student'], tmp_path, iterations=[2, 4], rank=1, **finite)
        with config.open('a') as file:
            file.write(f'custom_hooks = [dict(type="RecordStates", folder={str(tmp_path)!r})]\n')
        with_gloo = tmp_path / 'with_gloo.py'
        with_gloo.write_text(
            'import runpy, sys, torch\n'
            "torch.distributed.init_process_group('gloo')\n"
            'sys.argv = sys.argv[1:]\n'
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
        parts = ('backbone', 'decode_head', 'auxiliary_head')
        options = [*(f'model.{part}.norm_cfg.type=BN' for part in parts), 'model_wrapper_cfg.device_ids=None']
        return run_tool(
            with_gloo,
            TRAIN,
            config,
            '--work-dir',
            tmp_path / 'run',
            '--launcher',
            'pytorch',
            '--cfg-options',
            *options,
            expect=1,
            launcher=['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'],
        )

    monkeypatch.setenv('PYTHONPATH', f'{ROOT / "tests"}:{ROOT / "tests/runtime/guards"}')
    return run


def test_two_processes_skip_together(on_two_processes, tiny_configs, tmp_path):
    output = on_two_processes(max_skips=1)
    assert f'FiniteLossHook: left out (1 of at most 1) iteration 2: {TERMS}' in output  # the first says it
    assert f'error: iteration 4: {TERMS}' in output
    assert 'max_skips=1 were left out before' in output
    assert sorted(path.name for path in (tmp_path / 'run/nonfinite').iterdir()) == [
        'iter_2_rank_1.pth',
        'iter_4_rank_1.pth',
    ]
    states = [torch.load(tmp_path / f'states_{rank}.pth', weights_only=True) for rank in (0, 1)]
    for before, skipped, after in states:
        assert same(skipped, before)  # statistics of BatchNorm, too, which are each process's own
        assert not same(after['model'], skipped['model'])
    weights = dict(build(tiny_configs['student']).named_parameters())
    for one, other in zip(*states, strict=True):
        assert same(one['optimizer'], other['optimizer'])
        assert all(torch.equal(one['model'][name], other['model'][name]) for name in weights)


def test_one_process_of_two_ends_the_job(on_two_processes, tmp_path):
    output = on_two_processes()
    assert output.count(f'error: iteration 2: {TERMS}') == 1
    assert [path.name for path in (tmp_path / 'run/nonfinite').iterdir()] == ['iter_2_rank_1.pth']
    for rank in (0, 1):
        assert len(torch.load(tmp_path / f'states_{rank}.pth', weights_only=True)) == 1


class Net(BaseModel):
    """A model whose losses are finite if its input is."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        output = self.net(inputs)
        return {
            'loss_a': output.square().sum(),
            'loss_b': [output.abs().mean()] * 2,
            'ratio': output.mean() * NAN,
        }


class Training:
    """As much of a Runner as the hook looks at, with the steps of a real one."""

    def __init__(self, work_dir, hook=None, optimizer=None, wrapper=OptimWrapper, **settings):
        torch.manual_seed(0)
        self.model, self.hook, self.work_dir, self.iter = Net(), hook, str(work_dir), 0
        optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
        self.optim_wrapper = wrapper(optimizer=optimizer(self.model.parameters()), **settings)
        self.message_hub = MessageHub(str(work_dir))
        self.warnings = []
        self.logger = SimpleNamespace(warning=self.warnings.append)
        if hook:
            hook.before_train(self)

    def step(self, spoil=False, inputs=None):
        generator = torch.Generator().manual_seed(self.iter)
        inputs = torch.randn(4, 2, generator=generator) if inputs is None else inputs
        data = {'inputs': inputs * NAN if spoil else inputs}
        if self.hook:
            self.hook.before_train_iter(self, self.iter, data)
        log = self.model.train_step(data, self.optim_wrapper)
        self.iter += 1
        return {name: value.item() for name, value in log.items()}

    def state(self):
        return copy.deepcopy([self.model.state_dict(), self.optim_wrapper.optimizer.state_dict()])


@pytest.fixture
def scaled(monkeypatch):
    """The wrapper of ``--amp`` on GPUs, with its gradient scaler, on a CPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', partial(torch.amp.GradScaler, device='cpu'))
    return partial(AmpOptimWrapper, loss_scale={'init_scale': 1024.0})


@pytest.fixture(params=['plain', 'bfloat16', 'scaled'])
def wrapper(request, scaled):
    return {'plain': OptimWrapper, 'bfloat16': BFloat16OptimWrapper, 'scaled': scaled}[request.param]


@pytest.mark.parametrize(
    'optimizer',
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
        partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
        partial(torch.optim.Adam, lr=0.1, foreach=False),
    ],
)
@pytest.mark.parametrize('clip', [None, {'max_norm': 1.0, 'error_if_nonfinite': True}])
def test_every_optimizer_and_wrapper_skips(tmp_path, optimizer, wrapper, clip):
    training = Training(tmp_path, FiniteLossHook(3), optimizer, wrapper, clip_grad=clip)
    training.step()
    for spoil in (True, True, False, True):
        before = training.state()
        log = training.step(spoil)
        assert same(training.state(), before) is spoil
        assert math.isnan(log['loss']) is math.isnan(log['loss_a']) is math.isnan(log['loss_b']) is spoil
    assert len(training.warnings) == 3


@pytest.mark.parametrize('pattern', ['gg', 'gb', 'bg', 'bb', 'bbggb', 'gbbbg'])
def test_of_accumulated_gradients_the_skipped_are_missing(tmp_path, wrapper, pattern):
    counts = len(pattern)
    training = Training(tmp_path, FiniteLossHook(9), wrapper=wrapper, accumulative_counts=counts)
    expected = Training(tmp_path, wrapper=wrapper, accumulative_counts=counts)
    for _ in range(2):
        for letter in pattern:
            training.step(spoil=letter == 'b')
            if letter == 'g':
                expected.step()
            else:
                expected.iter += 1
                expected.optim_wrapper._inner_count += 1
        if set(pattern) != {'b'} and pattern.endswith('b'):  # its step has not come
            expected.optim_wrapper.step()
            expected.optim_wrapper.zero_grad()
        assert same(training.state(), expected.state())


def test_overflowing_gradients_are_the_scalers_business(tmp_path, scaled):
    training = Training(
        tmp_path, FiniteLossHook(1), wrapper=partial(scaled, loss_scale={'init_scale': 2.0**127})
    )
    before = training.state()[0]
    training.step()
    scaler = training.optim_wrapper.loss_scaler
    assert scaler.get_scale() == 2.0**126
    assert same(dict(training.model.named_parameters()), dict(list(before.items())[:4]))
    training.step(spoil=True)
    assert scaler.get_scale() == 2.0**126  # which takes no notice
    assert len(training.warnings) == 1
    scaler.update(1.0)
    before = training.state()
    training.step()
    assert not same(training.state()[0]['net.0.weight'], before[0]['net.0.weight'])


def test_where_all_is_finite_nothing_changes(tmp_path):
    trainings = [Training(tmp_path, hook) for hook in (None, FiniteLossHook(), FiniteLossHook(2))]
    logs = [[training.step() for _ in range(3)] for training in trainings]
    assert str(logs[0]) == str(logs[1]) == str(logs[2])
    assert math.isnan(logs[0][0]['ratio'])  # a diagnostic may be anything
    assert same(trainings[0].state(), trainings[1].state())
    assert same(trainings[0].state(), trainings[2].state())
    trainings[2].model(torch.full((1, 2), NAN).expand(4, 2), mode='predict')  # no loss
    assert not list(tmp_path.iterdir())
    training = trainings[2]
    training.hook.after_train(training)
    training.model.train_step({'inputs': torch.full((4, 2), NAN)}, training.optim_wrapper)  # not its own
    assert not training.warnings


@pytest.mark.parametrize(
    'losses, said',
    [
        ({'loss_a': INF}, 'loss_a is inf'),
        ({'a.loss': -INF, 'loss_b': 1.0, 'loss_c': NAN}, 'a.loss is -inf, loss_c is nan'),
        ({'loss_a': [1.0, 2.0], 'loss_b': [1.0, INF]}, 'loss_b is inf'),
        ({'loss_a': [INF, -INF]}, 'loss_a is nan'),
        ({'loss_a': 3e38, 'loss_b': 3e38}, 'the sum of the losses is inf'),
        ({'loss_a': 1.0, 'acc': NAN}, None),
        ({'acc': NAN}, None),
        ({'loss_a': 1.0, 'loss_b': []}, None),
    ],
)
def test_which_terms_are_named(tmp_path, losses, said):
    def tensors(value):
        return [*map(torch.tensor, value)] if isinstance(value, list) else torch.tensor(value)

    training = Training(tmp_path, FiniteLossHook())
    training.model.forward = lambda mode: {name: tensors(value) for name, value in losses.items()}
    if said is None:
        training.model(mode='loss')
        return
    with pytest.raises(ConfigError, match=f'^iteration 1: {said}; images of unknown paths; the batch is in '):
        training.model(mode='loss')


def test_a_term_of_another_kind_is_left_to_mmengine(tmp_path):
    training = Training(tmp_path, FiniteLossHook())
    training.model.forward = lambda inputs, mode: {'loss_a': 1.0}
    with pytest.raises(TypeError, match='loss_a is not a tensor or list of tensors'):
        training.step()


def test_paths_of_many_images_are_shortened(tmp_path):
    training, hook = Training(tmp_path, FiniteLossHook()), None
    hook = training.hook
    paths = [f'/data/{number}.png' for number in range(16)]
    hook.before_train_iter(
        training, 0, {'inputs': [], 'data_samples': [{'img_path': path} for path in paths]}
    )
    with pytest.raises(
        ConfigError, match="images '/data/0.png', .*, '/data/3.png' and 12 more; the batch is"
    ):
        training.model(torch.full((4, 2), NAN), mode='loss')
    assert torch.load(tmp_path / 'nonfinite/iter_1_rank_0.pth', weights_only=True)['image_paths'] == paths


def test_a_batch_that_cannot_be_written_hides_nothing(tmp_path):
    (tmp_path / 'nonfinite').touch()
    with pytest.raises(
        ConfigError, match=r'^iteration 1: loss_a is nan, .*; the batch could not be written \('
    ):
        Training(tmp_path, FiniteLossHook()).step(spoil=True)


def test_a_saved_batch_is_plain_and_no_larger_than_itself(tmp_path):
    import numpy as np

    training = Training(tmp_path, FiniteLossHook())
    batch = {
        'inputs': torch.zeros(1000, 1000)[:2, :2],
        'data_samples': [
            {'geometry': np.eye(3), 'kind': np.array(['a']), 'scale': np.float64(2), 'path': tmp_path}
        ],
        3: (None, True, range(2)),
    }
    training.hook.before_train_iter(training, 0, batch)
    with pytest.raises(ConfigError):
        training.model(torch.full((4, 2), NAN), mode='loss')
    file = tmp_path / 'nonfinite/iter_1_rank_0.pth'
    assert file.stat().st_size < 10_000
    saved = torch.load(file, weights_only=True)['batch']
    assert torch.equal(saved['data_samples'][0].pop('geometry'), torch.eye(3, dtype=torch.float64))
    assert saved['data_samples'] == [{'kind': ['a'], 'scale': 2.0, 'path': str(tmp_path)}]
    assert saved['3'] == [None, True, 'range(0, 2)']


def save(path, model, value=None):
    """A checkpoint, its first weight changed."""
    state = copy.deepcopy(model.state_dict())
    if value is not None:
        state['net.0.weight'][0, 0] = value
    path.parent.mkdir(exist_ok=True)
    torch.save({'state_dict': state}, path)


def test_weights_that_are_not_finite_stop_at_once_and_are_no_good_checkpoint(tmp_path):
    training = Training(tmp_path / 'run', FiniteLossHook(5))
    good, cut, spoilt = (tmp_path / 'run' / f'iter_{number}.pth' for number in (1, 2, 3))
    for path, value in {good: None, cut: None, spoilt: INF}.items():
        save(path, training.model, value)
    cut.write_bytes(cut.read_bytes()[:-100])
    training.message_hub.update_info('last_ckpt', str(spoilt))
    with torch.no_grad():
        training.model.net[0].weight[0, 0] = INF
    with pytest.raises(ConfigError) as caught:
        training.step()
    assert 'The weights were not finite before it, so leaving it out does not help. ' in str(caught.value)
    assert 'max_skips=K' not in str(caught.value)
    assert f'Last good checkpoint: {str(good)!r}. ' in str(caught.value)
    save(good, training.model, NAN)
    with pytest.raises(ConfigError, match='Last good checkpoint: none'):
        training.step()


@pytest.mark.parametrize('where', ['run', 'elsewhere'])
def test_the_last_good_checkpoint(tmp_path, where):
    training = Training(tmp_path / 'run', FiniteLossHook())
    save(tmp_path / 'run/iter_9.pth', training.model)  # of a run before
    save(tmp_path / where / 'iter_3.pth', training.model)
    training.message_hub.update_info('last_ckpt', str(tmp_path / where / 'iter_3.pth'))
    with pytest.raises(ConfigError, match=f'Last good checkpoint: {str(tmp_path / where / "iter_3.pth")!r}'):
        training.step(spoil=True)


@pytest.mark.parametrize('max_skips', [-1, 1.5, '2', None])
def test_wrong_settings(max_skips):
    with pytest.raises(ConfigError, match='FiniteLossHook: max_skips must be a whole number from 0 on, got'):
        FiniteLossHook(max_skips)
