"""Make configs/FOLDER/README.md of each method from docs/methods.yaml.

python docs/make_method_pages.py
"""

import textwrap
from pathlib import Path
from typing import Any

import yaml

from bdd_seg.study.results import load_results
from bdd_seg.study.settings import format_overrides

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / 'docs/methods.yaml'
CONFIGS = ROOT / 'configs'
STUDIES = ROOT / 'benchmarks/studies'
MARK = '<!-- Made by docs/make_method_pages.py from docs/methods.yaml. -->'


def load_table() -> dict[str, Any]:
    """Return the content of docs/methods.yaml."""
    return yaml.safe_load(TABLE.read_text(encoding='utf-8'))


def pages(table: dict[str, Any]) -> dict[Path, str]:
    """Return file → text of each page that is not written by hand."""
    return {
        CONFIGS / folder / 'README.md': page(folder, method, table)
        for folder, method in table['methods'].items()
        if not method.get('written_by_hand')
    }


def page(folder: str, method: dict[str, Any], table: dict[str, Any]) -> str:
    """Return the text of one method's page."""
    paper = method['paper']
    parts = [
        MARK,
        f'# {method["title"]}',
        f'{method["compares"]} Paper: [{paper["name"]}]({paper["link"]}).',
        configs(folder, method, table['pairs']),
        '## In a config of your own',
        f'```python\ndistill_losses={as_python(method["losses"])}\n```',
        settings(method),
        _bullets(method.get('notes')),
    ]
    if method.get('differences'):
        parts += ['## Differences from paper and code', _bullets(method['differences'])]
    parts += ['## Published', published(folder, table['recipes']), '## Measured here', measured(folder)]
    return '\n\n'.join(map(_wrapped, filter(None, parts))) + '\n'


def losses_of(folder: str, method: dict[str, Any], config: str) -> list[dict[str, Any]]:
    """Return the losses of one of a folder's configs, named without its ending."""
    prefix, _, pair = config.partition('_')
    losses = method['losses'] if prefix == folder else method['composed'][prefix]
    differing = method.get('by_pair', {}).get(pair, {}) if prefix == folder else {}
    return [{**loss, **differing.get(loss['type'], {})} for loss in losses]


def configs(folder: str, method: dict[str, Any], pairs: dict[str, Any]) -> str:
    """Return the table of a folder's configs: those of the method, then those composed with another."""
    lines = ['| config | losses | teacher | its checkpoint |', '| --- | --- | --- | --- |']
    for prefix in [folder, *method.get('composed', {})]:
        for pair, facts in pairs.items():
            name = f'{prefix}_{pair}'
            if (CONFIGS / folder / f'{name}.py').exists():
                losses = ' + '.join(map(_named, losses_of(folder, method, name)))
                lines.append(f'| `{name}.py` | {losses} | {facts["teacher"]} | {facts["checkpoint"]} |')
    return '\n'.join(lines)


def as_python(losses: list[dict[str, Any]]) -> str:
    """Return a list of losses as the Python of a config."""
    items = []
    for loss in losses:
        taps = [f'{key}={value!r}' for key, value in loss.items() if key.endswith('_tap')]
        others = [f'{key}={value!r}' for key, value in loss.items() if not key.endswith('_tap')]
        lines = [', '.join(part) for part in (others, taps) if part]
        items.append('    dict(' + ',\n         '.join(lines) + ')')
    return f'[dict({lines[0]})]' if len(items) == len(lines) == 1 else '[\n' + ',\n'.join(items) + ']'


