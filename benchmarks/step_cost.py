"""What a step of distillation costs beside the same student's own step, in time and in memory.

Everything is measured in one process and in rounds, each of which runs every row once: what slows the machine
down for a while slows all rows. A row's ratio is the median over the rounds of its time divided by the time
that its reference took in the same round. Peak memory is that of torch's tensors that one run allocates and
that live at once; weights, optimizer state and a fixed batch are there before, and do not count.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import SampleList
from prettytable import PrettyTable, TableStyle
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bdd_seg.cli.arguments import run_tool
from bdd_seg.datasets.street_scenes import write_dataset
from bdd_seg.datasets.street_scenes.scene import MIN_SIZE
from bdd_seg.errors import ConfigError
from bdd_seg.losses import balance_divergence
from bdd_seg.losses.divergences import DOMAINS
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.study.machine import describe_machine
from bdd_seg.teachers.cached.pipeline import read_teacher_cache
from bdd_seg.teachers.mmseg import FrozenTeacher, renormalise

TOOLS = Path(__file__).parent
HEADLINE = TOOLS.parent / 'configs/bdd/bdd_pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
PARTS = ('steps', 'teacher', 'loader', 'loss')
STUDENT = 'student alone'
TEACHERS: dict[str, dict[str, Any]] = {
    ', done plainly': {'type': 'PlainTeacher'},
    '': {},
    ', bf16': {'precision': 'bf16'},
    ', compile': {'compile': True},
}
"""What a row's name ends with → settings of the teacher. The first is what the answers are compared with."""
PLAIN_TYPES = {'SegDistiller': 'EncoderDecoder', 'CascadeSegDistiller': 'CascadeEncoderDecoder'}
SCENES = 8
WARM_UP = 2


