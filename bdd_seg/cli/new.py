"""Write the config in which any teacher teaches any mmseg student, once one step of it has run.

TEACHER is the config of an mmseg network (a path or mmseg::FOLDER/NAME.py), a folder or name of a Hugging
Face model, an ONNX file, or package.module:function for a function that returns a network. STUDENT is a whole
mmseg config that trains alone. The step runs on random images: the data need not be there, nor the teacher's
weights if they are an address.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope

from bdd_seg.cli.arguments import Options
from bdd_seg.cli.config_check import check_config
from bdd_seg.cli.errors import one_line_errors
from bdd_seg.cli.trial import Trial
from bdd_seg.distill.settings import build, checked_teacher
from bdd_seg.distill.student import PLAIN_TYPES, is_distiller
from bdd_seg.errors import ConfigError
from bdd_seg.runtime.guards.data import class_names
from bdd_seg.runtime.upstream.configs import load_config
from bdd_seg.runtime.upstream.console import quiet_libraries
from bdd_seg.teachers import NetworkTeacher
from bdd_seg.teachers.class_map import draft, fitting_map
from bdd_seg.teachers.metafile import published


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('teacher', metavar='TEACHER')
    parser.add_argument('student', metavar='STUDENT')
    parser.add_argument('--out', required=True, metavar='FILE.py', help='the config to write')
    parser.add_argument(
        '--loss', nargs='+', default=['BDDLoss'], metavar='TYPE', help='losses (default: BDDLoss)'
    )
    parser.add_argument('--student-tap', help='the module whose output is compared (default: class logits)')
    parser.add_argument('--teacher-tap', help='the module whose output is compared (default: class logits)')
    parser.add_argument(
        '--checkpoint', help="the teacher's weights (default for mmseg's configs: the published ones)"
    )
    parser.add_argument(
        '--teacher-options',
        nargs='+',
        action=Options,
        default={},
        metavar='KEY=VALUE',
        help='more arguments of the teacher, such as input_size=512 or arguments.width=3',
    )
    parser.add_argument('--force', action='store_true', help='overwrite FILE.py')
    return parser.parse_args()


@one_line_errors()
def main() -> None:
    """Run the command."""
    args = parse_args()
    quiet_libraries()
    out = Path(args.out)
    if out.suffix != '.py':
        raise ConfigError(f'--out {args.out!r} must be a Python file, such as my_pair.py')
    if out.exists() and not args.force:
        raise ConfigError(f'--out {args.out!r} exists. Choose another name, or add --force')
    out.parent.mkdir(parents=True, exist_ok=True)
    with DefaultScope.overwrite_default_scope('mmseg'), tempfile.TemporaryDirectory() as scratch:
        student = load_config(args.student)
        if student.get('train_dataloader') is None:
            raise ConfigError(f'{args.student} has no train_dataloader: give the whole config of a training')
        named = Config(teacher_settings(args.teacher, args.checkpoint))
        named.merge_from_dict(args.teacher_options)
        teacher = named.to_dict()
        taps = {'student_tap': args.student_tap, 'teacher_tap': args.teacher_tap}
        losses = [{'type': loss, **{key: tap for key, tap in taps.items() if tap}} for loss in args.loss]
        trial = Trial(Path(scratch))
        if args.teacher_tap is None:  # class logits are compared
            expected = class_names(student.train_dataloader.dataset) or ()
            teacher = with_class_map(teacher, trial.weighted(teacher), expected)
        # Written where it will be, since its paths begin there, and kept if its step has run.
        draft_file = out.with_name(f'{out.stem}_trial_{os.getpid()}.py')
        try:
            draft_file.write_text(config_text(args.student, student, teacher, losses, out), encoding='utf-8')
            cfg = load_config(draft_file)
            check_config(cfg, 'train')
            lines = trial.run(cfg)
            os.replace(draft_file, out)
        finally:
            draft_file.unlink(missing_ok=True)
    print('\n'.join([str(out), *lines, f'Train with: bdd-seg train {out}']))


def teacher_settings(name: str, checkpoint: str | None) -> dict[str, Any]:
    """Return the settings of the teacher that a name stands for.

    Raises:
        ConfigError: There is no such config, or its weights are not given, and none are published.
    """
    weights = {} if checkpoint is None else {'checkpoint': checkpoint}
    if Path(name).suffix in ('.pth', '.pt', '.ckpt', '.safetensors'):
        raise ConfigError(
            f'TEACHER {name!r} is a checkpoint. Give the config that trained it, and --checkpoint {name}'
        )
    if name.endswith('.py') or '::' in name:
        load_config(name)
        entry = published(name)
        if checkpoint is None and (entry is None or entry.weights is None):
            raise ConfigError(f'teacher {name!r}: give its weights, --checkpoint FILE_OR_URL')
        return {'config': name, 'checkpoint': checkpoint or (entry and entry.weights)}
    if name.endswith('.onnx'):
        return {'type': 'OnnxTeacher', 'model': name, **weights}
    if ':' in name:
        return {'type': 'ModuleTeacher', 'module': name, **weights}
    return {'type': 'TransformersTeacher', 'model': name, **weights}


def with_class_map(
    settings: dict[str, Any], trial: dict[str, Any], expected: Sequence[str]
) -> dict[str, Any]:
    """Return a teacher's settings with the map between its classes and those of the data, if they differ.

    Args:
        settings: The teacher's.
        trial: The same, with weights that are there.
        expected: The names of the student's classes.

    Raises:
        ConfigError: They differ, no shipped map fits, and fewer than two names are equal.
    """
    if 'class_map' in settings or not settings.get('check_class_names', True):
        return settings
    teacher = build(checked_teacher(trial), 'teacher')
    if not isinstance(teacher, NetworkTeacher):
        return settings
    own = teacher.load([None]).class_names
    if own is None or not expected or tuple(own) == tuple(expected):
        return settings
    name = fitting_map(own, expected)
    if name is not None:
        return {**settings, 'class_map': name}
    started = draft(own, expected)
    if sum(target is not None for target in started.values()) < 2:
        raise ConfigError(
            f'the classes of the teacher ({", ".join(own)}) are others than those of the data '
            f'({", ".join(expected)}). Say which stands for which in the config: class_map={started}'
        )
    return {**settings, 'class_map': started}


def config_text(
    name: str, student: Config, teacher: dict[str, Any], losses: Sequence[dict[str, Any]], out: Path
) -> str:
    """Return the text of the config.

    Args:
        name: How the student's config was named.
        student: That config.
        teacher: The teacher's settings.
        losses: The settings of the losses.
        out: Where the file will be.

    Raises:
        ConfigError: The student is a distiller already, or of a class that cannot be one.
    """
    kind = student.model.get('type') if 'model' in student else None
    distillers = {plain: distiller for distiller, plain in PLAIN_TYPES.items()}
    if is_distiller(student.get('model', {})) or kind not in distillers:
        raise ConfigError(
            f'student {name!r}: its model is a {kind}. Give the config of a network that trains alone, '
            f'whose model is one of {", ".join(distillers)}'
        )
    base = name if '::' in name else os.path.relpath(name, out.parent)
    here = {
        key: f'{{{{ fileDirname }}}}/{os.path.relpath(value, out.parent)}'
        for key, value in teacher.items()
        if isinstance(value, str) and os.path.exists(value)
    }
    own = (student.get('custom_imports') or {}).get('imports') or []  # a list replaces the one it inherits
    imports = dict.fromkeys(['bdd_seg', *([own] if isinstance(own, str) else own)])
    lines = [
        f'_base_ = {base!r}',
        f'custom_imports = dict(imports={[*imports]!r})',
        'model = dict(',
        f'    type={distillers[kind]!r},',
        f'    teacher={_as_dict({**teacher, **here})},',
        f'    distill_losses=[{", ".join(map(_as_dict, losses))}])',
    ]
    return '\n'.join(lines) + '\n'


def _as_dict(settings: dict[str, Any]) -> str:
    return f'dict({", ".join(f"{key}={value!r}" for key, value in settings.items())})'


if __name__ == '__main__':
    main()
