"""The model card of a published network: Markdown, with the metadata that Hugging Face reads.

What neither the config, nor the checkpoint, nor the log tells is said to be unknown.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS

from bdd_seg.deploy.about import About
from bdd_seg.deploy.evaluations import SCORES, UNKNOWN, Evaluation, public_name
from bdd_seg.distill.student import is_distiller, plain_model
from bdd_seg.runtime.upstream.configs import leaf_datasets, load_config, type_name, walk
from bdd_seg.runtime.versions import package_versions

_SCOPE = '_scope_'  # mmengine's note in what a config inherits from a package


@dataclass(frozen=True)
class Notes:
    """Facts about a network that its owner tells, and no file does.

    Attributes:
        name: Name of the files, by default that of the config.
        license: Licence of the network, as Hugging Face abbreviates it, such as ``apache-2.0``.
        data: Sentences on the training data.
    """

    name: str | None = None
    license: str | None = None
    data: str | None = None


class Weights(NamedTuple):
    """The checkpoint that is published.

    Attributes:
        meta: What it tells besides weights.
        averaged: Whether its weights are the average of ``EMAHook``.
        distilled: Whether they were trained with a teacher.
        parameters: Their number, of those that predict and of those that serve training only.
    """

    meta: Mapping[str, Any]
    averaged: bool
    distilled: bool
    parameters: tuple[int, int]


def model_card(
    name: str,
    cfg: Config,
    about: About,
    weights: Weights,
    files: Mapping[str, bytes],
    changes: Sequence[str],
    notes: Notes,
    evaluations: Sequence[Evaluation],
) -> str:
    """Return the model card.

    Args:
        name: Name of the files, without suffix.
        cfg: The whole config of the training, with teacher and losses.
        about: Facts about the network.
        weights: The checkpoint.
        files: Name → content of the files with weights.
        changes: Sentences on what differs in the published config.
        notes: What the owner tells.
        evaluations: Those of the checkpoint.
    """
    sections = [
        ('Results', _results(evaluations)),
        ('Use', _usage(name, files)),
        ('Data', _data(cfg, notes)),
        ('Teacher and losses', _distillation(cfg, weights)),
        ('Recipe', _recipe(cfg, weights)),
        ('Network', _network(cfg, about, weights)),
        ('Limits', _limits(about, evaluations, changes)),
        ('Licences', _licences(weights, notes)),
        ('Files', _files(files)),
        ('Versions', _versions(weights.meta)),
    ]
    parts = [
        _front_matter(name, weights, notes, evaluations),
        f'# {escape(name)}',
        _summary(cfg, about, weights),
    ]
    for title, text in sections:
        parts += [f'## {title}', text]
    return '\n\n'.join(parts) + '\n'


def escape(text: Any) -> str:
    """Return a text as Markdown that shows it as it is, on one line."""
    line = ' '.join(str(text).split())
    line = line.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return ''.join(f'\\{sign}' if sign in '\\`*_[]|#~$' else sign for sign in line)


def code(text: Any) -> str:
    """Return a text as Markdown code on one line, which may stand in a table."""
    line = ' '.join(str(text).split())
    if any(sign in line for sign in '`|\\'):  # a code span cannot hold them everywhere
        return escape(line)
    return f'`{line}`' if line else ''


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], numbers: int = 0) -> str:
    """Return a Markdown table of cells that are Markdown already.

    Args:
        header: Titles of the columns.
        rows: Their cells.
        numbers: So many columns, the last ones, are aligned to the right.
    """
    rule = ['---'] * (len(header) - numbers) + ['---:'] * numbers
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in [header, rule, *rows])


def _front_matter(name: str, weights: Weights, notes: Notes, evaluations: Sequence[Evaluation]) -> str:
    tags = ['semantic-segmentation', 'image-segmentation', 'mmsegmentation', 'pytorch']
    if weights.distilled:
        tags.append('knowledge-distillation')
    facts: dict[str, Any] = {'pipeline_tag': 'image-segmentation', 'tags': tags}
    if notes.license:
        facts = {'license': notes.license, **facts}
    results = [
        {
            'task': {'type': 'image-segmentation'},
            'dataset': {'name': evaluation.data, 'type': 'other'},
            'metrics': [{'type': 'mean_iou', 'name': 'mIoU', 'value': round(evaluation.scores['mIoU'], 2)}],
        }
        for evaluation in evaluations
        if 'mIoU' in evaluation.scores
    ]
    if results:
        facts['model-index'] = [{'name': name, 'results': results}]
    return f'---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---'


def _summary(cfg: Config, about: About, weights: Weights) -> str:
    predicting, _ = weights.parameters
    origin = 'Distilled.' if weights.distilled else 'Trained without a teacher.'
    if is_distiller(cfg.model):
        losses = ', '.join(code(type_name(loss)) for loss in cfg.model.get('distill_losses', []))
        teacher = cfg.model.get('teacher')
        origin = f'Distilled from {_teacher_name(teacher)}{_teacher_architecture(teacher)} with {losses}.'
    return (
        f'Semantic segmentation of {len(about.classes)} classes: {_architecture(cfg.model)}, '
        f'{predicting / 1e6:.2f} million parameters. {origin}'
    )


def _architecture(settings: Mapping[str, Any]) -> str:
    """Return the types of backbone and head in the ``model`` settings of a config."""
    model = plain_model(settings)
    heads = model.get('decode_head')
    head = heads[-1] if isinstance(heads, list | tuple) else heads
    parts = [model.get('backbone') or model.get('image_encoder'), head]
    return ' and '.join(code(type_name(part)) for part in parts if part) or code(type_name(model))


def _results(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return 'Unknown: the work dir holds no evaluation of this checkpoint.'
    names = [name for name in SCORES if any(name in one.scores for one in evaluations)]
    rows = [
        [escape(one.data), escape(one.source), *(_number(one.scores.get(name), UNKNOWN) for name in names)]
        for one in evaluations
    ]
    parts = ['In percent.', table(['data', 'source', *names], rows, len(names))]
    for one in evaluations:
        if one.classes:
            ious = [[escape(name), _number(iou, 'does not occur')] for name, iou in one.classes.items()]
            parts += [f'IoU of each class, {escape(one.data)}:', table(['class', 'IoU'], ious, 1)]
    if not any(one.classes for one in evaluations):
        parts.append('The IoU of each class is unknown: it was not logged.')
    return '\n\n'.join(parts)


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f'{value:.2f}'


def _usage(name: str, files: Mapping[str, bytes]) -> str:
    weights = next(iter(files))
    python = [
        'from mmseg.apis import inference_model, init_model\n',
        f"model = init_model('{name}.py', '{weights}', device='cpu')",
        "result = inference_model(model, 'image.jpg')",
        'labels = result.pred_sem_seg.data[0]  # (height, width), class numbers',
    ]
    return '\n\n'.join(
        [
            'With MMSegmentation, from the folder of these files:',
            '```python\n' + '\n'.join(python) + '\n```',
            'Or with bdd-seg, which writes label maps and overlays of whole folders and of videos:',
            f'```bash\nbdd-seg predict {weights} IMAGES --out predictions\n```',
        ]
    )


def _data(cfg: Config, notes: Notes) -> str:
    lines = [escape(notes.data)] if notes.data else []
    for title, loader in (('Training', 'train_dataloader'), ('Validation', 'val_dataloader')):
        if cfg.get(loader) is None:
            lines.append(f'- {title}: {UNKNOWN}')
            continue
        for leaf, _ in leaf_datasets(cfg[loader]['dataset'], loader):
            count = _images(leaf)
            number = (
                f'{count} images' if count else f'number of images {UNKNOWN} (they are not on this machine)'
            )
            place = (leaf.get('data_prefix') or {}).get('img_path') or leaf.get('ann_file')
            where = f', {code(public_name(place))}' if place else ''
            lines.append(f'- {title}: {code(type_name(leaf))}{where}, {number}')
    return '\n'.join(lines)


def _images(settings: Mapping[str, Any]) -> int | None:
    """Return the number of images of a data set, None if they are not here."""
    try:
        with DefaultScope.overwrite_default_scope('mmseg'):
            return len(DATASETS.build({**settings, 'pipeline': []}))
    except Exception:  # of any kind, from a data set of the user's own
        return None


def _distillation(cfg: Config, weights: Weights) -> str:
    if not is_distiller(cfg.model) and weights.distilled:
        return 'Unknown: the weights are those of a distilled student, and the config is that of it alone.'
    if not is_distiller(cfg.model):
        return 'None: it was trained on labels alone.'
    rows = [[_teacher_name(cfg.model.get('teacher')), *_teacher_facts(cfg.model.get('teacher'))]]
    parts = [table(['teacher', 'kind', 'weights'], rows)]
    losses = []
    for loss in cfg.model.get('distill_losses', []):
        taps = [loss.get(key) for key in ('student_tap', 'teacher_tap')]
        compared = (
            'class logits'
            if taps == [None, None]
            else ' and '.join(code(tap or 'class logits') for tap in taps)
        )
        shown = {
            key: value for key, value in loss.items() if key not in ('type', 'student_tap', 'teacher_tap')
        }
        losses.append([code(type_name(loss)), compared, _settings(shown) or 'defaults'])
    parts.append(table(['loss', 'compares', 'settings'], losses))
    if cfg.model.get('balance_gradients') is not None:
        parts.append(f'Gradients of the losses are balanced: {escape(cfg.model.balance_gradients)}.')
    return '\n\n'.join(parts)


def _teacher_name(teacher: Any) -> str:
    """Return what a teacher's settings name: a config, a model, several of these."""
    if not isinstance(teacher, Mapping):
        return f'a teacher ({UNKNOWN})'
    members = teacher.get('teachers')
    if isinstance(members, list | tuple):
        return ' and '.join(map(_teacher_name, members))
    for key in ('config', 'model', 'module', 'cache'):
        if isinstance(teacher.get(key), str):
            name = public_name(teacher[key])
            return code(Path(name).name if key == 'config' else name)
    return code(type_name(teacher)) if 'type' in teacher else f'a teacher ({UNKNOWN})'


