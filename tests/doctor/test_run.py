import json
import subprocess
import sys
from dataclasses import replace

import pytest

from skip2bench.config.commands import DoctorConfig
from skip2bench.doctor import run as doctor
from skip2bench.doctor import snapshot as machine
from skip2bench.doctor.rows import examine_machine, examine_run, examine_versions
from skip2bench.doctor.run import find_error
from skip2bench.doctor.snapshot import Gpu, Machine, Version
from skip2bench.machine.guide import choose_micro_batch_size
from skip2bench.machine.hardware import Disk, GpuProcess, Memory
from skip2bench.projection.sizes import CacheProjection, MethodProjection, Projection

GIB = 2**30

VERSIONS = (
    Version(name="python", found="3.12.3", wanted=">=3.10"),
    Version(name="torch", found="2.9.0", wanted=">=2.7"),
    Version(name="skip2bench", found="0.1.0", wanted=None),
)


def memory(total, available, limit=None):
    return Memory(
        total_bytes=int(total * GIB),
        available_bytes=int(available * GIB),
        limit_bytes=None if limit is None else int(limit * GIB),
    )


A100 = Machine(
    processor="AMD EPYC 7742",
    cores=16,
    threads=16,
    others_cores=0.2,
    memory=memory(125.6, 120),
    results_disk=Disk(folder="results", total_bytes=1000 * GIB, free_bytes=800 * GIB),
    cache_disk=Disk(folder="/fast", total_bytes=2000 * GIB, free_bytes=1500 * GIB),
    gpu=Gpu(
        name="NVIDIA A100-SXM4-40GB",
        is_usable=True,
        capability=(8, 0),
        driver="570.86",
        cuda="12.8",
        total_bytes=int(39.39 * GIB),
        free_bytes=int(38.9 * GIB),
    ),
    gpu_processes=(),
    versions=VERSIONS,
    device="cuda",
    precision="bf16-true",
)
T4 = replace(
    A100,
    memory=memory(31.2, 28),
    others_cores=3.0,
    cache_disk=None,
    gpu=Gpu(
        name="NVIDIA T4",
        is_usable=True,
        capability=(7, 5),
        driver="570.86",
        cuda="12.8",
        total_bytes=15_828_320_256,
        free_bytes=10 * GIB,
    ),
    gpu_processes=(
        GpuProcess(pid=41, name="python", used_bytes=4 * GIB),
        GpuProcess(pid=42, name="Xorg", used_bytes=None),
    ),
)
LAPTOP = replace(
    A100,
    processor="Intel Core i5",
    cores=4,
    threads=4,
    memory=memory(15.5, 9, limit=8),
    cache_disk=None,
    gpu=None,
    gpu_processes=None,
    device="cpu",
    precision="32-true",
)
NO_DISK = replace(
    LAPTOP,
    others_cores=None,
    results_disk=Disk(folder="results", total_bytes=None, free_bytes=None),
)
LLAMA = Projection(
    model="Llama-2-7b-hf",
    precision="bf16-true",
    total_parameters=6_738_415_616,
    weights_bytes=13_476_831_232,
    micro_batch_size=8,
    data="alpaca.json",
    data_problem=None,
    tokens_are_estimated=True,
    train_samples=2000,
    val_samples=100,
    longest_tokens=512,
    methods=(
        MethodProjection(
            method="lora",
            label="Traditional LoRA",
            trainable_parameters=2_097_152,
            weights_bytes=13_481_025_536,
            optimizer_bytes=12 * 2**20,
            saved_for_backward_bytes=24 * GIB,
            problem=None,
            pass_positions=4096,
        ),
        MethodProjection(
            method="skip2",
            label="Skip2-LoRA (4 blocks)",
            trainable_parameters=524_288,
            weights_bytes=13_477_879_808,
            optimizer_bytes=3 * 2**20,
            saved_for_backward_bytes=2**30,
            problem=None,
            pass_positions=219,
            caches=(
                CacheProjection(
                    tier="device",
                    is_automatic=False,
                    positions=300_000,
                    position_bytes=40_968,
                    usable_bytes=10 * GIB,
                    recomputed_samples=12,
                ),
                CacheProjection(
                    tier="ram",
                    is_automatic=True,
                    positions=300_000,
                    position_bytes=40_968,
                    usable_bytes=20 * GIB,
                    recomputed_samples=0,
                ),
                CacheProjection(
                    tier="disk",
                    is_automatic=False,
                    positions=300_000,
                    position_bytes=40_968,
                    usable_bytes=None,
                    recomputed_samples=0,
                ),
            ),
        ),
    ),
)
GPU_WANTED = "NVIDIA A100 class: compute capability 8.0, 40 GB"
DISK_WANTED = "500 GB free, on an SSD"
SMALLEST = "16 GB, the smallest that the guide names"


