"""Make docs/results.md from the results of the studies.

python docs/make_results.py
"""

from pathlib import Path

from bdd_seg.study.plots import BUDGET_TITLES
from bdd_seg.study.report import HOW_TO_READ, main_table, markdown, mean_and_sd, sentence
from bdd_seg.study.results import Results, load_results, mious

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / 'benchmarks/studies'
PAGE = ROOT / 'docs/results.md'
MARK = '<!-- Made by docs/make_results.py from benchmarks/studies/*/results.json. -->'
INTRODUCTION = (
    'Each table is one command, and each run in it a call of `tools/train.py` and `tools/test.py`. The '
    'report of a study has all comparisons, the classes, the search, and the limits of what it shows.'
)

NOT_MEASURED = """## What was not measured

- Nothing here ran on Cityscapes, and on a GPU nothing but the timing quoted under
  [Cityscapes](cityscapes_camvid.md).
- OpenMMLab's checkpoint could not be downloaded. Loading is tested on checkpoints that the tests make, in
  today's and in the older file format, from a path and from a local server.
- ImageNet weights were not available: every network began with random ones.
- CamVid at full size is ready for a GPU: `python tools/study.py benchmarks/studies/camvid_360x480.yaml
  --time-limit 28`.
- The lines for several GPUs and machines ran as they stand on CPUs only, with two and four processes, on one
  host and on two."""


def page() -> str:
    """Return the text of docs/results.md."""
    parts = [MARK, '# Results', INTRODUCTION, HOW_TO_READ]
    for file in sorted(STUDIES.glob('*/results.json')):
        parts += study(load_results(file), file.parent.name)
    parts += together('methods_street_scenes', 'street_scenes_best_again')
    return '\n\n'.join([*parts, NOT_MEASURED]) + '\n'


def study(results: Results, name: str) -> list[str]:
    """Return the parts of the page on one study, whose folder has this name."""
    parts = [f'## {results.title}', f'```bash\n{results.command}\n```']
    parts.append(f'[Report](../benchmarks/studies/{name}/report.md)')
    for budget in results.budgets():
        parts += [f'**{BUDGET_TITLES[budget].capitalize()}.**', main_table(results, budget)]
        parts += [f'- {line}' for line in against_cwd(results, budget)]
    if results.notes:
        parts += ['**What this does not show.**', '\n'.join(f'- {note}' for note in results.notes)]
    return parts


def together(*names: str) -> list[str]:
    """Return the part on the methods that several studies have in common, with all their seeds."""
    studies = [load_results(STUDIES / name / 'results.json') for name in names]
    trained = [one.finished('iterations').keys() for one in studies]
    first, common = studies[0], {*trained[0]}.intersection(*trained[1:])
    results = first.model_copy(
        update={
            'methods': {name: about for name, about in first.methods.items() if name in common},
            'runs': [run for one in studies for run in one.runs],
        }
    )
    gains = results.differences('iterations', 'test', 'alone')
    others = results.differences('iterations', 'test', 'bdd-channel')
    rows = [
        [
            results.label(method),
            mean_and_sd(mious(runs, 'test')),
            gains[method].reversed().cell() if method in gains else '',
            others[method].cell() if method in others else '',
            str(len(runs)),
        ]
        for method, runs in results.finished('iterations').items()
    ]
    header = ['method', 'test mIoU', '− student alone', 'BDD − it', 'seeds']
    against = others['cwd']
    return [
        '## Street scenes, both studies together',
        'The methods that two studies have in common, with the same settings of their losses: seeds 0 to 2 '
        'with one teacher and in bfloat16, the others with a second one and in float32. Pairs have the same '
        'seed and teacher.',
        *(f'- [{name}](../benchmarks/studies/{name}/report.md)' for name in names),
        markdown(header, 'lrrrr', rows),
        f'BDD against CWD: {against}, adjusted p {against.p_value:.2f}.',
    ]


def against_cwd(results: Results, budget: str) -> list[str]:
    """Return the sentence on BDD and its closest relative, CWD, none where a study lacks one of them."""
    if not {'bdd-channel', 'cwd'} <= results.methods.keys():
        return []
    split = results.judged_on()[-1]
    found = results.differences(budget, split, 'bdd-channel').get('cwd')
    return (
        [] if found is None else [sentence(results.label('bdd-channel'), results.label('cwd'), split, found)]
    )


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
    print(PAGE.relative_to(ROOT))