def _teacher_architecture(teacher: Any) -> str:
    """Return the types of a teacher's backbone and head in brackets, empty where its config is not here."""
    file = teacher.get('config') if isinstance(teacher, Mapping) else None
    if not isinstance(file, str):
        return ''
    try:
        model = load_config(file).model
    except Exception:  # of any kind, from a program that a config is, and from modules that it imports
        return ''
    return f' ({_architecture(model)})'


def _teacher_facts(teacher: Any) -> list[str]:
    if not isinstance(teacher, Mapping):
        return [UNKNOWN, UNKNOWN]
    checkpoint = teacher.get('checkpoint')
    kind = code(type_name(teacher)) if 'type' in teacher else 'mmseg'
    return [kind, code(public_name(checkpoint)) if checkpoint else UNKNOWN]


def _recipe(cfg: Config, weights: Weights) -> str:
    wrapper = cfg.get('optim_wrapper') or {}
    schedulers = cfg.get('param_scheduler') or []
    loader = cfg.get('train_dataloader') or {}
    seed, done = weights.meta.get('seed'), weights.meta.get('iter')
    rows = {
        'optimizer': _optimizer(wrapper),
        'schedule': '; '.join(map(_typed, schedulers if isinstance(schedulers, list) else [schedulers])),
        'length': _length(cfg),
        'this checkpoint': f'after {done} iterations' if done else '',
        'batch size': _batch_size(cfg),
        'crop (height × width)': _crop(loader),
        'seed': '' if seed is None else escape(seed),
        'precision': _precision(wrapper),
        'initial weights': ', '.join(map(code, _initial_weights(cfg))) or 'none that the config names',
        'weights': 'the average of `EMAHook`' if weights.averaged else 'those of the last step',
    }
    return table(['setting', 'value'], [[key, value or UNKNOWN] for key, value in rows.items()])