def texts(rows):
    return [(row.what, row.found, row.wanted, row.verdict) for row in rows]


def test_an_a100_has_all_that_the_guide_asks_for():
    assert texts(examine_machine(A100)) == [
        ("GPU", "NVIDIA A100-SXM4-40GB, compute capability 8.0", GPU_WANTED, "ok"),
        ("GPU memory", "39.39 GiB, 38.90 GiB free", SMALLEST, "ok"),
        ("GPU driver", "570.86, torch for CUDA 12.8", "", "ok"),
        ("RAM", "125.60 GiB, 120.00 GiB available", "64 GB", "ok"),
        ("disk, results", "800.00 GiB free of 1,000.00 GiB, results", DISK_WANTED, "ok"),
        ("disk, Skip-Cache", "1.46 TiB free of 1.95 TiB, /fast", DISK_WANTED, "ok"),
        ("processor", "AMD EPYC 7742, 16 cores, 16 threads in torch", "", "ok"),
        ("others on the processor", "0.2 of 16 cores busy", "none", "ok"),
        ("others on the GPU", "none", "none", "ok"),
    ]


def test_a_t4_with_32_gb_falls_short():
    below = "below the guide"
    assert texts(examine_machine(T4)) == [
        ("GPU", "NVIDIA T4, compute capability 7.5", GPU_WANTED, below),
        ("GPU memory", "14.74 GiB, 10.00 GiB free", SMALLEST, "ok"),
        ("GPU driver", "570.86, torch for CUDA 12.8", "", "ok"),
        ("RAM", "31.20 GiB, 28.00 GiB available", "64 GB", below),
        ("disk, results", "800.00 GiB free of 1,000.00 GiB, results", DISK_WANTED, "ok"),
        ("processor", "AMD EPYC 7742, 16 cores, 16 threads in torch", "", "ok"),
        ("others on the processor", "3.0 of 16 cores busy", "none", below),
        ("others on the GPU", "python (41), 4.00 GiB; Xorg (42), ?", "none", below),
    ]


def test_a_laptop_without_a_gpu():
    below = "below the guide"
    assert texts(examine_machine(LAPTOP)) == [
        ("GPU", "none", GPU_WANTED, below),
        (
            "RAM",
            "15.50 GiB, 9.00 GiB available, 8.00 GiB by the limit of the control group",
            "64 GB",
            below,
        ),
        ("disk, results", "800.00 GiB free of 1,000.00 GiB, results", DISK_WANTED, "ok"),
        ("processor", "Intel Core i5, 4 cores, 4 threads in torch", "", "ok"),
        ("others on the processor", "0.2 of 4 cores busy", "none", "ok"),
    ]


def test_what_cannot_be_found_out_is_unknown():
    rows = {row.what: row for row in examine_machine(NO_DISK)}
    assert rows["disk, results"].found == "? free of ?, results"
    assert rows["disk, results"].verdict == "unknown"
    assert rows["others on the processor"].verdict == "unknown"
    gpu = replace(A100.gpu, capability=None, driver=None, total_bytes=None, free_bytes=None)
    held = replace(A100, gpu=gpu, gpu_processes=None)
    verdicts = {row.what: row.verdict for row in examine_machine(held) if "GPU" in row.what}
    assert verdicts == dict.fromkeys(
        ("GPU", "GPU memory", "GPU driver", "others on the GPU"), "unknown"
    )
    assert {row.what: row.verdict for row in examine_run(held, LLAMA)}[
        "weights, Llama-2-7b-hf"
    ] == ("unknown")
    assert find_error(held, LLAMA) is None


