import pytest
import yaml

from skip2bench.config.options import to_plain
from skip2bench.config.tune import EMBEDDED_SIZES, TuneConfig, load_tune_config
from skip2bench.errors import Skip2BenchError


def test_flags_stand_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"ranks": [2, 8], "epochs": 7, "mask_prompt": True}))
    config = load_tune_config({"ranks": "4", "epochs": 2}, path)
    assert config.ranks == (4,)
    assert config.train_config({}).epochs == 2
    assert config.train_config({}).mask_prompt is True


def test_its_own_configuration_is_read_back(tmp_path):
    config = load_tune_config({"blocks": ["all", "0,1"], "learning_rates": "1e-3,3e-3", "seed": 7})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_plain(config)))
    assert load_tune_config({}, path) == config


def test_the_embedded_sweep_is_small_and_others_are_not():
    assert load_tune_config({}).train == EMBEDDED_SIZES
    assert load_tune_config({}).finalists == 1
    own = load_tune_config({"data": "my.json"})
    assert (own.train, own.finalists) == ({"data": "my.json"}, TuneConfig.finalists)
    assert load_tune_config({"epochs": 9}).train_config({}).epochs == 9


def test_auto_is_no_list_of_rates():
    assert load_tune_config({"learning_rates": "auto"}).learning_rates == ()


@pytest.mark.parametrize(
    ("budget", "n", "seconds"), [("24", 24, None), ("90s", None, 90.0), ("1.5h", None, 5400.0)]
)
def test_a_budget_is_a_number_or_a_time(budget, n, seconds):
    config = TuneConfig(budget=budget)
    assert (config.budget_configurations, config.budget_seconds) == (n, seconds)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"skip_r": 4}, "'skip_r' is no option of a sweep; use ranks"),
        ({"rank": 4}, "unknown key 'rank'; did you mean ranks?"),
        ({"weight_decays": "0.1,-1"}, "weight_decays is -1.0; give 0 or more"),
        ({"finalists": 101}, "finalists is 101; give a number from 0 to 100"),
        ({"blocks": []}, "blocks is empty: there is nothing to try; name at least one"),
    ],
)
def test_what_it_refuses(values, error):
    with pytest.raises(Skip2BenchError, match=error):
        load_tune_config(values)
