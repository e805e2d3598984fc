"""Export a trained network, and keep the file if it gives what torch does on real images.

MODEL is a config followed by its checkpoint, a work dir, or a checkpoint with its config beside it. OUT ends
in .onnx; in .pt2, a program of torch.export, which can run any code: load only those you trust; or in
.safetensors, the weights alone with the network's plain config beside them.

The file gives what torch does if no logit differs by more than 1e-3, or 2e-4 of the largest one where that is
more, and the class is the same at 99.9 % of the pixels.

--int8 also writes OUT.int8.onnx in 8 bits, if no more than --max-drop points of mIoU are lost on the config's
validation set; and prints the mIoU, size and speed of all forms.
"""

import argparse
import os
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from rich.console import Console

from bdd_seg.cli.arguments import Options, make_folder, set_options
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.deploy.export import FORMATS, OPSET, import_exporter, write_safetensors
from bdd_seg.deploy.exported import SUFFIXES, segmentor_for
from bdd_seg.deploy.images import PreparedImages, as_inputs, calibration_images, real_images
from bdd_seg.deploy.latency import Row, measure, table, weight_bytes
from bdd_seg.deploy.load import Trained, find_pair, trained_of
from bdd_seg.deploy.network import DeployedNetwork
from bdd_seg.deploy.quantizable import import_quantizer
from bdd_seg.deploy.quantize import quantize
from bdd_seg.deploy.validation import Validation
from bdd_seg.deploy.verify import Exported, default_size, export_verified
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.runtime.upstream.console import is_verbose, quiet_warnings
from bdd_seg.teachers.onnx import import_onnxruntime


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', help='config, work dir, or checkpoint with its config beside it')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint of a config')
    parser.add_argument('out', help='file to write: .onnx, .pt2 or .safetensors')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='take one image of this size only (default: any size and number of images, where that passes '
        'the comparison)',
    )
    sizes.add_argument(
        '--dynamic', action='store_true', help='any size and number of images, or no file at all'
    )
    parser.add_argument(
        '--with-preprocessing',
        action='store_true',
        help='take uint8 images (N, H, W, bands) as they are loaded, blue first, and normalise them inside',
    )
    parser.add_argument(
        '--labels', action='store_true', help='put out class numbers (N, H, W) instead of logits'
    )
    parser.add_argument(
        '--images',
        nargs='+',
        default=[],
        metavar='INPUT',
        help="images, folders or patterns to compare on (default: the config's validation images)",
    )
    parser.add_argument(
        '--num-images', type=int, default=4, help='number of images to compare on (default: 4)'
    )
    parser.add_argument(
        '--int8',
        nargs='*',
        metavar='INPUT',
        help='also write OUT.int8.onnx, whose ranges of 8 bits are those of these images, folders or '
        "patterns (default: the config's training images)",
    )
    parser.add_argument(
        '--max-drop',
        type=float,
        default=0.5,
        metavar='POINTS',
        help='mIoU that --int8 may lose: the layers that lose most stay in float (default: 0.5)',
    )
    parser.add_argument(
        '--reduce-range',
        action='store_true',
        help='use 7 of the 8 bits, for x86 processors without VNNI, which cut large sums off',
    )
    parser.add_argument('--cfg-options', nargs='+', action=Options, help='override settings of the config')
    parser.add_argument(
        '--verbose', action='store_true', default=is_verbose(), help='show all warnings of the libraries'
    )
    return parser.parse_intermixed_args()


@one_line_errors()
def main() -> None:
    """Run the command."""
    args = parse_args()
    if not args.verbose:
        quiet_warnings()
    out = Path(args.out).expanduser()
    check_flags(args, out)
    config, checkpoint = find_pair(args.model, args.checkpoint)
    if out.exists() and os.path.realpath(out) == os.path.realpath(checkpoint):
        raise ConfigError(f'{args.out!r} is the checkpoint itself. Name another file to write')
    cfg = load_config(config)
    set_options(cfg, args.cfg_options)
    init_default_scope('mmseg')
    trained = trained_of(cfg, checkpoint)
    make_folder(out.parent, 'OUT')
    if out.suffix == '.safetensors':
        write_safetensors(trained, out)
        print(f'{out}  {megabytes(out)}, weights alone; their config is {out.with_suffix(".py")}')
    else:
        export(args, trained, out)