@MODELS.register_module()
class PlainTeacher(FrozenTeacher):
    """The teacher as one would write it down: an eager call without gradients, and nothing else."""

    def __call__(
        self, inputs: Tensor, data_samples: SampleList | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        assert self.model is not None, 'build() comes first'
        self.model.to(inputs.device)
        with torch.no_grad():
            if self._student_preprocessor is not None:
                inputs = renormalise(inputs, self._student_preprocessor, self.model.data_preprocessor)
            return self._forward(inputs), {}


@dataclass
class Case:
    """Something to measure.

    Args:
        part: One of PARTS.
        name: What the row is called.
        run: Does it once; with a loader it gets an iterator over the batches.
        reference: Name of the case whose time this one's is divided by.
        loader: Settings of the data loader, if it needs one, with a data set that is built.
        images: How many images one run takes, where their rate is of interest.
        logits_mib: Size of the logits, where the peak in multiples of it is of interest.
        details: What else there is to tell, by its name in words.
        seconds: The measured times, one per round.
    """

    part: str
    name: str
    run: Callable[..., object]
    reference: str = STUDENT
    loader: dict[str, Any] | None = None
    images: int = 0
    logits_mib: float = 0
    details: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Row:
    """A line of the result: medians, the quartiles around them, and the peak of the memory."""

    part: str
    name: str
    median_s: float
    q1_s: float
    q3_s: float
    reference: str
    ratio: float
    ratio_q1: float
    ratio_q3: float
    peak_mib: float
    details: dict[str, float]


@dataclass
class Network:
    """A model in training mode and its optimizer."""

    model: Any
    optimizer: OptimWrapper

    def step(self, data: dict) -> None:
        """One step as ``train_step`` does it, on a batch that the data preprocessor has seen."""
        with self.optimizer.optim_context(self.model):
            losses = self.model(**data, mode='loss')
        self.optimizer.update_params(self.model.parse_losses(losses)[0])

    def load_and_step(self, batches: Iterator[dict]) -> None:
        """One iteration of mmengine's train loop."""
        self.model.train_step(next(batches), optim_wrapper=self.optimizer)

    def teach(self, data: dict) -> Tensor:
        """The teacher's logits, in the precision of the step."""
        with self.optimizer.optim_context(self.model):
            return self.model.teacher(**data)[0][self.model.teacher.logits_tap]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    shapes = [(2, 19, 64, 128), (2, 19, 512, 1024)]

    def add(flag: str, help: str, **settings: Any) -> None:
        shown = f' (default: {typed(settings["default"])})' if 'default' in settings else ''
        parser.add_argument(flag, help=help + shown, **settings)

    add('--config', default=HEADLINE, help='config of a distilled run')
    add('--device', choices=['cpu', 'cuda'], default=device, help='where to run')
    add('--shape', type=int, nargs=2, default=(256, 512), metavar=('H', 'W'), help='size of the crops')
    add('--batch', type=int, default=2, help='crops in a batch, at least 2 for the sake of BatchNorm')
    add('--repetitions', type=int, default=7, help='rounds, each of which runs every row once')
    add('--amp', action='store_true', help='train in bfloat16 autocast')
    add('--compile', action='store_true', help='also a teacher with compile=True, which takes minutes')
    add('--only', nargs='+', choices=PARTS, default=PARTS, help='what to measure')
    add('--workers', type=int, default=0, help='processes that load data')
    add('--out', type=Path, default='work_dirs/benchmark', help='folder for benchmark.json and benchmark.png')
    add('--teacher-checkpoint', help="the teacher's weights; without it they are random, and as fast")
    add('--loss-shapes', type=parse_shape, nargs='+', default=shapes, metavar='NxCxHxW', help='of the logits')
    add('--table', type=Path, metavar='FILE.json', help='only print an earlier result, as Markdown')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('--device cuda: torch sees no GPU here; leave it out, or install torch for CUDA')
    if args.amp and args.device == 'cpu' and torch.cuda.is_available():
        raise ConfigError(
            '--amp would be for the GPU; hide it: CUDA_VISIBLE_DEVICES= python tools/benchmark.py'
        )
    for flag, least in (('batch', 2), ('repetitions', 1), ('workers', 0)):
        if getattr(args, flag) < least:
            raise ConfigError(f'--{flag} must be at least {least}, got {getattr(args, flag)}')
    least, reason = 1, ''
    if 'loader' in args.only:
        least, reason = MIN_SIZE // 2, ', since the part loader draws scenes of twice that'
    if min(args.shape) < least:
        raise ConfigError(f'--shape must be at least {least} {least}{reason}, got {typed(args.shape)}')
    return args


def typed(value: Any) -> str:
    """A setting as one types it: ``256 512``, or shapes as ``2x19x64x128``."""
    if not isinstance(value, list | tuple):
        return str(value)
    return ' '.join('x'.join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in value)


def parse_shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(size) if size.isdigit() else 0 for size in text.split('x'))
    if len(shape) != 4 or 0 in shape:
        raise argparse.ArgumentTypeError(f'{text!r} is no shape such as 2x19x64x128')
    return shape


def main() -> None:
    args = parse_args()
    if args.table is not None:
        print(report(read_results(args.table), args.only, TableStyle.MARKDOWN))
        return
    check_writable(args.out)
    MMLogger.get_instance('mmengine', log_level='ERROR')  # a line for each layer that is initialised
    init_default_scope('mmseg')
    torch.manual_seed(0)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        cases = [] if set(args.only) == {'loss'} else network_cases(args, Path(folder), notes)
        if 'loss' in args.only:
            cases += [case for shape in args.loss_shapes for case in loss_cases(shape, args.device)]
        rows = measure(cases, args)
    settings = {key: value for key, value in vars(args).items() if key not in ('config', 'out', 'table')}
    settings['config'] = Path(args.config).name
    results: dict[str, Any] = {
        'machine': describe_machine(args.device == 'cuda'),
        'settings': settings,
        'notes': notes,
    }
    results['rows'] = rows
    (args.out / 'benchmark.json').write_text(json.dumps(results, indent=1, default=asdict) + '\n')
    height, width = args.shape
    name = results['machine']['gpu' if args.device == 'cuda' else 'cpu']
    plot(rows, f'{name}, {args.batch} crops of {height}×{width}', args.out / 'benchmark.png')
    print(report(results, args.only, TableStyle.DEFAULT))
    print(f'\n{args.out}: benchmark.json, benchmark.png')


