"""The figures of a study's report."""

import matplotlib.image
import numpy as np
from helpers import large_study, small_study

from bdd_seg.study.plots import LOOKS, count_seeds, moved_apart, plot_class_gain, plot_wall_clock
from bdd_seg.study.results import Results


def test_marks_are_moved_no_more_than_needed():
    assert moved_apart(np.array([5.0, 1.0, 9.0]), 2.0).tolist() == [5, 1, 9]
    # Three at one place go to both sides of it; what is far away stays.
    assert moved_apart(np.array([3.0, 3.0, 3.0, 20.0]), 2.0).tolist() == [1, 3, 5, 20]


def colours_in(file) -> np.ndarray:
    """Count the colours of a file, the frequent ones first."""
    pixels = (255 * matplotlib.image.imread(file)[..., :3]).round().astype(int)
    _, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert pixels.shape[0] > 300 and pixels.shape[1] > 900
    return np.sort(counts)[::-1]


def test_plots_are_drawn(tmp_path):
    large = Results.model_validate(large_study())
    plot_wall_clock(large, 'test', tmp_path / 'wall_clock.png')
    plot_class_gain(large, 'test', 'iterations', tmp_path / 'class_gain.png')
    assert (colours_in(tmp_path / 'wall_clock.png')[:9] > 200).all()  # white, and a colour per method
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
    plot_wall_clock(many, 'test', tmp_path / 'wall_clock.png')
    plot_class_gain(many, 'test', 'iterations', tmp_path / 'class_gain.png')
    for file in tmp_path.iterdir():
        assert matplotlib.image.imread(file).shape[1] > 1200
    assert len({tuple(look.values()) for look in LOOKS}) == len(LOOKS) >= 24


def test_nothing_is_drawn_of_nothing(tmp_path):
    empty = Results.model_validate({**small_study(), 'runs': []})
    plot_wall_clock(empty, 'test', tmp_path / 'wall_clock.png')
    plot_class_gain(empty, 'test', 'iterations', tmp_path / 'class_gain.png')
    assert not list(tmp_path.iterdir())


def test_seeds_are_counted():
    assert [count_seeds(counts) for counts in ({1}, {3}, {1, 2, 5})] == [
        'one seed',
        '3 seeds',
        '1 to 5 seeds',
    ]