def _optimizer(wrapper: Mapping[str, Any]) -> str:
    """Return an optimizer, and settings of its wrapper, such as the clipping of gradients."""
    text = _typed(wrapper.get('optimizer') or {})
    extra = {
        key: value for key, value in wrapper.items() if key not in ('optimizer', _SCOPE) and value is not None
    }
    return f'{text}; {_typed({"type": "OptimWrapper", **extra})}' if extra.keys() - {'type'} else text


def _length(cfg: Config) -> str:
    train = cfg.get('train_cfg') or {}
    units = {'max_iters': 'iterations', 'max_epochs': 'epochs'}
    return ', '.join(f'{train[key]} {unit}' for key, unit in units.items() if train.get(key))


def _batch_size(cfg: Config) -> str:
    size = (cfg.get('train_dataloader') or {}).get('batch_size')
    if not size:
        return ''
    processes = 'one process' if cfg.get('launcher') == 'none' else f'number of processes {UNKNOWN}'
    return f'{size} per process, {processes}'


def _crop(loader: Mapping[str, Any]) -> str:
    """Return the size of the first crop in the pipeline of a loader, empty where it crops nothing."""
    size = next((part['crop_size'] for _, part in walk(loader, '') if 'crop_size' in part), '')
    return escape(' × '.join(map(str, size)) if isinstance(size, list | tuple) else size)