def check_writable(folder: Path) -> None:
    """Learn now, and not after minutes of measuring, that nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f'--out {folder} cannot be written: {error}') from error


def measure(cases: list[Case], args: argparse.Namespace) -> list[Row]:
    """Warm up, see how much memory each case takes, and time them in rounds."""
    print(f'{len(cases)} rows; warming up', flush=True)
    peaks = {}
    for case in cases:
        for _ in range(WARM_UP):
            timed(case, args.device)
        peaks[case.name] = peak_mib(case, args.device)
    start = time.monotonic()
    for done in range(1, args.repetitions + 1):
        for case in cases:
            case.seconds.append(timed(case, args.device))
        left = (time.monotonic() - start) / done * (args.repetitions - done)
        print(f'round {done} of {args.repetitions}, {left:.0f} s left', flush=True)
    seconds = {case.name: np.array(case.seconds) for case in cases}
    return [summary(case, seconds[case.reference], peaks[case.name]) for case in cases]


def summary(case: Case, reference: np.ndarray, peak: float) -> Row:
    times = np.array(case.seconds)
    q1, median, q3 = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    low, ratio, high = np.quantile(times / reference, (0.25, 0.5, 0.75)).tolist()
    details = dict(case.details)
    if case.images:
        details['images per second'] = case.images / median
    if case.logits_mib:
        details['peak in multiples of the logits'] = peak / case.logits_mib
    return Row(case.part, case.name, median, q1, q3, case.reference, ratio, low, high, peak, details)


def timed(case: Case, device: str) -> float:
    """Seconds that one run takes."""
    run, prefetched = ready(case)
    runs = max(1, prefetched)

    def repeat() -> None:
        for _ in range(runs):
            run()

    if prefetched:
        repeat()
    if device == 'cpu':
        start = time.perf_counter()
        repeat()
        return (time.perf_counter() - start) / runs
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    repeat()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / runs


def ready(case: Case) -> tuple[Callable[[], object], int]:
    """What to run, and how many runs use up what worker processes have loaded before.

    The workers start anew each time: those of an earlier row would go on filling their queue while the next
    one runs, and then have a batch at hand that cost nothing. All rows of a round load the same crops.
    """
    if case.loader is None:
        return case.run, 0
    np.random.seed(len(case.seconds))
    loader = Runner.build_dataloader(case.loader, seed=len(case.seconds))
    return partial(case.run, iter(loader)), loader.num_workers * (loader.prefetch_factor or 0)


def peak_mib(case: Case, device: str) -> float:
    """Most memory, in MiB, that tensors allocated within one run hold at a time."""
    run, _ = ready(case)
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())['traceEvents'] if e['name'] == '[memory]']
    # The events' own totals go on from earlier profiles; changes added up start from zero.
    changes = [event['args']['Bytes'] for event in sorted(events, key=lambda event: event['ts'])]
    return max(accumulate(changes, initial=0)) / 2**20


def network_cases(args: argparse.Namespace, folder: Path, notes: list[str]) -> list[Case]:
    """The rows that run networks; the first is the student's own step, which all are compared with."""
    cfg = adapted_config(args, folder, notes)
    data = random_batch(args, cfg)
    student = build(plain_config(cfg), args.device)
    endings = [ending for ending in TEACHERS if args.compile or 'compile' not in ending]
    if not {'steps', 'teacher'} & set(args.only):
        endings = ['']
    distillers = {ending: build(with_teacher(cfg, **TEACHERS[ending]), args.device) for ending in endings}
    try:
        student.step(data)
        for network in distillers.values():
            network.teach(data)
    except (AssertionError, RuntimeError) as error:
        raise ConfigError(
            f'--shape {typed(args.shape)}: {args.config} cannot run crops of this size: '
            f'{" ".join(str(error).split())[:300]}'
        ) from error
    for network in distillers.values():
        if network.model.teacher.compile and network.model.teacher._compiled is None:
            raise ConfigError('--compile: torch.compile fails here, which tools/train.py would only warn of')
    cases = [Case('steps', STUDENT, partial(student.step, data))]
    if 'steps' in args.only:
        for ending, network in distillers.items():
            cases.append(Case('steps', f'live teacher{ending}', partial(network.step, data)))
    if 'teacher' in args.only:
        cases += teacher_cases(distillers, data)
    if 'loader' in args.only:
        cases += loader_cases(args, cfg, folder, {STUDENT: student, 'live teacher': distillers['']}, notes)
    return cases


