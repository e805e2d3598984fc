import copy

from mmengine.config import Config

from bdd_seg.runtime.upstream.config_text import skip_layout


def test_the_text_has_the_same_content_and_needs_no_yapf(tiny_configs, tmp_path, monkeypatch):
    cfg = Config.fromfile(tiny_configs['distilled'])
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', None)
    skip_layout(cfg)
    copy.deepcopy(cfg).dump(tmp_path / 'plain.py')  # the Runner copies its config
    assert len((tmp_path / 'plain.py').read_text().splitlines()) > 100
    assert Config.fromfile(tmp_path / 'plain.py').to_dict() == cfg.to_dict()
