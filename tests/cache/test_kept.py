import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from caches import CPU, build, make_layout, make_model, serve

from skip2bench.cache.kept import (
    CacheFolder,
    DamagedError,
    describe_content,
    entry_name,
    hash_sample,
    write_arrays,
)
from skip2bench.cache.skip_cache import BuildOrder
from skip2bench.data.samples import Samples
from skip2bench.errors import Skip2BenchError

KEY = {"checkpoint_sha256": "a", "precision": "32-true", "torch": "1"}
ABOUT = {"model": "tiny", "data": "made", "side": "train", "samples": 4}
STORED = [0, 1, 3, 4]


@pytest.fixture
def folder(tmp_path):
    return CacheFolder(tmp_path / "cache")


def keep(folder, model, samples, n_logits=0):
    cache = build(model, samples, STORED, n_logits=n_logits)
    name = entry_name(KEY, cache.layout, samples, STORED)
    order = BuildOrder.of(model, samples, STORED, CPU).ids
    with folder.building(name) as aside:
        hashes = write_arrays(cache.arrays.tensors, aside, cache.layout)
        content = describe_content(KEY, cache.layout, samples, order)
        return cache, folder.commit(name, content, hashes, ABOUT)


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_a_kept_cache_serves_the_same_numbers(folder, samples, tier):
    model = make_model()
    cache, _ = keep(folder, model, samples)
    entry = folder.find(KEY, cache.layout, samples, [4, 1])
    opened = entry.open(cache.layout, samples, [4, 1], tier, CPU)
    assert torch.equal(serve(opened, [4, 1]).features, serve(cache, [4, 1]).features)
    assert torch.equal(serve(opened, [4, 1]).targets, serve(cache, [4, 1]).targets)
    assert bool(opened.arrays.maps) == (tier == "disk")


def test_samples_are_known_by_their_tokens_not_their_numbers(folder, samples):
    cache, _ = keep(folder, make_model(), samples)
    order = [4, 1, 0]
    other = Samples(
        input_ids=[samples.input_ids[i] for i in order], labels=[samples.labels[i] for i in order]
    )
    entry = folder.find(KEY, cache.layout, other, range(3))
    opened = entry.open(cache.layout, other, range(3), "ram", CPU)
    assert torch.equal(serve(opened, [0, 2]).features, serve(cache, [4, 0]).features)


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_a_subset_of_the_blocks_is_served(folder, samples, tier):
    cache, _ = keep(folder, make_model(), samples, n_logits=40)
    fewer = type(cache.layout)(
        blocks=(2, 3), n_embd=16, dtype=torch.float32, compute_dtype=torch.float32
    )
    opened = folder.find(KEY, fewer, samples, [0]).open(fewer, samples, [0], tier, CPU)
    served = serve(opened, [0])
    assert torch.equal(served.features, serve(cache, [0]).features[:, 1:])
    assert served.base_logits is None


def test_what_an_entry_does_not_hold_is_not_found(folder, samples):
    model = make_model()
    cache, _ = keep(folder, model, samples)
    layout = cache.layout
    labels = [label.clone() for label in samples.labels]
    labels[0][-1] = 1  # another label of the same tokens
    relabelled = Samples(input_ids=samples.input_ids, labels=labels)
    assert folder.find(KEY, layout, samples, [0])
    for key in KEY:
        assert folder.find(KEY | {key: "other"}, layout, samples, [0]) is None
    assert folder.find(KEY, layout, samples, [0, 2]) is None
    assert folder.find(KEY, layout, relabelled, [0]) is None
    assert folder.find(KEY, make_layout(model, n_logits=40), samples, [0]) is None
    assert folder.find(KEY, make_layout(model, dtype=torch.int8), samples, [0]) is None
    more_blocks = type(layout)(
        blocks=(0, 1, 2, 3), n_embd=16, dtype=torch.float32, compute_dtype=torch.float32
    )
    assert folder.find(KEY, more_blocks, samples, [0]) is None


@pytest.mark.parametrize("tier", ["ram", "disk"])
@pytest.mark.parametrize("harm", ["truncated", "longer", "flipped", "missing"])
def test_damage_is_seen(folder, samples, harm, tier):
    cache, entry = keep(folder, make_model(), samples)
    path = entry.folder / "features.bin"
    content = bytearray(path.read_bytes())
    if harm == "truncated":
        path.write_bytes(content[:-1])
    elif harm == "longer":
        path.write_bytes(content + b"\0")
    elif harm == "flipped":
        content[100] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(DamagedError, match=r"features\.bin"):
        entry.open(cache.layout, samples, [0], tier, CPU)
    entry.discard()
    assert folder.entries() == []


