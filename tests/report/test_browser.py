"""The report page in a real browser."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from synthetic_report import make_report, make_seeds

from bdd_seg.report.data import Report
from bdd_seg.report.page import write_page

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')

CURVES = 'loss', 'distill.loss_bdd', 'distill.reverse_kl', 'mIoU'

ARGUMENTS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-first-run',
]


@dataclass
class Tab:
    """A page in the browser, and what went wrong in it."""

    page: 'playwright.Page'
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on('console', lambda message: self.problems.append(f'{message.type}: {message.text}'))
        self.page.on('pageerror', lambda error: self.problems.append(str(error)))
        self.page.on('request', self._check)

    def _check(self, request: 'playwright.Request') -> None:
        if not request.url.startswith(('file:', 'data:')):
            self.problems.append(f'asked for {request.url[:200]}')

    def show(self, file: Path) -> None:
        """Load a report and wait until all its charts are drawn."""
        self.page.goto(file.as_uri(), wait_until='commit')
        self.page.wait_for_selector('html[data-charts=drawn]', timeout=60000)

    def value(self, expression: str):
        """Return the value of a JavaScript function's body."""
        return self.page.evaluate(f'() => {{ return {expression}; }}')


@pytest.fixture(scope='module')
def browser() -> Iterator['playwright.Browser']:
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('there is no chromium')
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def report() -> Report:
    made = replace(make_report(4, 48, 96), seeds=make_seeds()[:2])
    # One curve of each kind: a browser needs a while for a chart.
    for network in made.networks:
        network.curves[:] = [curve for curve in network.curves if curve.name in CURVES]
    *helped, last = made.pictures
    return replace(made, pictures=[*helped, replace(last, gain=-3.21)])


@pytest.fixture(scope='module')
def tab(browser, report, tmp_path_factory) -> Iterator[Tab]:
    """The report of :func:`report`, 1024 pixels wide."""
    file = tmp_path_factory.mktemp('report') / 'report.html'
    write_page(report, file)
    page = browser.new_page(viewport={'width': 1024, 'height': 800}, color_scheme='light')
    page.set_default_timeout(20000)
    tab = Tab(page)
    tab.show(file)
    yield tab
    assert tab.problems == []
    page.close()


def test_charts_are_drawn(tab):
    drawn = tab.value(
        "[...document.querySelectorAll('.chart')].map((chart) => chart.querySelectorAll('path').length)"
    )
    assert len(drawn) == 11 and min(drawn) > 3
    bars = tab.page.locator('#chart-iou-gain .bars .point path').count()
    assert bars == 19
    assert tab.page.locator('#chart-iou-gain').get_attribute('role') == 'img'
    assert tab.problems == []


def test_curves_against_iterations_or_time(tab):
    title = tab.page.locator('#chart-curves-0-0 .xtitle')
    assert title.text_content() == 'iterations'
    tab.page.get_by_role('button', name='Wall-clock').press('Enter')
    assert title.text_content() == 'hours'
    assert tab.page.get_by_role('button', name='Iterations').get_attribute('aria-pressed') == 'false'
    tab.page.get_by_role('button', name='Iterations').click()
    assert title.text_content() == 'iterations'


@pytest.mark.parametrize('width', [375, 1024, 1920])
def test_no_width_scrolls_the_page_sideways(tab, width):
    tab.page.set_viewport_size({'width': width, 'height': 800})
    assert tab.value('document.documentElement.scrollWidth') == width
    # plotly answers a change of size after a while.
    tab.page.wait_for_function(
        "() => [...document.querySelectorAll('.chart')].every("
        "(chart) => chart.querySelector('.main-svg').clientWidth === chart.clientWidth)"
    )
    tab.page.set_viewport_size({'width': 1024, 'height': 800})


def test_dark_is_the_systems_choice_or_the_readers(tab):
    def colours() -> list[str]:
        return tab.value(
            '[getComputedStyle(document.body).backgroundColor, '
            "document.querySelector('#chart-iou-gain .ytick text').style.fill]"
        )

    light = colours()
    tab.page.emulate_media(color_scheme='dark')
    tab.page.wait_for_function(
        "() => document.getElementById('theme').getAttribute('aria-pressed') === 'true'"
    )
    dark = colours()
    assert dark[0] == 'rgb(16, 19, 23)' and dark[1] == 'rgb(232, 235, 239)'
    assert light[0] == 'rgb(246, 247, 249)' and light[1] == 'rgb(27, 32, 38)'
    tab.page.locator('#theme').click()
    assert colours() == light
    tab.page.emulate_media(color_scheme='light')  # the choice stays
    assert colours() == light


def test_viewer_with_the_keyboard_alone(tab, report):
    page = tab.page
    thumbnail = page.locator('.thumbnail').first
    thumbnail.focus()
    page.keyboard.press('Enter')
    page.locator('#viewer[open]').wait_for()
    assert page.locator('#viewer-name').text_content() == report.pictures[0].name
    assert report.networks[1].label in page.locator('#viewer-scores').text_content()
    slider = page.get_by_role('slider')
    assert (
        tab.value("getComputedStyle(document.getElementById('left-image')).clipPath")
        == 'inset(0px 50% 0px 0px)'
    )
    slider.focus()
    for _ in range(3):
        page.keyboard.press('ArrowRight')
    assert (
        tab.value("getComputedStyle(document.getElementById('left-image')).clipPath")
        == 'inset(0px 47% 0px 0px)'
    )
    assert slider.get_attribute('aria-valuetext') == '53 percent PSPNet-R18, the rest BDD'
    # Elsewhere the arrows are for the next and the previous image, around the end.
    page.locator('#next').focus()
    page.keyboard.press('ArrowRight')
    assert page.locator('#viewer-name').text_content() == report.pictures[1].name
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('ArrowLeft')
    assert page.locator('#viewer-name').text_content() == report.pictures[-1].name
    page.keyboard.press('Escape')
    assert page.locator('#viewer[open]').count() == 0
    assert page.locator('.thumbnail').last.evaluate('(button) => button === document.activeElement')