def teacher_cases(distillers: dict[str, Network], data: dict) -> list[Case]:
    """The teacher's forward pass alone, and how far its answers are from the plain ones in float32."""
    plain = distillers[', done plainly'].model.teacher
    expected = plain(**data)[0][plain.logits_tap]
    cases = []
    for ending, network in distillers.items():
        logits = network.teach(data)
        details = {
            'largest difference of the logits': (logits - expected).abs().max().item(),
            'argmaxes that differ (%)': 100 * (logits.argmax(1) != expected.argmax(1)).double().mean().item(),
        }
        run = partial(network.teach, data)
        cases.append(Case('teacher', f'teacher forward{ending}', run, details=details))
    return cases


def loader_cases(
    args: argparse.Namespace, cfg: Config, folder: Path, networks: dict[str, Network], notes: list[str]
) -> list[Case]:
    """Whole iterations, from files to updated weights, and loading alone, without and with the cache."""
    start = time.monotonic()
    write_cache(cfg, folder, args.device)
    size = sum(path.stat().st_size for path in (folder / 'cache').iterdir()) / 2**20 / SCENES
    notes.append(f'The cache was written in {time.monotonic() - start:.0f} s, {size:.2f} MiB per image.')
    cached_cfg = with_teacher(cfg, type='CachedTeacher', cache=str(folder / 'cache'))
    read_teacher_cache(cached_cfg)
    networks = {**networks, 'cached teacher': build(cached_cfg, args.device)}
    plain, cached = (opened(own.train_dataloader) for own in (cfg, cached_cfg))
    rows: list[tuple[str, Callable[..., object], dict[str, Any]]] = [
        ('loader alone', next, plain),
        ('loader alone, with the cache', next, cached),
    ]
    for name, network in networks.items():
        loader = cached if name == 'cached teacher' else plain
        rows.append((f'{name}, data loading included', network.load_and_step, loader))
    return [Case('loader', name, run, loader=loader, images=args.batch) for name, run, loader in rows]


def opened(loader: dict[str, Any]) -> dict[str, Any]:
    """Settings of a data loader with the data set built, and as it is after an epoch: each image was read."""
    dataset = DATASETS.build(loader['dataset'])
    for i in range(len(dataset)):
        dataset[i]
    return {**loader, 'dataset': dataset}


