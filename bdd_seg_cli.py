"""The command ``bdd-seg``. It stands apart from the package, whose import takes seconds."""

import importlib
import sys
from difflib import get_close_matches
from importlib import metadata
from types import ModuleType

COMMANDS = {
    'train': 'train a segmentor, distilled or plain',
    'test': 'evaluate a checkpoint',
    'demo': 'draw street scenes, train a teacher, and distil a student',
    'new': 'write the config of a pair: any teacher, any student',
    'compare': 'two trained networks side by side, in the terminal',
    'report': 'a page that shows what distillation gained, and where',
    'export': 'write a trained network as ONNX, torch.export or safetensors, verified; INT8 on request',
    'predict': 'label images, folders or a video',
    'publish': 'write weights, config and model card of a trained student, for others to use',
    'cache': "keep a teacher's outputs, to train without it",
    'study': 'compare methods over several seeds',
    'scenes': 'draw a data set of street scenes',
    'run': "run a Python script that reads configs, such as mmseg's own tools, with bdd_seg imported",
}
"""Name of a command, which is that of its module in ``bdd_seg.cli`` → a line of help."""


def main() -> None:
    """Run the command that the first argument names, with the arguments that follow."""
    command, *arguments = sys.argv[1:] or ['--help']
    if command in ('-h', '--help'):
        print(_help())
    elif command == '--version':
        print(metadata.version('bdd-seg'))
    elif command in COMMANDS:
        sys.argv = [f'bdd-seg {command}', *arguments]  # as argparse's help and errors begin
        _load(command).main()
    else:
        similar = get_close_matches(command, COMMANDS)
        hint = f'Did you mean {" or ".join(similar)}?' if similar else f'There are {", ".join(COMMANDS)}'
        print(f'error: bdd-seg has no command {command!r}. {hint}', file=sys.stderr)
        sys.exit(2)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f'  {name:{width}}{text}' for name, text in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: bdd-seg COMMAND ...\n',
            'Distil a large semantic-segmentation network into a small one inside MMSegmentation.\n',
            'commands:',
            *lines,
            '\nbdd-seg COMMAND --help lists its flags, bdd-seg --version prints the version.',
        ]
    )


def _load(command: str) -> ModuleType:
    """Import the module of a command; an installation that cannot work ends in one line."""
    try:
        return importlib.import_module(f'bdd_seg.cli.{command}')
    except ImportError as error:
        if error.name != 'bdd_seg':  # no finding of the package's own check
            raise
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