def test_any_two_layers_are_compared(tab, report):
    page = tab.page
    page.locator('.thumbnail').nth(1).click()
    layers = report.pictures[1].layers
    assert page.locator('#left option').evaluate_all('(all) => all.map((one) => one.value)') == list(layers)
    page.get_by_label('Left', exact=True).select_option('Image')
    page.get_by_label('Right', exact=True).select_option('Errors of BDD')
    # The page has the very image of the layer, and the browser can read it.
    page.evaluate("() => document.getElementById('right-image').decode()")
    size = tab.value(
        "[document.getElementById('right-image').naturalWidth, document.getElementById('right-image').alt]"
    )
    assert size == [96, 'Errors of BDD']
    # What was chosen stays for the next image.
    page.locator('#next').click()
    assert page.locator('#left').input_value() == 'image'
    box = page.locator('#stage').bounding_box()
    page.mouse.move(box['x'] + 0.5 * box['width'], box['y'] + 9)
    page.mouse.down()
    page.mouse.move(box['x'] + 0.2 * box['width'], box['y'] + 9)
    page.mouse.up()
    assert page.locator('#slider').input_value() == '20'
    page.locator('#close').click()


def test_images_are_filtered(tab):
    page = tab.page
    page.get_by_role('button', name='Hurt').click()
    assert page.locator('.thumbnail:visible').count() == 1
    assert page.locator('#shown').text_content() == '1 image'
    page.locator('.thumbnail:visible').click()
    name = page.locator('#viewer-name').text_content()
    page.locator('#next').click()  # the only one that is shown
    assert page.locator('#viewer-name').text_content() == name
    page.keyboard.press('Escape')
    page.get_by_role('button', name='All', exact=True).click()
    assert page.locator('.thumbnail:visible').count() == 4


def test_commands_are_copied(tab):
    button = tab.page.locator('.copy').first
    button.click()
    tab.page.wait_for_function("() => document.querySelector('.copy').textContent !== 'Copy'")
    assert button.text_content() == 'Copied'


def test_parts_have_names(tab):
    unnamed = tab.value(
        "[...document.querySelectorAll('button, select, input, img:not([alt])')].filter((one) => "
        '!one.ariaLabel && !one.textContent.trim() && !one.labels?.length).map((one) => one.outerHTML)'
    )
    assert unnamed == []
    levels = tab.value(
        "[...document.querySelectorAll('main h1, h1, main h2, main h3')].map((one) => +one.tagName[1])"
    )
    assert levels[0] == 1 and max(after - before for before, after in pairwise(levels)) == 1
    skip = tab.page.locator('a, button, summary').first
    skip.focus()
    assert skip.text_content() == 'Skip to the content' and skip.bounding_box()['y'] >= 0
    skip.press('Enter')
    assert tab.value('document.activeElement.id') == 'main'


def test_print_shows_all(tab):
    folded = tab.value("document.querySelectorAll('main details:not([open])').length")
    # As the browser does it before it prints.
    tab.page.emulate_media(media='print', color_scheme='dark')
    tab.page.evaluate("() => { dispatchEvent(new Event('beforeprint')); }")
    assert folded > 3 and tab.page.locator('main details:not([open])').count() == 0
    assert tab.value("document.querySelector('#chart-iou .ytick text').style.fill") == 'rgb(27, 32, 38)'
    assert tab.value("document.querySelector('#chart-seeds-iterations .main-svg').clientWidth") <= 680
    assert tab.page.locator('.control:visible, .copy:visible').count() == 0
    tab.page.evaluate("() => { dispatchEvent(new Event('afterprint')); }")
    tab.page.emulate_media(media='screen', color_scheme='light')
    assert tab.page.locator('main details:not([open])').count() == folded
    assert tab.page.pdf(format='A4').startswith(b'%PDF-')


def test_500_images(browser, report, tmp_path):
    pictures = [replace(report.pictures[index % 4], name=f'{index:04d}.png') for index in range(500)]
    file = tmp_path / 'report.html'
    write_page(replace(report, pictures=pictures, seeds=[], networks=report.networks[:1]), file)
    page = browser.new_page(viewport={'width': 1024, 'height': 800})
    tab = Tab(page)
    tab.show(file)
    first = tab.value("performance.getEntriesByName('first-chart')[0].startTime")
    print(f'{file.stat().st_size / 1e6:.1f} MB with 500 images, the first chart after {first / 1000:.2f} s')
    # No image is decoded before it comes near.
    assert page.locator('.thumbnail').count() == 500
    assert page.locator('.thumbnail img[src]').count() < 60
    page.locator('.thumbnail').last.scroll_into_view_if_needed()
    page.wait_for_function("() => [...document.querySelectorAll('.thumbnail img')].pop().naturalWidth > 0")
    assert page.locator('.thumbnail img[src]').count() < 120
    page.locator('.thumbnail').last.click()
    assert page.locator('#viewer-name').text_content() == '0499.png'
    assert tab.problems == []
    page.close()