def write_cache(cfg: Config, folder: Path, device: str) -> None:
    """Run the tool that writes the cache, as a user would."""
    cfg.dump(folder / 'config.py')
    tool, config, out = TOOLS / 'cache_teacher.py', folder / 'config.py', folder / 'cache'
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''} if device == 'cpu' else None
    line = [sys.executable, str(tool), str(config), '--out', str(out)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise ConfigError(f'{" ".join(line)} failed: {done.stderr.strip()[-500:]}')


def loss_cases(shape: tuple[int, ...], device: str) -> list[Case]:
    """Forward and backward pass of the divergence, in its naive form and as shipped, in both domains."""
    student = torch.randn(shape, device=device, requires_grad=True)
    teacher = torch.randn(shape, device=device)

    def value_and_gradient(function: Callable[..., Tensor], domain: str) -> tuple[Tensor, Tensor]:
        value = function(student, teacher, domain=domain)
        return value.detach(), torch.autograd.grad(value, student)[0]

    cases = []
    for domain in DOMAINS:
        names = [f'{kind}, {domain}, {"x".join(map(str, shape))}' for kind in ('naive', 'balance_divergence')]
        runs = [partial(value_and_gradient, f, domain) for f in (naive_divergence, balance_divergence)]
        pairs = zip(*(run() for run in runs), strict=True)
        off = [((own - naive).norm() / naive.norm()).item() for naive, own in pairs]
        for name, run in zip(names, runs, strict=True):
            case = Case('loss', name, run, reference=names[0], logits_mib=student.nbytes / 2**20)
            cases.append(case)
        case.details = {'value off by': off[0], 'gradient off by': off[1]}
    return cases


def naive_divergence(student_logits: Tensor, teacher_logits: Tensor, domain: str, tau: float = 1.0) -> Tensor:
    """:func:`balance_divergence` of (N, C, H, W) logits with its defaults, as one would write it down."""
    dim = DOMAINS[domain]
    student, teacher = student_logits.flatten(2) / tau, teacher_logits.flatten(2) / tau
    forward = F.kl_div(F.log_softmax(student, dim), F.softmax(teacher, dim), reduction='sum')
    reverse = F.kl_div(F.log_softmax(teacher, dim), F.softmax(student, dim), reduction='sum')
    return tau**2 * (forward + reverse) * student.shape[dim] / student.numel()


def adapted_config(args: argparse.Namespace, folder: Path, notes: list[str]) -> Config:
    """The config at the size that is asked for, with a teacher that has weights, and scenes to load."""
    cfg = load_config(args.config)
    if cfg.model.type not in PLAIN_TYPES:
        raise ConfigError(
            f'--config {args.config} distils nothing: its model has the type {cfg.model.type!r}'
        )
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)  # as a Runner does
    cfg.model.pretrained = None
    cfg.model.data_preprocessor.size = tuple(args.shape)
    if args.amp:
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    checkpoint = args.teacher_checkpoint
    if checkpoint is None:
        checkpoint = folder / 'teacher.pth'
        settings = FrozenTeacher(cfg.model.teacher.config, checkpoint).model_config()
        teacher = MODELS.build({**settings, 'pretrained': None})
        teacher.init_weights()
        torch.save(teacher.state_dict(), checkpoint)
        notes.append('The teacher has random weights: that argmaxes agree, or do not, means little.')
    else:
        notes.append(f'The teacher has the weights of {checkpoint}.')
    cfg.model.teacher.checkpoint = str(checkpoint)
    if 'loader' in args.only:
        use_scenes(cfg, args, folder / 'scenes')
    return cfg


def use_scenes(cfg: Config, args: argparse.Namespace, folder: Path) -> None:
    """Draw scenes of twice the crop's height and width, as Cityscapes is to its crop, and train on them."""
    loader = cfg.train_dataloader
    if loader.dataset.type != 'CityscapesDataset':
        raise ConfigError(
            f'the part loader draws Cityscapes, not {loader.dataset.type}; name others with --only'
        )
    height, width = (2 * size for size in args.shape)
    try:
        write_dataset(folder, SCENES, 0, height, width)
    except ValueError as error:
        raise ConfigError(f'--shape: scenes are drawn at twice this size, and {error}') from error
    loader.update(batch_size=args.batch, num_workers=args.workers, persistent_workers=False)
    loader.dataset.data_root = str(folder)
    # The cache goes through the validation pipeline.
    for transform in [*loader.dataset.pipeline, *cfg.val_dataloader.dataset.pipeline]:
        if 'crop_size' in transform:
            transform.crop_size = tuple(args.shape)
        if 'scale' in transform:
            transform.scale = (width, height)


def plain_config(cfg: Config) -> Config:
    """The config without distillation."""
    cfg = copy.deepcopy(cfg)
    cfg.model.type = PLAIN_TYPES[cfg.model.type]
    del cfg.model['teacher'], cfg.model['distill_losses']
    return cfg


def with_teacher(cfg: Config, **settings: Any) -> Config:
    """The config with other settings of its teacher."""
    cfg = copy.deepcopy(cfg)
    cfg.model.teacher.update(settings)
    return cfg


def build(cfg: Config, device: str) -> Network:
    """The model of a config and its optimizer, as a Runner on one process builds them."""
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    model.to(device).train()
    return Network(model, build_optim_wrapper(model, cfg.optim_wrapper))


