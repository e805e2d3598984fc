from mmengine.config import Config

from bdd_seg.distill.student import is_distiller, plain_config, plain_model


def test_a_distillers_settings_become_its_students():
    model = {'type': 'SegDistiller', 'backbone': {'depth': 18}, 'teacher': {}, 'distill_losses': []}
    assert is_distiller(model)
    assert plain_model(model) == {'type': 'EncoderDecoder', 'backbone': {'depth': 18}}
    assert plain_model({**model, 'type': 'CascadeSegDistiller'})['type'] == 'CascadeEncoderDecoder'
    assert 'teacher' in model


def test_other_models_stay_as_they_are():
    model = {'type': 'EncoderDecoder', 'teacher': 'a key of its own'}
    assert not is_distiller(model)
    assert plain_model(model) == model


def test_the_rest_of_a_config_stays():
    cfg = Config({'model': {'type': 'SegDistiller', 'teacher': {}}, 'train_cfg': {'max_iters': 3}})
    assert plain_config(cfg).to_dict() == {'model': {'type': 'EncoderDecoder'}, 'train_cfg': {'max_iters': 3}}
    assert cfg.model.type == 'SegDistiller'
