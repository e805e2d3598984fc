"""The report page: its numbers, its words, and what must not break it."""

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from synthetic_report import encode, make_calibration, make_report, make_seeds

from bdd_seg.errors import ConfigError
from bdd_seg.report import charts, tables
from bdd_seg.report.data import Calibration, Curve, Evaluation, Network, Picture, Report
from bdd_seg.report.page import data_url, render, script_json, write_page

HOSTILE = '</script><!--<b onclick="x">&\u2028'


class Tables(HTMLParser):
    """The tables of a page, caption → rows of texts, and the ids and texts of its headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.caption = ''
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == 'id']
        if tag in ('caption', 'th', 'td', 'h2', 'h3', 'tr'):
            self.open.append(tag)
        if tag == 'tr':
            self.found[self.caption].append([])
        if tag in ('th', 'td'):
            self.found[self.caption][-1].append('')
        if tag in ('h2', 'h3'):
            self.headings.append('')

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        where = self.open[-1] if self.open else ''
        if where == 'caption' and data.strip():
            self.caption = data
            self.found.setdefault(data, [])
        if where in ('th', 'td'):
            self.found[self.caption][-1][-1] += data
        if where in ('h2', 'h3'):
            self.headings[-1] += data

    def starting(self, caption: str) -> list[list[str]]:
        """Return the rows of the table whose caption begins so."""
        return next(rows for name, rows in self.found.items() if name.startswith(caption))


def script_of(page: str, key: str):
    """Return the JSON of a script of the page."""
    return json.loads(re.search(f'<script type="application/json" id="{key}">(.*?)</script>', page)[1])


def visible(page: str) -> str:
    """Return the page without its scripts and styles."""
    return re.sub(r'<(script|style)[^>]*>.*?</\1>', '', page, flags=re.DOTALL)


@pytest.fixture(scope='module')
def report() -> Report:
    return replace(make_report(2, 48, 96), seeds=make_seeds())


@pytest.fixture(scope='module')
def page(report) -> str:
    return render(report)


def evaluation(confusion, boundary=None, calibration=None, mious=(50.0,)) -> Evaluation:
    confusion = np.array(confusion)
    boundary = np.zeros((2, len(confusion)), int) if boundary is None else np.array(boundary)
    return Evaluation(confusion, boundary, calibration, np.array(mious))


def two_classes(*networks: Network, **changes) -> Report:
    return Report(
        'Cracks', ['background', 'crack'], [(0, 0, 0), (255, 0, 0)], 'test', None, [*networks], **changes
    )


WORSE = evaluation([[80, 20], [10, 90]])  # IoU 72.7 and 75.0, mIoU 73.86
BETTER = evaluation([[90, 10], [10, 90]])  # 81.8 and 81.8, mIoU 81.82
BEST = evaluation([[100, 0], [0, 100]])


def test_headline_has_the_networks_the_gain_and_the_gap():
    report = two_classes(
        Network('teacher', 'teacher', 'T', 'x', BEST, None, 68_070_000, 256_400_000_000, 0.412),
        Network('alone', 'alone', 'A', 'x', WORSE, None, 12_790_000, 54_530_000_000, 0.00871),
        Network('distilled', 'distilled', 'D', 'x', BETTER),
    )
    assert tables.verdict(report) == (
        'Distillation raised the student’s mIoU by 7.95 points, from 73.86 to 81.82. '
        'That closes 30% of the gap to the teacher.'
    )
    assert [(card.value, card.tone) for card in tables.cards(report)] == [
        ('100.00', 'teacher'),
        ('73.86', 'alone'),
        ('81.82', 'distilled'),
        ('+7.95', 'gain'),
        ('30%', 'gap'),
    ]
    assert tables.network_table(report).rows == [
        ['T', 'Teacher', '100.00', '–', '100.00', '–', '68.1', '256', '412'],
        ['A', 'Student alone', '73.86', '–', '85.00', '–', '12.8', '54.5', '8.71'],
        ['D', 'Distilled student', '81.82', '–', '90.00', '–', '–', '–', '–'],
    ]
    assert 'One run each' in render(report) and 'seeds differ' not in render(report)
    numbered = [replace(network, seed=i) for i, network in enumerate(report.networks)]
    assert 'Their seeds differ (1 and 2)' in render(replace(report, networks=numbered))


def test_a_study_of_one_seed_tells_nothing_of_the_spread(report):
    one = [replace(method, mious={0: 50.0}) for method in report.seeds]
    assert 'Over several seeds' in render(report) and 'One run each' not in render(report)
    page = render(replace(report, seeds=one))
    assert 'Over several seeds' not in page and 'One run each' in page


@pytest.mark.parametrize(
    ('teacher', 'alone', 'distilled', 'words'),
    [
        (
            80,
            60,
            55,
            'Distillation lowered the student’s mIoU by 5.00 points, from 60.00 to 55.00. The teacher is',
        ),
        (80, 60, 60, 'Distillation changed nothing: the student stays at 60.00 mIoU. The teacher is 20.00'),
        (80, 60, 85, 'by 25.00 points, from 60.00 to 85.00, 5.00 points beyond its teacher.'),
        (50, 60, 65, 'The teacher is no better than the student alone: there is no gap to close.'),
        (None, 60, 65, 'by 5.00 points, from 60.00 to 65.00.'),
        (
            80,
            None,
            65,
            'distilled reaches 65.00 mIoU, 15.00 points below its teacher, teacher. No evaluated run',
        ),
        (60, None, 65, '5.00 points above its teacher'),
        (None, None, 65, 'distilled reaches 65.00 mIoU. No evaluated run of the student alone'),
        (80, 60, None, 'alone reaches 60.00 mIoU, 20.00 points less than teacher.'),
        (60, 60, None, 'teacher and alone are level at 60.00 mIoU.'),
        (None, 60, None, 'alone reaches 60.00 mIoU.'),
        (None, 60, float('nan'), 'alone reaches 60.00 mIoU.'),
        (None, None, None, 'No network has an mIoU yet.'),
    ],
)
def test_one_sentence_says_if_it_helped(teacher, alone, distilled, words):
    scores = {'teacher': teacher, 'alone': alone, 'distilled': distilled}
    networks = [
        Network(key, key, key, 'x', scores=score) for key, score in scores.items() if score is not None
    ]
    report = two_classes(*networks)
    assert words in tables.verdict(report)
    assert words.replace('&', '&amp;') in render(report)


def test_scores_of_other_measurements_are_not_compared():
    """A recorded score may be of other images."""
    report = two_classes(
        Network('teacher', 'teacher', 'T', 'x', BEST),
        Network('alone', 'alone', 'A', 'x', scores=50.0),
        Network('distilled', 'distilled', 'D', 'x', WORSE),
        Network('distilled-2', 'distilled', 'D2', 'x', BETTER, scores=20.0),
    )
    assert tables.verdict(report) == (
        'D2 reaches 81.82 mIoU, 7.95 points more than D. No evaluated run of the student alone is among '
        'these, so the gain by distillation is unknown.'
    )
    cards = tables.cards(report)
    assert [card.value for card in cards] == ['100.00', '73.86', '81.82', '+7.95']
    assert cards[-1].note == 'points over D'
    assert report.gap_closed is None
    assert [network.key for network in report.compared] == ['distilled', 'distilled-2']
    table = tables.network_table(report)
    assert [row[2] for row in table.rows] == ['100.00', '50.00 (recorded)', '73.86', '81.82']
    assert table.caption.endswith(
        'A recorded mIoU was not measured for this page, and is compared with none.'
    )
    only = two_classes(*(replace(network, evaluation=None, scores=9.0) for network in report.networks))
    assert 'recorded' not in tables.network_table(only).caption
    assert only.compared[0].key == 'alone'


def test_verdict_and_gain_are_of_the_two_that_are_compared():
    a, b, c = (
        Network(name, 'plain', name, 'x', result)
        for name, result in (('A', BETTER), ('B', WORSE), ('C', BEST))
    )
    report = two_classes(a, b, c)
    assert tables.verdict(report) == (
        'B reaches 73.86 mIoU, 7.95 points less than A. The best of all is C, at 100.00 mIoU.'
    )
    cards = tables.cards(report)
    assert [(card.value, card.note) for card in cards][-1] == ('−7.95', 'points over A')
    teacher, distilled = (replace(c, role='teacher', label='T'), replace(b, role='distilled', label='D'))
    report = two_classes(teacher, distilled)
    assert 'D reaches 73.86 mIoU, 26.14 points below its teacher, T.' in tables.verdict(report)
    card = tables.cards(report)[-1]
    assert (card.name, card.value, card.note) == ('Difference', '−26.14', 'points against T')
    assert 'Did it help?' not in render(report)


def test_the_gallery_says_how_many_images_gained():
    alone = replace(WORSE, image_mious=np.array([50.0, 50.0, 50.0, np.nan]))
    distilled = replace(BETTER, image_mious=np.array([60.0, 55.0, 50.0, np.nan]))
    networks = (
        Network('alone', 'alone', 'A', 'x', alone),
        Network('distilled', 'distilled', 'D', 'x', distilled),
    )
    image = encode(np.zeros((4, 8, 3), np.uint8))
    page = render(
        two_classes(*networks, pictures=[Picture('a.png', {'image': image}, {'alone': 50.0}, 10.0)])
    )
    assert 'Of 4 images, 2 are better with D, and 0 with A.' in page
    assert '>Helped (1)</button>' in page and '>Hurt (0)</button>' in page


def test_devices_that_differ_are_told():
    one, two = (
        Network(key, key, key, 'x', WORSE, latency=0.1, device=device)
        for key, device in (('alone', 'H200'), ('distilled', '2 CPU threads'))
    )
    table = tables.network_table(two_classes(one, two))
    assert table.head[-1] == 'Device' and [row[-1] for row in table.rows] == ['H200', '2 CPU threads']
    table = tables.network_table(two_classes(one, replace(two, device='H200')))
    assert table.head[-1] == 'Latency (ms)' and ', on H200.' in table.caption


def test_the_verdict_names_what_else_differs_in_the_training():
    config = '\n'.join(
        [
            "model.type = 'EncoderDecoder'",
            "train_cfg.type = 'IterBasedTrainLoop'",
            'train_cfg.max_iters = 40000',
            'train_cfg.val_interval = 4000',
            'train_dataloader.batch_size = 2',
            'train_dataloader.num_workers = 2',
            "train_dataloader.dataset.data_root = 'data'",
            'load_from = None',
            "custom_hooks.0.type = 'EMAHook'",
        ]
    )
    same = config.replace('EncoderDecoder', 'SegDistiller').replace('= 4000\n', '= 8000\n')
    same = same.replace('num_workers = 2', 'num_workers = 8').replace("'data'", "'/data'")
    same = same.replace('load_from = None\n', '').replace('EMAHook', 'TeacherHook')
    assert tables.training_differences(config, same) == []
    other = same.replace('40000', '80000').replace('batch_size = 2', 'batch_size = 8')
    other += "\nload_from = 'student.pth'"
    keys = ['train_cfg.max_iters', 'train_dataloader.batch_size', 'load_from']
    assert tables.training_differences(config, other) == keys
    assert tables.training_differences(config, "model.type = 'EncoderDecoder'") == []
    networks = (
        Network('alone', 'alone', 'A', 'x', WORSE, config=config),
        Network('distilled', 'distilled', 'D', 'x', BETTER, config=other),
    )
    assert tables.verdict(two_classes(*networks)).endswith(
        'to 81.82. The two were not trained alike, so not all of this need be distillation: '
        'train_cfg.max_iters, train_dataloader.batch_size, load_from differ.'
    )


def test_tables_have_the_values(report, page):
    found = Tables(page)
    teacher, alone, distilled = (network.evaluation for network in report.networks)
    gains = distilled.ious - alone.ious
    head, *rows = found.starting('IoU by class')
    assert head == ['Class', 'PSPNet-R101', 'PSPNet-R18', 'BDD', 'Gain']
    shown = {row[0]: row[1:] for row in rows}
    index = report.classes.index('car')
    assert shown['car'] == [
        *(f'{result.ious[index]:.1f}' for result in (teacher, alone, distilled)),
        f'{gains[index]:+.1f}'.replace('-', '−'),
    ]
    known = [report.classes.index(row[0]) for row in rows]
    in_order = gains[known][np.isfinite(gains[known])]
    assert (np.diff(in_order) <= 0).all() and np.isnan(gains[known][len(in_order) :]).all()
    boundary = {row[0]: row[1:] for row in found.starting('Boundary IoU by class')}
    assert boundary['car'][2] == f'{distilled.boundary_ious[index]:.1f}'
    assert found.starting('Expected calibration')[1][1] == f'{100 * teacher.calibration.error:.2f}'
    _, first, *_ = found.starting('mIoU at equal iterations')
    assert first == ['PSPNet-R18 alone', '3', '55.05 ± 0.41', '41.5', '–']
    curve = report.networks[2].curves[-1]
    row = next(row for row in found.starting('The curves') if row[:2] == ['mIoU', 'BDD'])
    assert row[2:4] == [f'{curve.values[0]:.2f}', f'{curve.values[-1]:.2f}']
    assert found.headings[:5] == [
        'Did it help?',
        'Over several seeds',
        'At equal iterations',
        'At equal wall-clock',
        'IoU by class',
    ]
    assert len(found.ids) == len(set(found.ids))


def test_largest_changes_of_confusions():
    alone = evaluation([[80, 20], [10, 90]])
    distilled = evaluation([[88, 12], [11, 89]])
    table = tables.confusion_table(
        two_classes(
            Network('alone', 'alone', 'A', 'x', alone), Network('distilled', 'distilled', 'D', 'x', distilled)
        )
    )
    assert table.rows == [
        ['background → crack', '20.00', '12.00', '−8.00'],
        ['crack → background', '10.00', '11.00', '+1.00'],
    ]
    one = tables.confusion_table(two_classes(Network('plain', 'plain', 'P', 'x', alone)))
    assert one.rows == [['background → crack', '20.00'], ['crack → background', '10.00']]


def test_charts_have_the_values(report, page):
    figures = script_of(page, 'figures')
    order = tables.class_order(report)
    alone, distilled = report.networks[1].evaluation, report.networks[2].evaluation
    bars = figures['chart-iou-gain']['data'][0]
    gains = (distilled.ious - alone.ious)[order]
    assert bars['x'] == charts.numbers(gains)
    assert figures['chart-confusion']['layout']['yaxis']['ticktext'] == [report.classes[i] for i in order]
    curve = next(curve for curve in report.networks[2].curves if curve.name == 'distill.reverse_kl')
    titles = dict(re.findall(r'id="(chart-[\w-]+)-title">([^<]+)<', page))
    key = next(key for key, title in titles.items() if title == 'distill.reverse_kl')
    (trace,) = figures[key]['data']
    assert trace['y'] == charts.numbers(curve.values)
    assert trace['meta']['iterations'] == charts.numbers(curve.iterations)
    assert trace['meta']['time'] == charts.numbers(curve.seconds / 3600)
    assert figures[key]['layout']['meta'] == {'iterations': 'iterations', 'time': 'hours'}
    # The colour of a network is the same everywhere.
    assert trace['line']['color'] == '@distilled'
    assert [net['line']['color'] for net in figures['chart-calibration']['data'][1:]] == [
        '@teacher',
        '@alone',
        '@distilled',
    ]
    # Every chart has a place, and every place a chart.
    assert set(figures) == set(re.findall(r'class="chart" id="([^"]+)"', page)) and len(figures) > 15


def test_pictures_are_kept_as_they_are(report, page):
    for index, picture in enumerate(report.pictures):
        assert script_of(page, f'picture-{index}') == {
            layer: data_url(content) for layer, content in picture.layers.items()
        }
    settings = script_of(page, 'gallery-settings')
    assert settings['sides'] == ['alone', 'distilled']
    assert settings['layers']['error.alone'] == 'Errors of PSPNet-R18'
    gain = tables.signed(report.pictures[0].gain, 1)
    assert f'aria-label="Open {report.pictures[0].name}, gain {gain} points"' in page


def test_nothing_comes_from_a_network(page):
    plotly = re.search(r'<script>/\*\*\n\* plotly.js.*?</script>', page, re.DOTALL)[0]
    rest = page.replace(plotly, '')
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|@import|url\(', rest)
    assert "default-src 'none'" in rest


def test_hostile_texts_are_shown_as_they_are():
    network = Network(
        'plain', 'plain', HOSTILE, HOSTILE, WORSE, config=HOSTILE, command=HOSTILE, note=HOSTILE
    )
    curve = Curve(f'loss{HOSTILE}', np.arange(3), np.arange(3.0), np.ones(3))
    other = replace(
        network, key='distilled', role='distilled', label=f'{HOSTILE}2', config='', curves=[curve]
    )
    picture = Picture(HOSTILE, {'image': encode(np.zeros((4, 8, 3), np.uint8))}, {'plain': 1.0}, 1.0)
    report = Report(
        HOSTILE,
        [HOSTILE, 'b'],
        [(0, 0, 0), (1, 1, 1)],
        HOSTILE,
        None,
        [replace(network, config='a'), other],
        [picture],
        [replace(make_seeds()[0], label=HOSTILE)],
        {HOSTILE: HOSTILE},
        [HOSTILE],
        [HOSTILE],
    )
    page = render(report)
    assert HOSTILE not in page and '<b onclick' not in page
    plain = render(two_classes(Network('plain', 'plain', 'P', 'x', WORSE)))
    # As many scripts end as begin: two more are the gallery's.
    assert (
        page.count('<script') - plain.count('<script')
        == page.count('</script>') - plain.count('</script>')
        == 2
    )
    # plotly gets the text in its own escapes.
    labels = script_of(page, 'figures')['chart-iou']['layout']['yaxis']['ticktext']
    assert labels[0] == '&lt;/script&gt;&lt;!--&lt;b onc…' or labels[1] == '&lt;/script&gt;&lt;!--&lt;b onc…'


def test_json_in_scripts():
    text = script_json({'a': HOSTILE})
    assert json.loads(text) == {'a': HOSTILE} and not set('<>&\u2028') & set(text)
    with pytest.raises(ValueError, match='JSON'):
        script_json(float('nan'))


def test_one_run_reads_naturally():
    network = Network('plain', 'plain', 'PIDNet', 'x', evaluation([[80, 20], [10, 90]], [[1, 2], [4, 4]]))
    image = encode(np.zeros((4, 8, 3), np.uint8))
    picture = Picture('a.png', {'image': image, 'truth': image, 'plain': image}, {'plain': 41.25})
    page = render(two_classes(network, pictures=[picture]))
    found = Tables(page)
    assert found.headings == [
        'Result',
        'IoU by class',
        'Boundary IoU by class',
        'Confusion',
        'Images',
        'How it was made',
        'Sources',
        '',
    ]
    assert found.starting('IoU by class') == [['Class', 'PIDNet'], ['crack', '75.0'], ['background', '72.7']]
    assert 'aria-label="Open a.png, mIoU 41.2"' in page
    assert script_of(page, 'gallery-settings')['sides'] == ['truth', 'plain']
    for absent in ('Gain', 'gap', 'distil', 'One run each', 'data-filter="gain"'):
        assert absent not in visible(page), absent


def test_two_plain_runs_are_compared():
    report = two_classes(Network('a', 'plain', 'A', 'x', WORSE), Network('b', 'plain', 'B', 'y', BETTER))
    assert [card.value for card in tables.cards(report)] == ['73.86', '81.82', '+7.95']
    assert tables.cards(report)[-1].note == 'points over A'
    page = render(report)
    assert 'Gain: B minus A' in page and 'istill' not in re.sub(
        r'<(script|style)>.*?</\1>', '', page, flags=re.S
    )
    assert charts.network_colours(report.networks) == {'a': '@other-0', 'b': '@other-1'}


def test_networks_of_one_name_are_told_apart():
    networks = Network('a', 'plain', 'PIDNet', 'x', WORSE), Network('b', 'plain', 'PIDNet', 'y', BETTER)
    report = two_classes(*networks)
    head, *_ = Tables(render(report)).starting('IoU by class')
    assert head == ['Class', 'PIDNet (a)', 'PIDNet (b)', 'Gain']


def test_only_curves_of_a_run_without_a_checkpoint():
    curve = Curve('loss', np.arange(1, 4), np.arange(1.0, 4), np.array([3.0, np.nan, 1.0]))
    page = render(two_classes(Network('plain', 'plain', 'A', 'x', curves=[curve], note='no checkpoint yet')))
    assert 'No network has an mIoU yet.' in page and 'no checkpoint yet' in page
    assert Tables(page).starting('The curves')[1][2:] == ['3.000', '1.000', '1.000', '3', '3.000', '1']
    assert script_of(page, 'figures')['chart-curves-1-0']['data'][0]['y'] == [3.0, None, 1.0]


def test_many_classes():
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 20, (171, 171)) + np.diag(rng.integers(100, 900, 171))
    worse, better = evaluation(confusion), evaluation(confusion + np.diag(np.arange(171)))
    networks = [
        Network('alone', 'alone', 'A', 'x', worse),
        Network('distilled', 'distilled', 'D', 'x', better),
    ]
    names = [f'thing {index}' for index in range(171)]
    page = render(Report('171', names, [(1, 2, 3)] * 171, 'val', None, networks))
    figures = script_of(page, 'figures')
    assert figures['chart-iou-gain']['layout']['height'] > 171 * 20
    # Instead of a heat map there is the list of the largest changes.
    assert 'chart-confusion' not in figures
    assert len(Tables(page).starting('The largest changes')) == 1 + tables.MOST_CHANGES
    assert len(Tables(page).starting('IoU by class')) == 172


def test_classes_that_do_not_occur():
    empty = evaluation(np.diag([5, 0]), calibration=make_calibration(0.1))
    nothing = Calibration(np.full(15, np.nan), np.full(15, np.nan), np.zeros(15, int))
    networks = [
        Network('alone', 'alone', 'A', 'x', empty),
        Network('distilled', 'distilled', 'D', 'x', replace(empty, calibration=nothing), flops=0),
        Network('teacher', 'teacher', 'T', 'x', evaluation(np.zeros((2, 2), int))),
    ]
    page = render(two_classes(*networks))
    assert 'nan' not in visible(page).lower()
    assert Tables(page).starting('IoU by class')[2] == ['crack', '–', '–', '–', '–']
    assert script_of(page, 'figures')['chart-iou-gain']['data'][0]['x'] == [0.0, None]


def test_long_curves_are_averaged():
    curve = Curve('loss', np.arange(4000), np.arange(4000.0), np.tile([1.0, 3.0], 2000))
    few = charts.thin_out(curve)
    assert len(few.values) == charts.MOST_POINTS and (few.values == 2.0).all()
    assert few.iterations[:2].tolist() == [4.5, 14.5]


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.0871, '0.0871'),
        (1234.6, '1,235'),
        (-2.5, '−2.50'),
        (0, '0'),
        (3e-7, '3.00e-07'),
        (None, '–'),
        (1e12, '1.00e+12'),
    ],
)
def test_significant_digits(value, text):
    assert tables.significant(value) == text


def test_signs():
    assert [tables.signed(value) for value in (1.234, -1.234, -0.001, float('inf'), None)] == [
        '+1.23',
        '−1.23',
        '0.00',
        '–',
        '–',
    ]


def test_page_is_written_whole(report, page, tmp_path):
    write_page(report, tmp_path / 'report.html')
    assert (tmp_path / 'report.html').read_text(encoding='utf-8') == page
    with pytest.raises(ConfigError, match=r'cannot be written: No such file.*--out'):
        write_page(report, tmp_path / 'absent/report.html')


@pytest.mark.parametrize('package', ['jinja2', 'plotly'])
def test_missing_packages_are_named(report, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r'pip install "bdd-seg\[report\]"'):
        render(report)


def test_layers_are_images():
    with pytest.raises(ValueError, match='neither JPEG nor PNG nor WebP'):
        data_url(b'GIF89a')
    broken = Picture('a', {'image': b'\xff\xd8'}, {})
    with pytest.raises(ValueError, match='not an image'):
        render(two_classes(Network('a', 'plain', 'A', 'x', WORSE), pictures=[broken]))
