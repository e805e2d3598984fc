"""Export seven families of networks to ONNX and to 8 bits, and print a table in Markdown.

Each network is mmseg's own config, trained for a short time on generated street scenes, without pretrained
weights, so that its mIoU means something and is no result of the method. What is finished in the work dir is
reused: the same command goes on after an interruption.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bdd_seg  # noqa: F401  first: it says what an installation lacks

# isort: split
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from bdd_seg.cli.arguments import make_folder
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.datasets.street_scenes import write_dataset
from bdd_seg.deploy.exported import segmentor_for
from bdd_seg.deploy.images import at_size, calibration_images, real_images
from bdd_seg.deploy.latency import all_threads, measure
from bdd_seg.deploy.load import Trained, build_plain, trained_of
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.quantize import quantize
from bdd_seg.deploy.validation import Validation
from bdd_seg.deploy.verify import default_size, export_verified
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.atomic_files import write_atomically, write_json
from bdd_seg.runtime.upstream.configs import load_config, type_name, walk
from bdd_seg.runtime.upstream.console import quiet_libraries

ROOT = Path(__file__).parent.parent
DEMO = ROOT / 'configs/pspnet/pspnet_r18-d8-w16_1xb8-demo_street-scenes-96x192.py'
SIZE = (128, 256)
CROP = (96, 192)

FAMILIES = {
    'PSPNet-R18': 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    'STDC1': 'stdc/stdc1_4xb12-80k_cityscapes-512x1024.py',
    'SegFormer-B0': 'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py',
    'DDRNet-23-slim': 'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py',
    'PIDNet-S': 'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
    'OCRNet-HR18s': 'ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py',
    'DeepLabV3+-MobileNetV2': 'mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb2-80k_cityscapes-512x1024.py',
}


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=[*FAMILIES], metavar='NAME')
    parser.add_argument('--iterations', type=int, default=300, help='of each training; 0 for random weights')
    parser.add_argument('--checkpoints', type=Path, help='folder with NAME.pth, instead of training')
    parser.add_argument('--scenes', type=int, nargs=2, default=(600, 100), metavar=('TRAIN', 'VAL'))
    parser.add_argument('--max-drop', type=float, default=0.5, help='points of mIoU that 8 bits may lose')
    parser.add_argument('--no-int8', action='store_true', help='leave out 8 bits and latencies')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/export_families'), help='folder for all files'
    )
    return parser.parse_args()


@one_line_errors('interrupted; the same command goes on from here')
def main() -> None:
    """Run the benchmark."""
    args = parse_args()
    quiet_libraries()  # mmseg's metric logs a table of all classes
    init_default_scope('mmseg')
    make_folder(args.work_dir, '--work-dir')
    train, val = args.scenes
    scenes = args.work_dir / 'scenes'
    write_dataset(scenes, num_train=train, num_val=val, height=SIZE[0], width=SIZE[1], seed=0, workers=2)
    rows = []
    for name in args.families:
        result = args.work_dir / f'{name}.json'
        if not result.is_file():
            write_json(result, family(name, args, scenes))
        rows.append(json.loads(result.read_text()))
    print(markdown(rows))


def family(name: str, args: argparse.Namespace, scenes: Path) -> dict[str, Any]:
    """Train, export and quantise one network, and return what was measured."""
    folder = args.work_dir / name
    make_folder(folder, '--work-dir')
    config = folder / 'config.py'
    write_atomically(config, Config(settings(name, scenes, args.iterations)).pretty_text)
    trained = trained_of(load_config(config), checkpoint(name, config, args))
    images = real_images(trained, 4)
    size = default_size(trained, images[0])
    start = time.perf_counter()
    file = folder / 'float.onnx'
    exported = export_verified(trained.model, trained.about, file, images, size, tell=note(name))
    row = {
        'name': name,
        'parameters': sum(parameter.numel() for parameter in trained.model.parameters()),
        'export_s': time.perf_counter() - start,
        'fixed_because': exported.fixed_because,
        'multiple': exported.about.multiple,
        'error': max(check.error or 0.0 for check in exported.checks),
        'largest': max(check.largest for check in exported.checks),
        'agreement': min(check.agreement for check in exported.checks),
        'float_bytes': file.stat().st_size,
    }
    validation = Validation(trained.cfg)
    row['torch_miou'] = validation.miou(trained.model, f'{name} in torch')
    row['onnx_miou'] = validation.miou(MODELS.build(segmentor_for(file, trained.cfg)), f'{name} in ONNX')
    if not args.no_int8:
        network = DeployedNetwork(trained.model, exported.about)
        row |= int8(name, trained, network, folder, args.max_drop, validation)
    return row


def int8(
    name: str,
    trained: Trained,
    network: DeployedNetwork,
    folder: Path,
    max_drop: float,
    validation: Validation,
) -> dict[str, Any]:
    """Quantise a float file and measure the latencies of torch and of both files."""
    float_file, out = folder / 'float.onnx', folder / 'int8.onnx'

    def evaluate(file: Path, text: str) -> float:
        return validation.miou(MODELS.build(segmentor_for(file, trained.cfg)), f'{name}, {text}')

    files = {'onnx': float_file}
    images = calibration_images(trained)
    row: dict[str, Any] = {'int8_miou': None, 'int8_problem': None}
    try:
        done = quantize(float_file, out, network, images, evaluate, max_drop, note(name))
    except ConfigError as error:
        row['int8_problem'] = str(error)
    else:
        files['int8'] = out
        row |= {'int8_miou': done.miou, 'layers': done.layers, 'in_float': list(done.in_float)}
        row |= {'int8_agreement': done.agreement, 'int8_bytes': out.stat().st_size}
    image = at_size(network, images[:1], network.about.size or SIZE)
    latencies = measure(network, files, image)
    row['milliseconds'] = {
        form: {str(count): latency.median for count, latency in counts.items()}
        for form, counts in latencies.items()
    }
    row['threads'] = [1, all_threads()]
    return row


def settings(name: str, scenes: Path, iterations: int) -> dict[str, Any]:
    """Return the config of a short training: the network of mmseg's config, the demo's data."""
    cfg = load_config(DEMO)
    model = load_config(f'mmseg::{FAMILIES[name]}').model
    for _, part in walk(model, 'model'):
        assert isinstance(part, dict)
        for key in ('init_cfg', 'pretrained'):
            part.pop(key, None)
        if 'min_kept' in part:  # pixels of a batch that a loss keeps, of 1024×1024
            part['min_kept'] = 10_000
    model.data_preprocessor.size = CROP
    model.test_cfg = {'mode': 'whole'}
    cfg.model = model
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[key].dataset.data_root = str(scenes.resolve())
    pipeline = cfg.train_dataloader.dataset.pipeline
    if any(type_name(part) == 'PIDHead' for _, part in walk(model, 'model')):
        pipeline.insert(len(pipeline) - 1, {'type': 'GenerateEdge', 'edge_width': 4})
    cfg.optim_wrapper = {
        'type': 'OptimWrapper',
        'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.01},
    }
    end = max(iterations, 1)
    cfg.param_scheduler = [
        {'type': 'PolyLR', 'eta_min': 1e-5, 'power': 0.9, 'begin': 0, 'end': end, 'by_epoch': False}
    ]
    cfg.train_cfg.max_iters = end
    cfg.default_hooks.checkpoint.interval = end
    cfg.randomness = {'seed': 0}
    return cfg.to_dict()


def checkpoint(name: str, config: Path, args: argparse.Namespace) -> Path:
    """Return the checkpoint of a network: a given one, a trained one, or one of random weights."""
    if args.checkpoints is not None:
        return args.checkpoints / f'{name}.pth'
    folder = config.parent
    if args.iterations == 0:
        torch.manual_seed(0)
        torch.save({'state_dict': build_plain(load_config(config)).state_dict()}, folder / 'random.pth')
        return folder / 'random.pth'
    last = folder / f'iter_{args.iterations}.pth'
    if not last.is_file():
        note(name)(f'training for {args.iterations} iterations')
        tool = str(ROOT / 'tools/train.py')
        command = [sys.executable, tool, str(config), '--work-dir', str(folder), '--resume']
        with (folder / 'training.txt').open('w') as log:
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise ConfigError(f'the training of {name} failed: see {log.name}')
    return last


def note(name: str) -> Any:
    """Return a function that prints a line about a network."""
    return lambda text: print(f'{name}: {text}', flush=True)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    threads: list[int] = next((row['threads'] for row in rows if 'threads' in row), [])
    head = ['network', 'parameters', 'mIoU torch', 'mIoU ONNX', 'takes', 'largest error (of logits up to)']
    head += ['classes agree', 'export', 'float file']
    if threads:
        head += ['mIoU INT8', 'in 8 bits', 'INT8 file', *(f'ms torch, ONNX, INT8, {n} thr.' for n in threads)]
    lines = [head, ['---'] * len(head)]
    for row in rows:
        size = 'one size' if row['fixed_because'] else 'any size'
        if row['multiple'] > 1:
            size += f', × {row["multiple"]}'
        cells = [row['name'], f'{row["parameters"] / 1e6:.2f} M', f'{row["torch_miou"]:.2f}']
        cells += [f'{row["onnx_miou"]:.2f}', size, f'{row["error"]:.1e} ({row["largest"]:.3g})']
        cells += [f'{100 * row["agreement"]:.3f} %', f'{row["export_s"]:.0f} s']
        cells.append(f'{row["float_bytes"] / 1e6:.2f} MB')
        if threads:
            cells += _int8_cells(row, threads)
        lines.append(cells)
    notes = [f'{row["name"]}: {row[key]}' for row in rows for key in _PROBLEMS if row.get(key)]
    return '\n'.join([*(f'| {" | ".join(line)} |' for line in lines), *(f'\n{text}' for text in notes)])


_PROBLEMS = ('fixed_because', 'int8_problem')


def _int8_cells(row: dict[str, Any], threads: list[int]) -> list[str]:
    if row.get('int8_miou') is None:
        cells = ['–', '–', '–']
    else:
        quantised = row['layers'] - len(row['in_float'])
        cells = [f'{row["int8_miou"]:.2f}', f'{quantised} of {row["layers"]}']
        cells.append(f'{row["int8_bytes"] / 1e6:.2f} MB')
    for count in threads:
        times = [row['milliseconds'].get(form, {}).get(str(count)) for form in ('torch', 'onnx', 'int8')]
        cells.append(', '.join('–' if one is None else f'{one:.1f}' for one in times))
    return cells


if __name__ == '__main__':
    main()
