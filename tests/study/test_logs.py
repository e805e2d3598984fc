import json

from bdd_seg.study.logs import read_log, read_progress, read_scores, seconds_per_iteration


def test_what_is_read_of_logs(tmp_path):
    for session, times in (('1', [0.1, 0.2]), ('2', [0.9])):
        folder = tmp_path / session / 'vis_data'
        folder.mkdir(parents=True)
        lines = [{'time': time, 'loss': 1.0} for time in times] + [{'mIoU': 3.0, 'time': 7.0}]
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    assert seconds_per_iteration(tmp_path) == 0.2
    (tmp_path / '2/2.json').write_text(
        '{"mIoU": 30.5, "aAcc": 80, "mAcc": 40, "IoU.road": 90.25, "IoU.train": NaN, "time": 1}\n'
    )
    classes = {'road': 90.25, 'train': None}
    expected = {'mIoU': 30.5, 'aAcc': 80, 'mAcc': 40, 'classes': classes}
    assert read_scores(tmp_path).to_json() == expected


def session(folder, records, config='train_cfg = dict(max_iters=100)', end=''):
    (folder / 'vis_data').mkdir(parents=True)
    (folder / 'vis_data/config.py').write_text(config)
    (folder / 'vis_data/scalars.json').write_text('\n'.join(map(json.dumps, records)) + end)


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path):
    session(tmp_path / '1', [{'step': 1, 'loss': 1.0, 'time': 0.5}], end='\n{"step": 2, "lo')
    session(tmp_path / '2', [{'step': 2, 'loss': 1.0, 'time': 0.5}])
    assert [record['step'] for record in read_log(tmp_path)] == [1, 2]
    assert seconds_per_iteration(tmp_path) == 0.5


def test_progress(tmp_path):
    assert read_progress(tmp_path) is None
    records = [{'step': 10 * i, 'loss': 1.0, 'time': 1 if i < 3 else 0.5} for i in range(1, 9)]
    session(tmp_path / '1', records)
    assert read_progress(tmp_path) == (80, 100, 10.0)
    (tmp_path / '2/vis_data').mkdir(parents=True)  # resumed, and nothing logged yet
    assert read_progress(tmp_path) is None


def test_a_training_that_counts_epochs_has_no_progress(tmp_path):
    session(tmp_path / '1', [{'step': 1, 'loss': 1.0, 'time': 0.5}], 'train_cfg = dict(max_epochs=3)')
    assert read_progress(tmp_path) is None
