"""Turn a checkpoint of a training into files for others.

Written into OUT are NAME-<8 digits of its SHA-256>.pth, weights and metadata only; the student's plain config
with the same name, which needs no teacher and no bdd_seg; and README.md, a model card filled from the config,
the checkpoint and the log. Plain MMSegmentation loads them. OUT may not be the work dir of a training.
"""

import argparse
import re

from bdd_seg.cli.arguments import make_folder
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.deploy.card import Notes
from bdd_seg.deploy.publish import publish
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.upstream.console import quiet_libraries


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', metavar='CKPT', help='a checkpoint, or a work dir for its latest one')
    parser.add_argument('out', metavar='OUT', help='folder for the files')
    parser.add_argument(
        '--config', help='config of the training (default: that of its work dir, or beside it)'
    )
    parser.add_argument('--name', help="name of the files (default: the config's)")
    parser.add_argument('--safetensors', action='store_true', help='write the weights as .safetensors, too')
    parser.add_argument(
        '--license', metavar='ID', help='licence of the weights, such as apache-2.0, for the card'
    )
    parser.add_argument('--data', metavar='TEXT', help='a sentence on the training data, for the card')
    parser.add_argument('--force', action='store_true', help='replace another README.md in OUT')
    return parser.parse_args()


@one_line_errors()
def main() -> None:
    """Run the command."""
    args = parse_args()
    quiet_libraries()
    if args.name is not None and not re.fullmatch(r'\w[\w.+-]*', args.name):
        raise ConfigError(f'--name {args.name!r} must be letters, digits, and any of _ . + -')
    make_folder(args.out, 'OUT')
    notes = Notes(args.name, args.license, args.data)
    published = publish(args.checkpoint, args.out, args.config, notes, args.safetensors, args.force)
    after = published.weights.stat().st_size
    files = [published.weights, published.config, published.card]
    files += [] if published.safetensors is None else [published.safetensors]
    lines = [
        *map(str, files),
        f'bytes: {published.bytes_before:,} before, {after:,} published '
        f'({100 * after / published.bytes_before:.0f} %)',
    ]
    if published.averaged:
        lines.append('weights: the average of EMAHook, which mmengine evaluates')
    if published.test is not None:
        lines.append(f'scores: none is known. Measure them with {published.test}')
    lines += [f'config: {change}' for change in published.changes]
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