def random_batch(args: argparse.Namespace, cfg: Config) -> dict:
    """What a data preprocessor hands on: normalised images, and labels some of which are 255."""
    head = cfg.model.decode_head
    classes = (head[-1] if isinstance(head, list) else head).num_classes
    labels = torch.randint(0, classes + 1, (args.batch, 1, *args.shape))
    labels[labels == classes] = 255
    samples = []
    for label in labels:
        metainfo = {'img_shape': tuple(args.shape), 'ori_shape': tuple(args.shape)}
        samples.append(SegDataSample(metainfo=metainfo, gt_sem_seg=PixelData(data=label)).to(args.device))
    return {'inputs': torch.randn(args.batch, 3, *args.shape, device=args.device), 'data_samples': samples}


def read_results(path: Path) -> dict[str, Any]:
    """What an earlier call wrote: ``machine``, ``settings``, ``notes`` and ``rows``."""
    try:
        results = json.loads(path.read_text())
        keys = ('machine', 'settings', 'notes')
        return {**{key: results[key] for key in keys}, 'rows': [Row(**row) for row in results['rows']]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f'--table {path} is no result of this tool: {error!r}') from error


def report(results: dict[str, Any], parts: Collection[str], style: TableStyle) -> str:
    """The table of some parts, and below it what it was measured on, how, and the notes."""
    machine = [f'{key} {value}' for key, value in results['machine'].items() if value is not None]
    settings = [
        f'--{key.replace("_", "-")}' + ('' if value is True else f' {typed(value)}')
        for key, value in results['settings'].items()
        if value is not None and value is not False
    ]
    told = [f'Machine: {", ".join(machine)}', f'Settings: {" ".join(settings)}', *results['notes']]
    rows = [row for row in results['rows'] if row.part in parts]
    return '\n'.join([table(rows, style), '', *(f'- {line}' for line in told)])


def table(rows: list[Row], style: TableStyle) -> str:
    """The rows as text, in one of prettytable's styles."""
    output = PrettyTable(['part', 'what', 'ms (quartiles)', 'ratio (quartiles)', 'peak MiB', 'further'])
    output.align = 'r'
    output.align.update(part='l', what='l', further='l')
    output.set_style(style)
    for row in rows:
        q1, median, q3 = (f'{1000 * seconds:.1f}' for seconds in (row.q1_s, row.median_s, row.q3_s))
        ratio = f'{row.ratio:.2f} ({row.ratio_q1:.2f} to {row.ratio_q3:.2f})'
        details = (
            (key, f'{value:.0f}' if value > 100 else f'{value:.3g}') for key, value in row.details.items()
        )
        further = ', '.join(f'{key} {value}' for key, value in details)
        output.add_row(
            [row.part, row.name, f'{median} ({q1} to {q3})', ratio, f'{row.peak_mib:.1f}', further]
        )
    return output.get_string()


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Draw the ratios: those to the student's step, and below those to the naive loss."""
    panels = {
        f'time relative to a step of the {STUDENT}': [row for row in rows if row.part != 'loss'],
        'time relative to the naive form of the loss': [row for row in rows if row.part == 'loss'],
    }
    panels = {label: panel for label, panel in panels.items() if panel}
    figure = Figure(figsize=(9, 0.35 * len(rows) + 0.8 * len(panels) + 0.4), layout='constrained')
    figure.suptitle(title)
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=[len(p) + 1 for p in panels.values()])
    for axis, (label, panel) in zip(axes[:, 0], panels.items(), strict=True):
        ratios, low, high = np.array([(row.ratio, row.ratio_q1, row.ratio_q3) for row in panel]).T
        bars = axis.barh([row.name for row in panel], ratios, xerr=(ratios - low, high - ratios), capsize=3)
        axis.bar_label(bars, fmt='%.2f', padding=3)
        axis.axvline(1, color='black', linewidth=0.8)
        axis.margins(x=0.1)
        axis.invert_yaxis()
        axis.set_xlabel(label)
    figure.savefig(path, dpi=110)


if __name__ == '__main__':
    run_tool(main, 'interrupted; nothing is written')