@pytest.mark.parametrize(
    ("name", "capability", "total", "verdict"),
    [
        ("NVIDIA H100", (9, 0), 79.1, "ok"),
        ("NVIDIA RTX 4090", (8, 9), 23.6, "below the guide"),
        ("Tesla V100-SXM2-32GB", (7, 0), 31.7, "below the guide"),
        ("Quadro of old with much memory", (7, 5), 48, "below the guide"),
    ],
)
def test_the_class_of_an_a100(name, capability, total, verdict):
    gpu = replace(A100.gpu, name=name, capability=capability, total_bytes=int(total * GIB))
    assert next(examine_machine(replace(A100, gpu=gpu))).verdict == verdict


def test_a_gpu_that_this_torch_cannot_use():
    gpu = Gpu(name="NVIDIA T4", is_usable=False, driver="570.86")
    rows = texts(examine_machine(replace(LAPTOP, gpu=gpu)))
    assert rows[0][1] == "NVIDIA T4, driver 570.86; this torch cannot use it"
    assert [what for what, *_ in rows if "GPU" in what] == ["GPU"]


def test_apples_gpu_has_the_machines_memory():
    mac = replace(LAPTOP, device="mps", gpu=Gpu(name="Apple M3, by MPS", is_usable=True))
    rows = [row for row in texts(examine_machine(mac)) if "GPU" in row[0]]
    assert rows == [("GPU", "Apple M3, by MPS", GPU_WANTED, "unknown")]
    assert next(examine_run(mac, LLAMA)).found == "9.00 GiB free in RAM"


def test_a_run_on_an_a100():
    free = "38.90 GiB free on the GPU"
    assert texts(examine_run(A100, LLAMA)) == [
        (
            "weights, Llama-2-7b-hf",
            free,
            "12.55 GiB: 6,738,415,616 parameters, bf16-true",
            "ok",
        ),
        ("micro-batch size", "8", "16 GB: 2, 24 GB: 4, 40 GB: 8", "ok"),
        (
            "data, alpaca.json",
            "2,000 samples to train, 100 to validate, the longest of 512 tokens; an estimate by "
            "the embedded model's tokenizer",
            "a checkpoint folder, for its tokenizer",
            "unknown",
        ),
        (
            "Traditional LoRA",
            f"{free}; 2,097,152 parameters train",
            "36.57 GiB: weights 12.56 GiB, gradients and AdamW 12.0 MiB, saved for backward "
            "24.00 GiB (4,096 positions); about 36.57 GiB at its peak",
            "ok",
        ),
        (
            "Skip2-LoRA (4 blocks)",
            f"{free}; 524,288 parameters train",
            "13.56 GiB: weights 12.55 GiB, gradients and AdamW 3.0 MiB, saved for backward "
            "1.00 GiB (219 positions); about 13.56 GiB at its peak",
            "ok",
        ),
        (
            "Skip-Cache on device",
            "10.00 GiB usable; 12 samples recomputed every epoch",
            "11.45 GiB: 300,000 positions of 40,968 bytes",
            "will not fit",
        ),
        (
            "Skip-Cache on ram (auto)",
            "20.00 GiB usable",
            "11.45 GiB: 300,000 positions of 40,968 bytes",
            "ok",
        ),
        (
            "Skip-Cache on disk",
            "? usable",
            "11.45 GiB: 300,000 positions of 40,968 bytes",
            "unknown",
        ),
    ]


def test_a_run_that_does_not_fit_a_t4():
    verdicts = {row.what: row.verdict for row in examine_run(T4, LLAMA)}
    assert verdicts["weights, Llama-2-7b-hf"] == "will not fit"  # others hold what is missing
    assert verdicts["Traditional LoRA"] == verdicts["Skip2-LoRA (4 blocks)"] == "will not fit"
    assert find_error(T4, LLAMA) is None


