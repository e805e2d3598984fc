"""The figures of a study's report."""

import matplotlib.image
import numpy as np
from helpers import large_study, small_study

from bdd_seg.study.plots import count_seeds, plot_class_gain, plot_methods
from bdd_seg.study.results import Results


def colours_in(file) -> np.ndarray:
    """Count the colours of a file, the frequent ones first."""
    pixels = (255 * matplotlib.image.imread(file)[..., :3]).round().astype(int)
    _, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    return np.sort(counts)[::-1]


def test_plots_are_drawn(tmp_path):
    large = Results.model_validate(large_study())
    plot_methods(large, 'test', tmp_path / 'methods.png')
    plot_class_gain(large, 'test', 'iterations', tmp_path / 'class_gain.png')
    assert (colours_in(tmp_path / 'methods.png')[:3] > 3000).all()  # white, and a colour per budget
    assert (colours_in(tmp_path / 'class_gain.png')[:30] > 1000).all()  # cells of many colours


def test_figures_grow_with_the_number_of_methods(tmp_path):
    content = large_study()
    name = next(method for method in content['methods'] if method != content['control'])
    for number in range(20):
        content['methods'][f'copy{number}'] = content['methods'][name]
        content['runs'] += [
            {**run, 'method': f'copy{number}'} for run in content['runs'] if run['method'] == name
        ]
    many = Results.model_validate(content)
    plot_methods(many, 'test', tmp_path / 'methods.png')
    plot_class_gain(many, 'test', 'iterations', tmp_path / 'class_gain.png')
    height, _, _ = matplotlib.image.imread(tmp_path / 'methods.png').shape
    _, width, _ = matplotlib.image.imread(tmp_path / 'class_gain.png').shape
    assert height > 1200 and width > 1200


def test_nothing_is_drawn_of_nothing(tmp_path):
    empty = Results.model_validate({**small_study(), 'runs': []})
    plot_methods(empty, 'test', tmp_path / 'methods.png')
    plot_class_gain(empty, 'test', 'iterations', tmp_path / 'class_gain.png')
    assert not list(tmp_path.iterdir())


def test_seeds_are_counted():
    assert [count_seeds(counts) for counts in ({1}, {3}, {1, 2, 5})] == [
        'one seed',
        '3 seeds',
        '1 to 5 seeds',
    ]