def _precision(wrapper: Mapping[str, Any]) -> str:
    return 'float32' if wrapper.get('type') in (None, 'OptimWrapper') else code(type_name(wrapper))


def _initial_weights(cfg: Config) -> list[str]:
    """Return the names of the weights that a training began with."""
    named = []
    for _, part in walk(plain_model(cfg.model), 'model'):
        inits = part.get('init_cfg')
        named.append(part.get('pretrained'))
        named += [
            init.get('checkpoint')
            for init in (inits if isinstance(inits, list) else [inits or {}])
            if type_name(init) == 'Pretrained'
        ]
    return list(dict.fromkeys(public_name(name) for name in named if name))


def _typed(settings: Mapping[str, Any]) -> str:
    """Return a type and its arguments."""
    if not settings.get('type'):
        return ''
    arguments = _settings({key: value for key, value in settings.items() if key != 'type'})
    return code(type_name(settings)) + (f' ({arguments})' if arguments else '')


def _settings(settings: Mapping[str, Any]) -> str:
    return ', '.join(
        f'{escape(key)} = {escape(_plain(value))}' for key, value in settings.items() if key != _SCOPE
    )


def _plain(value: Any) -> Any:
    """Return a value without what mmengine adds to it: its containers, and the scope of a type."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if key != _SCOPE}
    return public_name(value) if isinstance(value, str) else value


def _network(cfg: Config, about: About, weights: Weights) -> str:
    predicting, training = weights.parameters
    extra = f'; {training:,} more serve training only' if training else ''
    images = [f'{about.bands} channels']
    if about.bgr_to_rgb:
        images.append('red first')
    shown = ', '.join(f'{value:g}' for value in about.mean), ', '.join(f'{value:g}' for value in about.std)
    images.append(f'mean {shown[0]} and standard deviation {shown[1]} of values from 0 to 255')
    windows = 'whole images'
    if about.windows is not None:
        size, step = (' × '.join(map(str, pair)) for pair in (about.windows.crop_size, about.windows.stride))
        windows = f'sliding windows of {size}, every {step} pixels'
    resize = 'none'
    if about.resize is not None:
        resize = _settings(about.resize.model_dump(exclude_none=True))
    rows = [
        ['parameters', f'{predicting:,}{extra}'],
        ['input', ', '.join(images)],
        ['resized before', resize],
        ['inference', windows],
        ['classes', ', '.join(escape(name) for name in about.classes)],
    ]
    return table(['', ''], rows)


def _limits(about: About, evaluations: Sequence[Evaluation], changes: Sequence[str]) -> str:
    lines = [
        f'It gives each pixel one of these {len(about.classes)} classes, whatever the image shows.',
        'Its scores on other data than those named under Results are unknown.'
        if evaluations
        else 'No score of it is known.',
        'The calibration of its probabilities was not measured.',
        *(f'In its config, {change}.' for change in changes),
    ]
    return '\n'.join(f'- {escape(line)}' for line in lines)


def _licences(weights: Weights, notes: Notes) -> str:
    own = f'is {escape(notes.license)}' if notes.license else 'is not stated'
    teacher = ', of the teacher' if weights.distilled else ''
    return (
        f'The licence of these weights {own}. The licences of the data set{teacher} and of weights it began '
        'with may limit their use: whoever publishes or uses them must check these.'
    )


def _files(files: Mapping[str, bytes]) -> str:
    rows = [
        [code(name), f'{len(content):,}', code(hashlib.sha256(content).hexdigest())]
        for name, content in files.items()
    ]
    return table(['file', 'bytes', 'SHA-256'], rows)


def _versions(meta: Mapping[str, Any]) -> str:
    rows = [[code(package), version or UNKNOWN] for package, version in package_versions().items()]
    rows.append(['`torch`', torch.__version__])
    trained = meta.get('mmengine_version')
    note = f'Versions of the training are {UNKNOWN}.'
    if trained:
        note = f'The training ran with mmengine {escape(trained)}.'
    return f'{note} Published with:\n\n{table(["package", "version"], rows)}'