def test_what_the_architecture_does_not_let_count_is_unknown():
    lora = replace(LLAMA.methods[0], saved_for_backward_bytes=None, problem="no fixed shapes")
    row = list(examine_run(A100, replace(LLAMA, methods=(lora,))))[-1]
    assert (row.wanted, row.verdict) == ("no fixed shapes", "unknown")


def test_data_that_could_not_be_fetched():
    projection = replace(LLAMA, data="alpaca2k", data_problem="could not be downloaded")
    row = next(row for row in examine_run(A100, projection) if row.what == "data, alpaca2k")
    assert (row.found, row.verdict) == ("could not be downloaded", "unknown")


@pytest.mark.parametrize(
    ("looked_at", "model", "size", "verdict"),
    [
        (A100, "Llama-2-7b-hf", 8, "ok"),
        (T4, "Llama-2-7b-hf", 2, "ok"),
        (
            replace(A100, gpu=replace(A100.gpu, total_bytes=8 * GIB)),
            "pystd",
            1,
            "below the guide",
        ),
        (replace(A100, gpu=replace(A100.gpu, total_bytes=None)), "pystd", 1, "unknown"),
        (LAPTOP, "Llama-2-7b-hf", 1, "ok"),
        (LAPTOP, "pystd", 4, "ok"),
    ],
)
def test_micro_batch_sizes(looked_at, model, size, verdict):
    total = looked_at.device_total_bytes
    assert choose_micro_batch_size(looked_at.device, total, is_embedded=model == "pystd") == size
    rows = examine_run(looked_at, replace(LLAMA, micro_batch_size=size))
    row = next(row for row in rows if row.what == "micro-batch size")
    assert (row.found, row.verdict) == (str(size), verdict)


def test_weights_that_fit_nowhere_are_an_error():
    assert find_error(A100, LLAMA) is None
    assert find_error(LAPTOP, LLAMA) == (
        "the weights of 'Llama-2-7b-hf' take 12.55 GiB in bf16-true, more than any memory here "
        "(8.00 GiB); use a smaller model"
    )
    wide = replace(LLAMA, precision="32-true", weights_bytes=4 * LLAMA.total_parameters)
    assert str(find_error(LAPTOP, wide)).endswith("; use a smaller model, or --precision bf16-true")
    # on the GPU it does not fit, in the memory beside it it does
    assert find_error(T4, wide) is None


def test_software_out_of_bounds_cannot_run():
    old = Version(name="torch", found="2.6.0", wanted=">=2.7")
    versions = (VERSIONS[0], old, Version(name="litgpt", found=None, wanted=">=0.5.13"))
    looked_at = replace(LAPTOP, versions=versions, device=None, problem="torch is 2.6.0")
    assert texts(examine_versions(looked_at)) == [
        ("python", "3.12.3", ">=3.10", "ok"),
        ("torch", "2.6.0", ">=2.7", "cannot run"),
        ("litgpt", "not installed", ">=0.5.13", "cannot run"),
    ]
    assert find_error(looked_at, None) == "torch is 2.6.0"


def test_bounds_that_cannot_be_compared_are_unknown():
    looked_at = replace(LAPTOP, versions=(Version(name="torch", found="2.9.0", wanted=None),))
    assert texts(examine_versions(looked_at)) == [("torch", "2.9.0", "", "unknown")]


@pytest.fixture
def on(monkeypatch):
    """Make `doctor` find a given machine."""

    def put(looked_at):
        monkeypatch.setattr(doctor, "inspect_machine", lambda _config: looked_at)

    return put


@pytest.fixture
def tiny(tiny_checkpoint, tiny_data):
    return ("doctor", "--model", str(tiny_checkpoint), "--data", str(tiny_data), "--blocks", "0,1")