def settings(method: dict[str, Any]) -> str:
    """Return the sentences on defaults, labels, layers and the balance."""
    defaults = ', '.join(f'`{key}={value!r}`' for key, value in method['defaults'].items())
    whose = method.get('defaults_are', "the authors'")
    sentences = [f'Defaults of `{method["class"]}`, {whose}: {defaults}.']
    if method['labels']:
        sentences.append('The loss needs labels.')
    if method['balance']:
        sentences.append(
            '`reverse_weight=1.0` adds the reverse KL divergence, which makes it the balanced one of '
            '[BDD](../bdd/README.md); the default is 0.'
        )
    taps = {loss['student_tap'] for loss in method['losses'] if 'student_tap' in loss}
    if 'decode_head.bottleneck' in taps:
        sentences.append(
            "`decode_head.bottleneck` is the last layer before the classifier in mmseg's `PSPHead` and "
            '`ASPPHead`. In other heads it has other names.'
        )
    if 'backbone.layer4' in taps:
        sentences.append('`backbone.layer4` is the last stage of a ResNet.')
    return ' '.join(sentences)


def published(folder: str, recipes: list[dict[str, Any]]) -> str:
    """Return the table of published figures of a method, one recipe a row."""
    rows = [recipe for recipe in recipes if folder in recipe['figures']]
    if not rows:
        return 'No figure is known for the recipes of docs/methods.yaml.'
    lines = [
        'mIoU in percent on val. Rows are of different recipes and cannot be compared with each other.',
        '',
        '| recipe | data | teacher | student | alone | with this method |',
        '| --- | --- | --- | --- | ---: | ---: |',
    ]
    for recipe in rows:
        cells = [f'[{recipe["name"]}]({recipe["link"]})']
        cells += [recipe[key] for key in ('data', 'teacher', 'student', 'alone')]
        lines.append('| ' + ' | '.join([*cells, recipe['figures'][folder]]) + ' |')
    return '\n'.join(lines)


def measured(folder: str) -> str:
    """Return the gains that the studies of this repository measured with a folder's configs."""
    rows = [row for file in sorted(STUDIES.glob('*/results.json')) for row in gains(folder, file)]
    if not rows:
        return 'Not measured.'
    lines = [
        'mIoU on the split that judges, minus that of the student alone with as many iterations: means over '
        'the seeds with 95% intervals, each for itself. The reports tell how the settings were chosen.',
        '',
        '| study | method | setting | mIoU − student alone | seeds |',
        '| --- | --- | --- | ---: | ---: |',
    ]
    return '\n'.join([*lines, *rows])


def gains(folder: str, file: Path) -> list[str]:
    """Return a row for each method of a study that has the folder's name, or one of its configs."""
    results, study = load_results(file), file.parent.name
    if results.control != 'alone':  # a study of something else than methods
        return []
    split = results.judged_on()[-1]
    rows = []
    for other, found in results.differences('iterations', split, results.control).items():
        about = results.methods[other]
        if other == folder or about.config.startswith(f'configs/{folder}/'):
            setting = format_overrides({**about.options, **about.setting}) or 'defaults'
            setting = setting.replace('model.distill_losses.1.', 'second loss: ')
            cells = [f'[{study}](../../benchmarks/studies/{study}/report.md)', about.label, setting]
            rows.append('| ' + ' | '.join([*cells, str(found.reversed()), str(found.seeds)]) + ' |')
    return rows


def _named(loss: dict[str, Any]) -> str:
    own = [f'{key} {value}' for key, value in loss.items() if key != 'type' and not key.endswith('_tap')]
    return ', '.join([f'`{loss["type"]}`', *own])


def _bullets(items: list[str] | None) -> str:
    return '\n'.join(f'- {item}' for item in items or [])


def _wrapped(part: str) -> str:
    """Return a part with its sentences wrapped; tables and code stay as they are."""
    if part.startswith(('```', '#', '<!--')):
        return part
    lines = []
    for line in part.splitlines():
        indent = '  ' if line.startswith('- ') else ''
        wrapped = textwrap.wrap(
            line, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += [line] if line.startswith('|') or not line else wrapped
    return '\n'.join(lines)


if __name__ == '__main__':
    for file, text in pages(load_table()).items():
        file.write_text(text, encoding='utf-8')
        print(file.relative_to(ROOT))
