"""Predict the classes of images and videos.

MODEL is CONFIG.py followed by its CHECKPOINT; a work dir of a training; a published .pth or .safetensors with
its config beside it; or an exported .onnx or .pt2. INPUT is an image, a folder, which is searched with all
folders in it, a pattern in quotation marks such as "frames/*.jpg", or a video.

Written are DIR/labels/NAME.png, class numbers with a palette; DIR/overlays/NAME.jpg, the image with the
colours of its classes and a legend, or NAME.mp4 of a video, without its sound; and with --probabilities
DIR/probabilities/NAME.npz, float16 (classes, height, width). Files that cannot be read are named and passed
over. The command fails if nothing could be predicted. Predictions of earlier runs in DIR are replaced; other
files in its folders labels, overlays and probabilities are not, unless with --force.
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.device import get_device

from bdd_seg.cli.arguments import make_folder
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.deploy.load import load_trained
from bdd_seg.deploy.media import IMAGES, VIDEOS, find_sources
from bdd_seg.deploy.predict import Outcome, Wanted, claim_folder, predict_all
from bdd_seg.errors import ConfigError, first_line
from bdd_seg.runtime.upstream.console import quiet_libraries


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model', metavar='MODEL', help='a trained network; after a CONFIG.py its CHECKPOINT')
    parser.add_argument('inputs', metavar='INPUT', nargs='+', help='images, folders, patterns, videos')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder for what is written')
    parser.add_argument(
        '--batch-size',
        type=int,
        metavar='N',
        help='images of one size that the network gets at once (default: 1 on a CPU, 4 on a GPU)',
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=2,
        metavar='N',
        help='processes that load images, and threads that write; 0 for none (default: 2)',
    )
    parser.add_argument('--labels', action='store_true', help='write label maps of the frames of videos, too')
    parser.add_argument(
        '--probabilities', action='store_true', help='write the probability of each class, too'
    )
    parser.add_argument('--no-overlay', action='store_true', help='write no overlays')
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='opacity of the colours in overlays, 0 to 1 (default: 0.5)'
    )
    parser.add_argument(
        '--skip-existing',
        action='store_true',
        help='pass over inputs whose outputs are there (default: make them again)',
    )
    parser.add_argument(
        '--force', action='store_true', help='also replace files in DIR that this command has not written'
    )
    parser.add_argument('--device', help='such as cpu or cuda:1 (default: a GPU if there is one)')
    return parser.parse_intermixed_args()


@one_line_errors('interrupted; the same command with --skip-existing goes on from here')
def main() -> None:
    """Run the command."""
    args = parse_args()
    quiet_libraries()
    for flag, value, fits in (
        ('--batch-size', args.batch_size, args.batch_size is None or args.batch_size > 0),
        ('--workers', args.workers, args.workers >= 0),
        ('--opacity', args.opacity, 0 <= args.opacity <= 1),
    ):
        if not fits:
            raise ConfigError(f'{flag} {value} is out of range')
    checkpoint, inputs = split_model(args.model, args.inputs)
    sources = find_sources(inputs, args.out)
    if args.no_overlay and not args.labels and not args.probabilities and any(s.is_video for s in sources):
        raise ConfigError('--no-overlay leaves nothing to write of a video. Add --labels or --probabilities')
    device = find_device(args.device)
    make_folder(args.out, '--out')
    wanted = Wanted(not args.no_overlay, args.probabilities, args.labels, args.opacity)
    trained = load_trained(args.model, checkpoint, device)
    if trained.cfg is None and trained.about.prepared_by:
        print(
            f'{args.model}: it expects images prepared by {", ".join(trained.about.prepared_by)}, which this '
            'file does not hold. Give images prepared so, or predict with CONFIG.py CHECKPOINT',
            file=sys.stderr,
        )
    claim_folder(Path(args.out), args.force)
    batch_size = args.batch_size or (1 if device.type == 'cpu' else 4)
    try:
        outcome = predict_all(
            trained, sources, Path(args.out), wanted, device, batch_size, args.workers, args.skip_existing
        )
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f'a batch of {batch_size} does not fit into the memory of {device}. Choose a smaller '
            '--batch-size, or --device cpu'
        ) from error
    print('\n'.join(summary(outcome, args.out)))
    if outcome.skipped and not (outcome.images or outcome.videos or outcome.existing):
        raise ConfigError(f'nothing could be predicted: {len(outcome.skipped)} skipped, as said above')


def split_model(model: str, inputs: list[str]) -> tuple[str | None, list[str]]:
    """Return the checkpoint that follows a config, None for other models, and the inputs.

    Raises:
        ConfigError: The checkpoint is missing, or stands where there is no config; or there is no input.
    """
    first, *others = inputs
    if not (model.endswith('.py') or '::' in model):
        if Path(first).suffix in ('.pth', '.safetensors'):
            raise ConfigError(f'{first!r} is a checkpoint: give its config before it, not {model!r}')
        return None, inputs
    if Path(first).is_dir() or Path(first).suffix.lower() in (*IMAGES, *VIDEOS):
        raise ConfigError(f'{model} is a config: give its checkpoint after it, then {first}')
    if not others:
        raise ConfigError(f'give images, folders or videos after {first}')
    return first, others


def find_device(name: str | None) -> torch.device:
    """Return the device of a name, by default the GPU if there is one.

    Raises:
        ConfigError: There is no such device.
    """
    try:
        device = torch.device(name or get_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'--device {name!r} cannot be used: {first_line(error)}') from error
    return device


def summary(outcome: Outcome, out: str) -> list[str]:
    """Return the lines at the end."""
    counts = [_count(outcome.images, 'image')] if outcome.images or not outcome.videos else []
    if outcome.videos:
        counts.append(f'{_count(outcome.videos, "video")} with {_count(outcome.frames, "frame")}')
    done = outcome.images + outcome.frames
    pace = f' in {outcome.seconds:.1f} s ({done / outcome.seconds:.1f} images/s)' if done else ''
    lines = [f'{out}: {" and ".join(counts)}{pace}']
    if outcome.existing:
        lines.append(f'passed over, since the outputs are there: {outcome.existing}')
    if outcome.skipped:
        lines.append(f'{len(outcome.skipped)} skipped, as said above')
    return lines


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"s" * (number != 1)}'


if __name__ == '__main__':
    main()
