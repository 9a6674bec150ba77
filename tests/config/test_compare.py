import pytest
import yaml

from skip2bench.config.compare import CompareConfig, load_compare_config
from skip2bench.config.options import to_plain
from skip2bench.errors import Skip2BenchError


@pytest.fixture
def write(tmp_path):
    def run(text: str):
        path = tmp_path / "matrix.yaml"
        path.write_text(text)
        return path

    return run


def test_the_default_is_the_guides_middle_experiment():
    config = load_compare_config({})
    assert (config.flow, config.methods, config.seeds) == (
        "small",
        ("lora", "lora-all", "skip2"),
        3,
    )
    assert config.blocks == ("fast", "balanced", "accurate", "all")
    assert config.learning_rates == ()
    assert config.cell_config({}).learning_rate == 3e-3  # the embedded model's own


def test_the_minimal_flow_is_short_and_still_repeats():
    config = load_compare_config({"flow": "minimal"})
    assert config.seeds == 3
    assert config.cell_config({}).max_steps == 20
    assert load_compare_config({"flow": "minimal", "max_steps": 5}).cell_config({}).max_steps == 5


def test_the_detailed_flow_has_every_method_a_grid_and_its_own_control():
    config = load_compare_config({"flow": "detailed"})
    assert set(config.methods) == {
        *("lora", "lora-all", "lora-last", "lora-top", "full", "full+lora"),
        *("last", "bias", "skip", "skip2"),
    }
    assert config.learning_rates == "auto"
    assert config.seeds == 5
    assert config.aa


def test_flags_win_over_the_file_and_the_file_over_the_flow(write):
    path = write("flow: minimal\nseeds: 7\nmax_steps: 9\nlearning_rates: [1e-3, 3e-3]\n")
    config = load_compare_config({"seeds": 2, "learning_rates": "1e-2"}, path)
    assert config.seeds == 2
    assert config.learning_rates == (1e-2,)
    assert config.cell_config({}).max_steps == 9
    assert config.cell_config({}).train_samples == 80


def test_a_file_describes_any_matrix(write):
    config = load_compare_config(
        {},
        write(
            "baseline: lora\n"
            "train: {epochs: 2, global_batch_size: 8}\n"
            "configurations:\n"
            "  - {method: lora, lora_r: 2}\n"
            "  - {method: skip2, blocks: [0, 1], label: two, learning_rates: [0.1]}\n"
        ),
    )
    assert [entry["method"] for entry in config.configurations] == ["lora", "skip2"]
    assert config.cell_config({}).epochs == 2
    assert config.cell_config({}).global_batch_size == 8


def test_a_written_configuration_reads_back_as_itself(write):
    config = load_compare_config(
        {"flow": "detailed", "peers": "litgpt", "epochs": 2, "seeds": "auto"}
    )
    again = load_compare_config({}, write(yaml.safe_dump(to_plain(config))))
    assert again == config


ERRORS = [
    ({"flow": "huge"}, "flow is 'huge'; choose from minimal, small, detailed"),
    ({"methods": "lora,dora"}, "methods is 'dora'; choose from lora"),
    ({"peers": "axolotl"}, "peers is 'axolotl'; choose from litgpt, peft, peft-dora, peft-rslora"),
    ({"seeds": 0}, "seeds is 0; give 1 or more"),
    ({"seeds": "many"}, "seeds is 'many'; give a whole number or auto"),
    ({"seeds": "auto", "seed": 2**32 - 5}, "seed 4294967291 and the 9 after it go beyond"),
    ({"learning_rates": "1e-3,auto"}, "learning_rates is 'auto'; give a number"),
    ({"learning_rates": "1e-3,fast"}, "learning_rates is 'fast'; give a number"),
    ({"learning_rates": "1e-3,0"}, "learning_rate is 0.0; give a number above 0"),
    ({"learning_rates": "1e-3,0.001"}, "learning_rates names a rate twice; give each once"),
    ({"max_memory": "lots"}, "max_memory is 'lots'; give bytes, or such as 500MB or 2GiB"),
    ({"learning_rate": 1e-3}, "'learning_rate' is set for each cell by the matrix; use learning"),
    ({"method": "lora"}, "'method' is set for each cell by the matrix; use methods"),
    ({"cache_dir": "x"}, "'cache_dir' is set for each cell by the matrix; leave it out: cells"),
    ({"seedz": 3}, "unknown key 'seedz'; did you mean seed"),
    ({"epochs": 0}, "epochs is 0; give 1 or more"),
    ({"configurations": "lora"}, "configurations is no list of mappings; write '- method: lora'"),
    ({"configurations": [{"blocks": "all"}]}, "configuration 1 has no method; add one"),
    ({"configurations": [{"method": "dora"}]}, "method is 'dora'; choose from"),
    ({"configurations": [{"method": "lora", "block": 1}]}, "unknown key 'block'; did you mean bl"),
    (
        {"configurations": [{"method": "lora", "learning_rates": 1e-3}]},
        "learning_rates of configuration 1 is 0.001; write a list such as [3e-3]",
    ),
    ({"configurations": [{"method": "lora", "max_memory": "x"}]}, "max_memory is 'x'; give bytes"),
]


@pytest.mark.parametrize(("values", "message"), ERRORS)
def test_bad_values_are_errors_with_a_remedy(values, message):
    with pytest.raises(Skip2BenchError) as raised:
        load_compare_config(values)
    assert message in str(raised.value)


def test_every_field_has_a_default():
    assert CompareConfig() == CompareConfig(flow="small")


def test_every_cell_gets_the_switches():
    flags = {"quantize": "bnb.nf4", "gradient_checkpointing": True, "compile": True}
    config = load_compare_config(flags)
    for method in ("lora", "skip2"):
        cell = config.cell_config({"method": method})
        assert (cell.quantize, cell.gradient_checkpointing, cell.compile) == ("bnb.nf4", True, True)
    with pytest.raises(Skip2BenchError, match="method 'full' trains some of them"):
        config.cell_config({"method": "full"})


def test_what_is_made_equal_has_one_name():
    assert load_compare_config({}).matched is None
    assert load_compare_config({"match_params": True}).matched == "params"
    assert load_compare_config({"match_params": True, "match": "params"}).matched == "params"
    assert load_compare_config({"match": "memory"}).matched == "memory"


def test_samples_of_equal_time_need_a_number_that_the_baseline_has():
    shared = {"match": "time", "time_for": "samples"}
    assert load_compare_config(shared | {"train_samples": 8}).time_for == "samples"
    with pytest.raises(Skip2BenchError, match="say how many that has with --train-samples"):
        load_compare_config(shared)
    with pytest.raises(Skip2BenchError, match="--time-for samples is of --match time; add it"):
        load_compare_config({"time_for": "samples", "train_samples": 8})


def test_the_minimal_flow_counts_in_epochs_where_they_are_to_be_chosen():
    config = load_compare_config({"flow": "minimal", "match": "time"})
    assert (config.cell_config({}).max_steps, config.cell_config({}).epochs) == (None, 4)
    given = {"flow": "minimal", "match": "time", "epochs": 2}
    assert load_compare_config(given).cell_config({}).epochs == 2