def check_flags(args: argparse.Namespace, out: Path) -> None:
    """Check the flags before anything is loaded.

    Raises:
        ConfigError: They contradict each other, or a package is missing.
    """
    if out.suffix not in FORMATS:
        raise ConfigError(f'{args.out!r} must end in {", ".join(FORMATS[:-1])} or {FORMATS[-1]}')
    if Path(args.model).suffix in SUFFIXES or Path(args.checkpoint or '').suffix in SUFFIXES:
        raise ConfigError('MODEL is exported already. Give the config and the checkpoint that it was made of')
    if out.is_dir():
        raise ConfigError(f'{args.out!r} is a folder. Name the file to write')
    if args.num_images < 1:
        raise ConfigError(f'--num-images must be at least 1, not {args.num_images}')
    if args.shape and min(args.shape) < 1:
        raise ConfigError(f'--shape must be a height and a width in pixels, not {args.shape}')
    if out.suffix == '.safetensors':
        for flag in ('shape', 'dynamic', 'with_preprocessing', 'labels', 'images'):
            if getattr(args, flag):
                raise ConfigError(f'--{flag.replace("_", "-")} is for .onnx and .pt2: weights are no program')
    if args.reduce_range and args.int8 is None:
        raise ConfigError('--reduce-range is for --int8. Give that flag, too')
    if args.int8 is not None and out.suffix != '.onnx':
        raise ConfigError(f'--int8 is for .onnx, not for {args.out!r}')
    if not args.max_drop >= 0:
        raise ConfigError(f'--max-drop must be at least 0 points of mIoU, not {args.max_drop}')
    if args.int8 is not None:
        import_quantizer()
    if out.suffix == '.onnx':
        import_exporter()
        import_onnxruntime()


def export(args: argparse.Namespace, trained: Trained, out: Path) -> None:
    """Export to ONNX or a program, and print what was compared.

    Raises:
        ConfigError: It cannot be exported, or differs. There is no file then.
    """
    images = real_images(trained, args.num_images, args.images)
    if args.int8 is not None:  # before the first step that takes time
        calibration, validation = calibration_images(trained, args.int8), Validation(trained.cfg)
    about = trained.about.model_copy(
        update={
            'takes': 'pixels' if args.with_preprocessing else 'normalised',
            'gives': 'labels' if args.labels else 'logits',
        }
    )
    size = tuple(args.shape) if args.shape else default_size(trained, images[0])
    dynamic = False if args.shape else True if args.dynamic else None
    with Console(stderr=True).status('') as status:
        exported = export_verified(trained.model, about, out, images, size, dynamic, status.update)
    print('\n'.join(lines(exported)), flush=True)
    if args.int8 is None and out.suffix == '.onnx' and int8_file(out).exists():
        print(f'{int8_file(out)} is of an earlier export')
    if args.int8 is not None:
        quantize_and_compare(trained, exported, calibration, validation, args)


def quantize_and_compare(
    trained: Trained,
    exported: Exported,
    images: PreparedImages,
    validation: Validation,
    args: argparse.Namespace,
) -> None:
    """Write the file in 8 bits beside the float one, and print a table of both and of torch.

    Raises:
        ConfigError: It loses too much. There is no such file then.
    """
    file = exported.file
    network = DeployedNetwork(trained.model, exported.about)

    def evaluate(tried: Path, name: str) -> float:
        return validation.miou(MODELS.build(segmentor_for(tried, trained.cfg)), name)

    result = quantize(
        file, int8_file(file), network, images, evaluate, args.max_drop, reduce_range=args.reduce_range
    )
    print(result)
    miou = validation.miou(trained.model, 'torch')
    image = torch.from_numpy(next(as_inputs(network, images)))
    times = measure(network, {'ONNX': file, 'INT8': result.file}, image)
    rows = [
        Row('torch', miou, weight_bytes(network), times['torch']),
        Row('ONNX', result.float_miou, file.stat().st_size, times['ONNX']),
        Row('INT8', result.miou, result.file.stat().st_size, times['INT8']),
    ]
    shape = '×'.join(map(str, image.shape))
    print(f'on the CPU, one image {shape}, median of its times and the middle half of them:\n{table(rows)}')


def int8_file(file: Path) -> Path:
    """Return the file in 8 bits that belongs to a float one."""
    return file.with_suffix('.int8.onnx')


def lines(exported: Exported) -> list[str]:
    """Return lines that tell what was written and compared."""
    about, out = exported.about, exported.file
    kind = f'ONNX, opset {OPSET}' if out.suffix == '.onnx' else 'torch.export'
    if about.size is not None:
        size = f'one image of {about.size[0]}×{about.size[1]}'
    else:
        of = f', lengths that are multiples of {about.multiple}' if about.multiple > 1 else ''
        size = f'any number of images of any size{of}'
    told = [f'{out}  {megabytes(out)}, {kind}', f'  takes     {about.takes}: {size}']
    if exported.fixed_because is not None:
        told.append(f'            not any size: {exported.fixed_because}')
    told.append(f'  gives     {about.gives} of {len(about.classes)} classes')
    if about.resize is not None:
        told.append(f'  lacks     the Resize of the test pipeline: resize images {about.resize}, before')
    if about.prepared_by:
        told.append(
            f'  lacks     {", ".join(about.prepared_by)} of the test pipeline: evaluate it with --config, '
            'and prepare images for it in the same way'
        )
    told += [f'  compared  {check}' for check in exported.checks]
    return told


def megabytes(file: Path) -> str:
    """Return the size of a file and of the one with its weights, if there is one beside it."""
    beside = file.with_name(f'{file.name}.data')
    size = file.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
    return f'{size / 1e6:.2f} MB'


if __name__ == '__main__':
    main()
