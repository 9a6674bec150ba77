def test_streamed_equals(train):
    kw = {"method": "skip2", "lora_dropout": 0.1}
    _, m, s, _ = train("a", **kw)
    summary, m2, s2, folder = train("b", stream_blocks=True, **kw)
    print(summary)
    assert (s["loss"] == s2["loss"]).all()
    assert (m["val_loss"] == m2["val_loss"]).all()
    assert not (folder / ".cache").exists()