def test_what_was_not_finished_does_not_exist_and_is_cleared_away(folder, samples):
    cache = build(make_model(), samples)

    def build_and_fail():
        with folder.building("failed") as aside:
            write_arrays(cache.arrays.tensors, aside, cache.layout)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_and_fail()
    assert not list(folder.root.glob(".*.part"))
    killed, busy = folder.root / ".killed.part", folder.root / ".busy.part"
    lock = folder.lock("busy")
    for path in (killed, busy):
        path.mkdir()
        (path / "features.bin").write_bytes(b"half")
    assert folder.entries() == []
    with folder.building("other") as aside:
        assert list(aside.iterdir()) == []
        assert not killed.exists()  # nobody builds it any more
        assert busy.exists()
    lock.release()


def test_a_manifest_that_cannot_be_read_is_passed_over(folder, samples):
    _, entry = keep(folder, make_model(), samples)
    manifest = entry.folder / "manifest.json"
    for text in ("{", json.dumps(entry.manifest | {"format": 0}), "[]"):
        manifest.write_text(text)
        assert folder.entries() == []


def test_identity_of_a_sample_is_its_tokens_and_labels(samples):
    names = {hash_sample(samples, i) for i in range(5)}
    assert len(names) == 5
    swapped = Samples(input_ids=samples.labels, labels=samples.input_ids)
    assert hash_sample(swapped, 1) not in names


def test_removing(folder, samples):
    _, entry = keep(folder, make_model(), samples)
    with pytest.raises(Skip2BenchError, match="has no cache 'other'"):
        folder.select(["other"])
    folder.remove(folder.select([entry.name])[0].name)
    assert folder.entries() == []
    assert not entry.folder.exists()
    with pytest.raises(Skip2BenchError, match="does not exist"):
        CacheFolder(folder.root / "none").select(None)


def test_what_is_being_built_is_not_removed(folder, samples):
    _, entry = keep(folder, make_model(), samples)
    lock = folder.lock(entry.name)
    with pytest.raises(Skip2BenchError, match="is being built"):
        folder.remove(entry.name)
    lock.release()
    folder.remove(entry.name)


def test_what_killed_builds_and_damage_have_left_is_cleared(folder, samples):
    _, entry = keep(folder, make_model(), samples)
    damaged = replace(entry, folder=folder.root / "damaged")
    shutil.copytree(entry.folder, damaged.folder)
    damaged.discard()
    part = folder.find_aside("abc")
    part.mkdir()
    (part / "x.bin").write_bytes(b"12345")
    (folder.root / "mine").mkdir()
    (folder.root / "mine" / "notes.txt").write_text("not a cache")
    husk = sum(it.stat().st_size for it in damaged.folder.iterdir())
    assert folder.clear_left_over() == husk + 5
    assert not part.exists()
    assert not damaged.folder.exists()
    assert (folder.root / "mine" / "notes.txt").exists()
    assert [it.name for it in folder.entries()] == [entry.name]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Skip2BenchError, match="cannot write to cache folder"):
        CacheFolder(tmp_path / "file").lock("x")


@pytest.mark.slow
def test_of_two_processes_one_builds_and_the_other_waits(tiny_checkpoint, tiny_data, tmp_path):
    """The first is held up while it builds, so that the second must wait for it."""
    started, release = tmp_path / "started", tmp_path / "release"
    script = (
        "import sys, time, pathlib\n"
        "import skip2bench.cache.build as b\n"
        "from skip2bench.cli.app import main\n"
        "fill = b.fill\n"
        "def slow(*a, **k):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        f"    while not pathlib.Path({str(release)!r}).exists(): time.sleep(0.05)\n"
        "    return fill(*a, **k)\n"
        "b.fill = slow\n"
        "main()\n"
    )
    command = ["train", "--checkpoint-dir", tiny_checkpoint, "--data", tiny_data, "--blocks", "0"]
    command += ["--max-steps", "4", "--global-batch-size", "8", "--cache-dir", tmp_path / "cache"]
    command += ["--learning-rate", "1e-2", "--lora-dropout", "0", "--device", "cpu"]

    def start(program, name):
        arguments = [*program, *command, "--out-dir", tmp_path / name, "--json"]
        with (
            (tmp_path / f"{name}.out").open("w") as out,
            (tmp_path / f"{name}.err").open("w") as err,
        ):
            return subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdout=out,
                stderr=err,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def wait_for(condition):
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    first = start(["-c", script], "first")
    wait_for(started.exists)
    second = start(["-m", "skip2bench"], "second")
    waiting = f"process {first.pid} builds the cache"
    wait_for(lambda: waiting in (tmp_path / "second.err").read_text())
    release.touch()
    assert [process.wait(180) for process in (first, second)] == [0, 0]
    assert (tmp_path / "second.err").read_text().count("no forward pass") == 2
    outs = [(tmp_path / f"{name}.out").read_text() for name in ("first", "second")]
    losses = [json.loads(out)["final_val_loss"] for out in outs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(CacheFolder(tmp_path / "cache").entries()) == 2  # training and validation
