import json

from bdd_seg.study.logs import read_scores, seconds_per_iteration


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
    assert read_scores(tmp_path) == {'mIoU': 30.5, 'aAcc': 80, 'mAcc': 40, 'classes': classes}
