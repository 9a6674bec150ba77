import pytest

from skip2bench.errors import Skip2BenchError

STEPS = {"method": "skip2", "lora_dropout": 0.1, "max_steps": 6, "eval_interval": 3}


@pytest.fixture
def domain_text(tmp_path):
    path = tmp_path / "domain.txt"
    path.write_text("".join(f"Line {i} of a text, {i * i} characters long. " for i in range(40)))
    return str(path)


@pytest.mark.parametrize("target", ["hidden", "logits"])
def test_forgetting_is_that_of_the_whole_model(train, domain_text, target):
    settings = {**STEPS, "domain_text": domain_text, "target": target}
    whole, streamed = (
        train(f"{stream}", stream_blocks=stream, **settings) for stream in (False, True)
    )
    assert whole[0]["forgetting"] != 0
    for name in ("domain_loss_before", "domain_loss_after"):
        assert streamed[0][name] == pytest.approx(whole[0][name], abs=1e-5)
    assert not (streamed[3] / ".cache").exists()


def test_a_full_disk_leaves_nothing(train, domain_text, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skip2bench.cache.arrays._allocate", fail)
    with pytest.raises(Skip2BenchError, match="No space left"):
        train(stream_blocks=True, domain_text=domain_text, **STEPS)
    assert list((tmp_path / "run").rglob("*.bin")) == []