def test_the_table(run, on, tiny):
    on(LAPTOP)
    status, out, err = run(*tiny)
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    verdicts = {cell[0]: cell[3] for cell in cells if cell[3]}
    assert verdicts == {
        "GPU": "below the guide",
        "RAM": "below the guide",
        "disk, results": "ok",
        "processor": "ok",
        "others on the processor": "ok",
        "python": "ok",
        "torch": "ok",
        "skip2bench": "ok",
        "weights, tiny": "ok",
        "micro-batch size": "ok",
        "data, tiny.json": "ok",
        "Traditional LoRA": "ok",
        "Skip2-LoRA (2 blocks)": "ok",
        "Skip-Cache on ram (auto)": "ok",
        "Skip-Cache on disk": "ok",
    }
    assert max(map(len, out.splitlines()[:-1])) <= 120


def test_json_has_the_same_as_data(run, on, tiny):
    on(LAPTOP)
    status, out, _ = run(*tiny, "--methods", "skip2", "--json")
    result = json.loads(out)
    assert status == 0
    assert (result["device"], result["precision"], result["error"]) == ("cpu", "32-true", None)
    assert result["machine"]["memory"]["limit_bytes"] == 8 * GIB
    assert result["projection"]["methods"][0]["trainable_parameters"] == 2 * 2 * 16 * 16
    ram = next(row for row in result["rows"] if row["what"] == "Skip-Cache on ram (auto)")
    cache = result["projection"]["methods"][0]["caches"][0]
    assert ram["figures"]["needed_bytes"] == cache["positions"] * cache["position_bytes"]
    assert ram["verdict"] == "ok"


def test_a_device_that_is_not_there_ends_with_1_after_the_table(run, on, tiny):
    problem = "device 'cuda' is not available to torch 2.9.0; use --device auto"
    on(replace(LAPTOP, device=None, precision=None, problem=problem))
    status, out, err = run(*tiny, "--device", "cuda")
    assert status == 1
    assert "│ RAM" in out
    assert "cannot run" in out
    assert "weights" not in out
    assert err == f"error: {problem}\n"


def test_weights_that_fit_nowhere_end_with_1_after_the_table(run, on, tiny):
    on(replace(LAPTOP, memory=Memory(total_bytes=999, available_bytes=9, limit_bytes=None)))
    status, out, err = run(*tiny, "--json")
    assert status == 1
    assert json.loads(out)["error"].startswith("the weights of 'tiny' take ")
    assert err.startswith("error: the weights of 'tiny' take ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model", "gpt-5"), "error: model 'gpt-5' is neither 'pystd', a checkpoint folder nor "),
        (("--methods", "dora"), "error: methods is 'dora'; choose from lora, lora-all, "),
        (("--data", "none.json"), "error: data file 'none.json' does not exist; check the path\n"),
        (("--blocks", "9"), "error: block 9 does not exist; the model has blocks 0 to 3\n"),
        (("--max-seq-length", "0"), "error: max_seq_length is 0; give 1 or more\n"),
    ],
)
def test_mistakes_are_one_line(run, on, tiny, arguments, text):
    on(LAPTOP)
    status, out, err = run(*tiny, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith(text)


def test_without_torch_nothing_of_it_is_imported(run, monkeypatch):
    real = machine.installed_version
    monkeypatch.setattr(
        machine, "installed_version", lambda name: None if name == "torch" else real(name)
    )
    monkeypatch.setattr(machine, "measure_others_cores", lambda: 0.0)
    # what stands for None in sys.modules cannot be imported
    for name in (
        "torch",
        "litgpt",
        "skip2bench.machine.environment",
        "skip2bench.projection.methods",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    status, out, err = run("doctor")
    assert status == 1
    assert "not installed" in out
    assert err == "error: torch is not installed; pip install 'torch>=2.7'\n"


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import skip2bench.doctor.run, skip2bench.cli.screens, sys; "
    code += "print({'torch', 'litgpt', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_defaults_are_those_of_train_and_bench():
    config = DoctorConfig()
    assert (config.methods, config.blocks) == (("lora", "skip2"), ("balanced",))
    assert (config.model, config.data) == ("pystd", "pydoc")
