"""Bad input to the command line, and the complete line that each is answered with.

`{tiny}`, `{data}` and `{in}` stand for the small checkpoint, its data, and the folder of the files
that a case brings.
"""

FLAGS = [
    (
        (
            "train",
            "--blocks=8",
        ),
        ("block 8 does not exist; the model has blocks 0 to 3"),
    ),
    (
        (
            "train",
            "--blocks=-1",
        ),
        (
            "blocks '-1' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=0,0",
        ),
        ("blocks '0,0' names a block twice; give each block once"),
    ),
    (
        (
            "train",
            "--blocks=",
        ),
        ("blocks is empty; give text, or leave it out"),
    ),
    (
        (
            "train",
            "--blocks=0-3",
        ),
        (
            "blocks '0-3' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=words",
        ),
        (
            "blocks 'words' is no list of block numbers; give e.g. 0,1,2,3, or all, "
            "fast, balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=1.5",
        ),
        (
            "blocks '1.5' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=999999999999999999999999999999",
        ),
        ("block 999999999999999999 does not exist; the model has blocks 0 to 3"),
    ),
    (
        (
            "train",
            "--blocks=" + "9" * 5000,
        ),
        ("block 999999999999999999 does not exist; the model has blocks 0 to 3"),
    ),
    (
        (
            "train",
            "--blocks=0,１",
        ),
        (
            "blocks '0,１' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=²",
        ),
        (
            "blocks '²' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=٣",
        ),
        (
            "blocks '٣' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=,,,",
        ),
        (
            "blocks ',,,' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=0,,1",
        ),
        (
            "blocks '0,,1' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=[[0]]",
        ),
        (
            "blocks '[[0]]' is no list of block numbers; give e.g. 0,1,2,3, or all, "
            "fast, balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=0 1",
        ),
        (
            "blocks '0 1' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=[0,1",
        ),
        (
            "blocks '[0,1' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=0x1",
        ),
        (
            "blocks '0x1' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=\x00",
        ),
        ("blocks is '\\x00', which holds a NUL; take it out"),
    ),
    (
        (
            "train",
            "--blocks=\x1b[31mred",
        ),
        (
            "blocks '\\x1b[31mred' is no list of block numbers; give e.g. 0,1,2,3, or "
            "all, fast, balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--blocks=0\n1",
        ),
        (
            "blocks '0\\n1' is no list of block numbers; give e.g. 0,1,2,3, or all, fast, "
            "balanced, accurate"
        ),
    ),
    (
        (
            "train",
            "--epochs=0",
        ),
        ("epochs is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--epochs=-1",
        ),
        ("epochs is -1; give 1 or more"),
    ),
    (
        (
            "train",
            "--epochs=99999999999999999999",
        ),
        ("epochs is 99999999999999999999; give at most 1000000000"),
    ),
    (
        (
            "train",
            "--epochs=100000000",
        ),
        (
            "the run would take 300,000,000 steps; lower --epochs, or set --max-steps to "
            "at most 10,000,000"
        ),
    ),
    (
        (
            "train",
            "--max-steps=0",
        ),
        ("max_steps is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--train-samples=0",
        ),
        ("train_samples is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--max-seq-length=0",
        ),
        ("max_seq_length is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--max-seq-length=1",
        ),
        ("max_seq_length is 1, which has no next token to learn; give 2 or more"),
    ),
    (
        (
            "train",
            "--global-batch-size=0",
        ),
        ("global_batch_size is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--micro-batch-size=-3",
        ),
        ("micro_batch_size is -3; give 1 or more"),
    ),
    (
        (
            "train",
            "--eval-interval=0",
        ),
        ("eval_interval is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--skip-r=0",
        ),
        ("skip_r is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--lora-r=100000",
        ),
        ("lora_r is 100000; give at most 65536"),
    ),
    (
        (
            "train",
            "--lora-alpha=0",
        ),
        ("lora_alpha is 0; give 1 or more"),
    ),
    (
        (
            "train",
            "--lr-warmup-steps=-1",
        ),
        ("lr_warmup_steps is -1; give 0 or more"),
    ),
    (
        (
            "train",
            "--lr-warmup-steps=99999999999999999999",
        ),
        ("lr_warmup_steps is 99999999999999999999; give at most 1000000000"),
    ),
    (
        (
            "train",
            "--devices=2",
        ),
        ("devices is 2; only 1 is supported, leave the flag out"),
    ),
    (
        (
            "train",
            "--seed=-1",
        ),
        ("seed is -1; give a number from 0 to 4294967295"),
    ),
    (
        (
            "train",
            "--seed=4294967296",
        ),
        ("seed is 4294967296; give a number from 0 to 4294967295"),
    ),
    (
        (
            "train",
            "--learning-rate=inf",
        ),
        ("learning_rate is inf; give a number above 0, such as 3e-3"),
    ),
    (
        (
            "train",
            "--learning-rate=nan",
        ),
        ("learning_rate is nan; give a number above 0, such as 3e-3"),
    ),
    (
        (
            "train",
            "--learning-rate=0",
        ),
        ("learning_rate is 0.0; give a number above 0, such as 3e-3"),
    ),
    (
        (
            "train",
            "--weight-decay=nan",
        ),
        ("weight_decay is nan; give 0 or more"),
    ),
    (
        (
            "train",
            "--weight-decay=inf",
        ),
        ("weight_decay is inf; give at most 1000000000"),
    ),
    (
        (
            "train",
            "--weight-decay=-1",
        ),
        ("weight_decay is -1.0; give 0 or more"),
    ),
    (
        (
            "train",
            "--adam-beta1=nan",
        ),
        ("adam_beta1 is nan; give a number from 0 to below 1"),
    ),
    (
        (
            "train",
            "--adam-beta2=1",
        ),
        ("adam_beta2 is 1.0; give a number from 0 to below 1"),
    ),
    (
        (
            "train",
            "--lora-dropout=nan",
        ),
        ("lora_dropout is nan; give a share from 0 to below 1"),
    ),
    (
        (
            "train",
            "--lora-dropout=1",
        ),
        ("lora_dropout is 1.0; give a share from 0 to below 1"),
    ),
    (
        (
            "train",
            "--val-split-fraction=nan",
        ),
        ("val_split_fraction is nan; give a share between 0 and 1"),
    ),
    (
        (
            "train",
            "--val-split-fraction=0",
        ),
        ("val_split_fraction is 0.0; give a share between 0 and 1"),
    ),
    (
        (
            "train",
            "--precision=fp8",
        ),
        ("precision is 'fp8'; choose from auto, 32-true, bf16-true, bf16-mixed, 16-true, 16-mixed"),
    ),
    (
        (
            "train",
            "--precision=16-true",
        ),
        ("precision '16-true' needs a GPU; use 'bf16-true'"),
    ),
    (
        (
            "train",
            "--device=tpu",
        ),
        ("device is 'tpu'; choose from auto, cpu, cuda, mps"),
    ),
    (
        (
            "train",
            "--device=mps",
        ),
        ("device 'mps' is not available to torch {torch}; use --device auto"),
    ),
    (
        (
            "train",
            "--method=dora",
        ),
        (
            "method is 'dora'; choose from lora, lora-all, lora-last, full, full+lora, "
            "last, bias, skip, skip2"
        ),
    ),
    (
        (
            "train",
            "--method=",
        ),
        (
            "method is ''; choose from lora, lora-all, lora-last, full, full+lora, last, "
            "bias, skip, skip2"
        ),
    ),
    (
        (
            "train",
            "--target=head",
        ),
        ("target is 'head'; choose from hidden, logits"),
    ),
    (
        (
            "train",
            "--logger=wandb",
        ),
        ("logger is 'wandb'; choose from csv, tensorboard"),
    ),
    (
        (
            "train",
            "--prompt-style=poem",
        ),
        (
            "prompt_style is 'poem'; choose from alpaca, flan, longform, stablelm-alpha, "
            "stablelm-zephyr, falcon, llama2-function-calling, llama2, freewilly2, "
            "platypus, stablecode, codellama, phi-1, phi-2, phi-3, phi-4, "
            "phi-4-reasoning, phi-4-mini, phi-4-mini-reasoning, tinyllama, gemma, "
            "llama3, olmo, qwen2.5, qwen2.5-math, qwq, qwen3, smollm2, salamandra"
        ),
    ),
    (
        (
            "train",
            "--prompt-style=",
        ),
        ("prompt_style is empty; give text, or leave it out"),
    ),
    (
        (
            "train",
            "--cache-tier=tape",
        ),
        ("cache_tier is 'tape'; choose from auto, device, ram, disk"),
    ),
    (
        (
            "train",
            "--cache-dtype=int4",
        ),
        ("cache_dtype is 'int4'; choose from model, bf16, int8"),
    ),
    (
        (
            "train",
            "--cache-max-bytes=0",
        ),
        (
            "cache_max_bytes is 0, which has room for no sample; use --method skip to "
            "train without a cache"
        ),
    ),
    (
        (
            "train",
            "--cache-max-bytes=-1",
        ),
        ("cache_max_bytes is '-1'; give bytes, or such as 500MB or 2GiB"),
    ),
    (
        (
            "train",
            "--cache-max-bytes=١GB",
        ),
        ("cache_max_bytes is '١GB'; give bytes, or such as 500MB or 2GiB"),
    ),
    (
        (
            "train",
            "--cache-max-bytes=" + "9" * 400,
        ),
        ("cache_max_bytes is '" + "9" * 265 + "…" + "9" * 132 + "'; give at most 1048576TiB"),
    ),
    (
        (
            "train",
            "--cache-max-bytes=nan",
        ),
        ("cache_max_bytes is 'nan'; give bytes, or such as 500MB or 2GiB"),
    ),
    (
        (
            "train",
            "--cache-max-bytes=",
        ),
        ("cache_max_bytes is empty; give text, or leave it out"),
    ),
    (
        (
            "train",
            "--cache-dir={data}",
        ),
        ("cache_dir '{data}' is no folder; choose another --cache-dir"),
    ),
    (
        (
            "train",
            "--cache-dir={data}/x",
        ),
        (
            "cache_dir '{data}/x' lies below '{data}', which is no folder; choose "
            "another --cache-dir"
        ),
    ),
    (
        (
            "train",
            "--out-dir=",
        ),
        ("out_dir is empty; give a path, or leave it out"),
    ),
    (
        (
            "train",
            "--out-dir={data}",
        ),
        ("out_dir '{data}' is no folder; choose another --out-dir"),
    ),
    (
        (
            "train",
            "--out-dir={data}/x",
        ),
        ("out_dir '{data}/x' lies below '{data}', which is no folder; choose another --out-dir"),
    ),
    (
        (
            "train",
            "--out-dir=a\x00b",
        ),
        ("out_dir is 'a\\x00b', which holds a NUL; take it out"),
    ),
    (
        (
            "train",
            "--data=",
        ),
        ("data is empty; give text, or leave it out"),
    ),
    (
        (
            "train",
            "--data=.",
        ),
        ("data '.' is a folder, not .json or .jsonl; give an Alpaca JSON file"),
    ),
    (
        (
            "train",
            "--data=none.json",
        ),
        ("data file 'none.json' does not exist; check the path"),
    ),
    (
        (
            "train",
            "--data=a\x00.json",
        ),
        ("data is 'a\\x00.json', which holds a NUL; take it out"),
    ),
    (
        (
            "train",
            "--data=\x1b[31m.json",
        ),
        ("data file '\\x1b[31m.json' does not exist; check the path"),
    ),
    (
        (
            "train",
            "--data=a\udcff.json",
        ),
        ("data file 'a\\udcff.json' does not exist; check the path"),
    ),
    (
        (
            "train",
            "--data=" + "x" * 5000 + ".json",
        ),
        ("data file '" + "x" * 265 + "…" + "x" * 128 + ".json' does not exist; check the path"),
    ),
    (
        (
            "train",
            "--data=alpacca",
        ),
        (
            "data 'alpacca' is neither 'pydoc', a .json or .jsonl file nor a LitGPT data "
            "module; modules: alpaca, alpaca2k, alpacagpt4, deita, flan, lima, longform"
        ),
    ),
    (
        (
            "train",
            "--data=tinystories",
        ),
        (
            "data 'tinystories' is neither 'pydoc', a .json or .jsonl file nor a LitGPT "
            "data module; modules: alpaca, alpaca2k, alpacagpt4, deita, flan, lima, "
            "longform"
        ),
    ),
    (
        (
            "train",
            "--data=JSON",
        ),
        (
            "data 'JSON' is neither 'pydoc', a .json or .jsonl file nor a LitGPT data "
            "module; modules: alpaca, alpaca2k, alpacagpt4, deita, flan, lima, longform"
        ),
    ),
    (
        (
            "train",
            "--checkpoint-dir=none",
        ),
        (
            "checkpoint folder 'none' does not exist; get one with 'litgpt download "
            "<name>', or leave the flag out for the embedded model"
        ),
    ),
    (
        (
            "train",
            "--checkpoint-dir=meta-llama/Llama-2-7b-hf",
        ),
        (
            "checkpoint folder 'meta-llama/Llama-2-7b-hf' does not exist; get it with "
            "'litgpt download meta-llama/Llama-2-7b-hf' and give --checkpoint-dir "
            "checkpoints/meta-llama/Llama-2-7b-hf, or leave the flag out for the "
            "embedded model"
        ),
    ),
    (
        (
            "train",
            "--checkpoint-dir={tiny}/lit_model.pth",
        ),
        (
            "checkpoint folder '{tiny}/lit_model.pth' does not exist; get one with "
            "'litgpt download <name>', or leave the flag out for the embedded model"
        ),
    ),
    (
        (
            "train",
            "--checkpoint-dir=",
        ),
        ("checkpoint_dir is empty; give a path, or leave it out"),
    ),
    (
        (
            "train",
            "--checkpoint-dir=\x00",
        ),
        ("checkpoint_dir is '\\x00', which holds a NUL; take it out"),
    ),
    (
        (
            "train",
            "--domain-text=none.txt",
        ),
        ("domain_text 'none.txt' does not exist; check the path"),
    ),
    (
        (
            "train",
            "--domain-text=.",
        ),
        ("domain_text '.' is a folder; give a file"),
    ),
    (
        (
            "train",
            "--domain-text=a\x00",
        ),
        ("domain_text is 'a\\x00', which holds a NUL; take it out"),
    ),
    (
        (
            "train",
            "--domain-text={data}x",
        ),
        ("domain_text '{data}x' does not exist; check the path"),
    ),
    (
        (
            "train",
            "--config=none.yaml",
        ),
        ("config file 'none.yaml' does not exist; check the path"),
    ),
    (
        (
            "train",
            "--config=.",
        ),
        ("config file '.' is a folder; give a file"),
    ),
    (
        (
            "train",
            "--config=",
        ),
        ("config file '.' is a folder; give a file"),
    ),
    (
        (
            "train",
            "--method=lora",
            "--no-lora-query",
            "--no-lora-value",
        ),
        (
            "no LoRA target is on; turn on at least one of lora_query, lora_key, "
            "lora_value, lora_projection, lora_mlp, lora_head"
        ),
    ),
    (
        (
            "bench",
            "--batch-size=0",
        ),
        ("batch_size is 0; give 1 or more"),
    ),
    (
        (
            "bench",
            "--batch-size=99999999999999999999",
        ),
        ("batch_size is 99999999999999999999; give at most 1000000000"),
    ),
    (
        (
            "bench",
            "--seq-length=1",
        ),
        ("seq_length is 1; give 2 to 96, the context"),
    ),
    (
        (
            "bench",
            "--seq-length=99999999999999999999",
        ),
        ("seq_length is 99999999999999999999; give at most 1000000000"),
    ),
    (
        (
            "bench",
            "--rounds=0",
        ),
        ("rounds is 0; give 1 or more"),
    ),
    (
        (
            "bench",
            "--rounds=99999999999999999999",
        ),
        ("rounds is 99999999999999999999; give at most 100000"),
    ),
    (
        (
            "bench",
            "--iterations=0",
        ),
        ("iterations is 0; give 1 or more"),
    ),
    (
        (
            "bench",
            "--methods=",
        ),
        ("methods is empty; give text, or leave it out"),
    ),
    (
        (
            "bench",
            "--methods=lora,dora",
        ),
        (
            "methods is 'dora'; choose from lora, lora-all, lora-last, full, full+lora, "
            "last, bias, skip, skip2"
        ),
    ),
    (
        (
            "bench",
            "--methods=,",
        ),
        ("methods is empty; give text, or leave it out"),
    ),
    (
        (
            "bench",
            "--blocks=9",
        ),
        ("block 9 does not exist; the model has blocks 0 to 3"),
    ),
    (
        (
            "bench",
            "--model=",
        ),
        ("model is empty; give text, or leave it out"),
    ),
    (
        (
            "bench",
            "--model=\x00",
        ),
        ("model is '\\x00', which holds a NUL; take it out"),
    ),
    (
        (
            "bench",
            "--model=gpt-5",
        ),
        (
            "model 'gpt-5' is neither 'pystd', a checkpoint folder nor a LitGPT config; "
            "near it: phi-1_5, pythia-1b, pythia-70m"
        ),
    ),
    (
        (
            "bench",
            "--model=Llama-2-7b",
        ),
        (
            "model 'Llama-2-7b' is neither 'pystd', a checkpoint folder nor a LitGPT "
            "config; near it: Llama-2-7b-hf, Llama-2-70b-hf, Llama-3-70B"
        ),
    ),
    (
        (
            "bench",
            "--out-dir={data}",
        ),
        ("out_dir '{data}' is no folder; choose another --out-dir"),
    ),
    (
        (
            "bench",
            "--lora-dropout=nan",
        ),
        ("lora_dropout is nan; give a share from 0 to below 1"),
    ),
    (
        (
            "bench",
            "--device=tpu",
        ),
        ("device is 'tpu'; choose from auto, cpu, cuda, mps"),
    ),
    (
        (
            "compare",
            "--seeds=0",
        ),
        ("seeds is 0; give 1 or more"),
    ),
    (
        (
            "compare",
            "--seeds=99999999999999999",
        ),
        ("seeds is 99999999999999999; give at most 1000"),
    ),
    (
        (
            "compare",
            "--seed=4294967295",
        ),
        ("seed 4294967295 and the 2 after it go beyond 4294967295; give a smaller --seed"),
    ),
    (
        (
            "compare",
            "--methods=",
        ),
        ("methods is empty; give text, or leave it out"),
    ),
    (
        (
            "compare",
            "--learning-rates=nan",
        ),
        ("learning_rate is nan; give a number above 0, such as 3e-3"),
    ),
    (
        (
            "compare",
            "--learning-rates=inf",
        ),
        ("learning_rate is inf; give a number above 0, such as 3e-3"),
    ),
    (
        (
            "compare",
            "--learning-rates=1e-3,x",
        ),
        ("learning_rates is 'x'; give a number"),
    ),
    (
        (
            "compare",
            "--learning-rates=1e-3,0.001",
        ),
        ("learning_rates names a rate twice; give each once"),
    ),
    (
        (
            "compare",
            "--learning-rates=",
        ),
        ("learning_rates is ''; give a number"),
    ),
    (
        (
            "compare",
            "--max-memory=0",
        ),
        ("max_memory is 0; give a size such as 8GiB, or leave it out"),
    ),
    (
        (
            "compare",
            "--max-memory=lots",
        ),
        ("max_memory is 'lots'; give bytes, or such as 500MB or 2GiB"),
    ),
    (
        (
            "compare",
            "--target-loss=nan",
        ),
        ("target_loss is nan; give a number above 0"),
    ),
    (
        (
            "compare",
            "--target-loss=-1",
        ),
        ("target_loss is -1.0; give a number above 0"),
    ),
    (
        (
            "compare",
            "--peers=trl",
        ),
        ("peers is 'trl'; choose from litgpt, peft"),
    ),
    (
        (
            "compare",
            "--flow=",
        ),
        ("flow is ''; choose from minimal, small, detailed"),
    ),
    (
        (
            "compare",
            "--blocks=99",
        ),
        ("block 99 does not exist; the model has blocks 0 to 3"),
    ),
    (
        (
            "compare",
            "--out-dir={data}",
        ),
        ("out_dir '{data}' is no folder; choose another --out-dir"),
    ),
    (
        (
            "compare",
            "--lora-dropout=nan",
        ),
        ("lora_dropout is nan; give a share from 0 to below 1"),
    ),
    (
        (
            "report",
            "--results=none",
        ),
        ("results folder 'none' does not exist; run 'skip2bench bench' first"),
    ),
    (
        (
            "report",
            "--lang=fr",
        ),
        ("lang is 'fr'; choose from ja, en"),
    ),
    (
        (
            "report",
            "--format=pdf",
        ),
        ("format is 'pdf'; choose from md, html"),
    ),
    (
        (
            "report",
            "--results=",
        ),
        ("results is empty; give a path, or leave it out"),
    ),
    (
        (
            "merge",
            "none",
        ),
        ("'none' holds no adapter; give the 'final' folder of a lora run"),
    ),
    (
        (
            "merge",
            "{data}",
        ),
        ("'{data}' holds no adapter; give the 'final' folder of a lora run"),
    ),
    (
        (
            "cache",
            "list",
            "--cache-dir=none",
        ),
        ("cache folder 'none' does not exist"),
    ),
    (
        (
            "cache",
            "remove",
            "--cache-dir=none",
        ),
        ("say which caches to remove: their names, or --all"),
    ),
]
YAML = [
    (
        ("train:\n\tepochs: 1\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: found character '\\t' that "
            "cannot start any token (line 2, column 1)"
        ),
    ),
    (
        ("a: b: c\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: mapping values are not allowed "
            "here (line 1, column 5)"
        ),
    ),
    (("epochs: [1]\n"), ("epochs is [1]; give a whole number")),
    (("blocks: {a: 1}\n"), ("blocks is {'a': 1}; give text")),
    (("epochs: yes\n"), ("epochs is True; give a whole number")),
    (("epochs: 2020-01-01\n"), ("epochs is '2020-01-01'; give a whole number")),
    (("epochs: 1.5\n"), ("epochs is 1.5; give a whole number")),
    (
        ("epochs: 1\nseed: 3\nepochs: 2\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the key 'epochs' is there "
            "already, in line 1; keep one (line 3, column 1)"
        ),
    ),
    (
        ("train:\n  epochs: 1\n  epochs: 2\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the key 'epochs' is there "
            "already, in line 2; keep one (line 3, column 3)"
        ),
    ),
    (
        ("epochs: 1\ntrain:\n  epochs: 2\n"),
        ("epochs is given twice, as 'epochs' and as 'train.epochs'; keep one"),
    ),
    (
        ("1: 2\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the key '1' is no text to "
            "YAML; put it in quotes (line 1, column 1)"
        ),
    ),
    (
        ("train:\n  1: 2\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the key '1' is no text to "
            "YAML; put it in quotes (line 2, column 3)"
        ),
    ),
    (
        ("on: 1\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the key 'on' is no text to "
            "YAML; put it in quotes (line 1, column 1)"
        ),
    ),
    (
        ("[a]: 1\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the key '[…]' is no text to "
            "YAML; put it in quotes (line 1, column 1)"
        ),
    ),
    (
        ("seed: !!python/object/apply:os.system ['touch ran']\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the tag "
            "'!!python/object/apply:os.system' is not allowed (line 1, column 7)"
        ),
    ),
    (
        ("blocks: !!binary aGk=\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the tag '!!binary' is not "
            "allowed (line 1, column 9)"
        ),
    ),
    (
        ("blocks: &a [*a]\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: an alias contains itself (line "
            "1, column 9)"
        ),
    ),
    (
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c "
            "[*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e "
            "[*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g "
            "[*f,*f,*f,*f,*f,*f,*f,*f,*f]\n"
        ),
        (
            "config file '{in}/c.yaml' has over 100,000 values with its aliases written "
            "out; shorten it"
        ),
    ),
    (
        ("a: " + "[" * 3000 + "]" * 3000),
        ("config file '{in}/c.yaml' is nested too deeply; write it flat"),
    ),
    ((""), ("config file '{in}/c.yaml' holds no mapping; write lines such as 'epochs: 3'")),
    (("hello\n"), ("config file '{in}/c.yaml' holds no mapping; write lines such as 'epochs: 3'")),
    (("- a\n"), ("config file '{in}/c.yaml' holds no mapping; write lines such as 'epochs: 3'")),
    (
        ("a: 1\n---\nb: 2\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: but found another document "
            "(line 2, column 1)"
        ),
    ),
    (
        ("a: *x\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: found undefined alias 'x' "
            "(line 1, column 4)"
        ),
    ),
    (
        (b"\xff\xfee\x00p\x00o\x00c\x00h\x00s\x00:\x00 \x001\x00\n\x00"),
        (
            "config file '{in}/c.yaml' is not UTF-8 but perhaps UTF-16; convert it: "
            "iconv -f UTF-16 -t UTF-8 {in}/c.yaml > {in}/c-utf8.yaml"
        ),
    ),
    (
        ("epochs: 1\x00\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: unacceptable character #x0000: "
            "special characters are not allowed; write plain text"
        ),
    ),
    (
        (b"data: \xe9\n"),
        (
            "config file '{in}/c.yaml' is not UTF-8 but perhaps ISO-8859-1; convert it: "
            "iconv -f ISO-8859-1 -t UTF-8 {in}/c.yaml > {in}/c-utf8.yaml"
        ),
    ),
    (
        ("# " + "x" * 5000000),
        (
            "config file '{in}/c.yaml' has 5,000,002 characters; a configuration has at "
            "most 1,000,000"
        ),
    ),
    (
        ("epochs: 1:30\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: '1:30' is no plain number; put "
            "text in quotes (line 1, column 9)"
        ),
    ),
    (
        ("epochs: 010\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: '010' is no plain number; put "
            "text in quotes (line 1, column 9)"
        ),
    ),
    (
        ("epochs: " + "9" * 5000 + "\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: '"
            + "9" * 265
            + "…"
            + "9" * 133
            + "' is no plain number; put text in quotes (line 1, column 9)"
        ),
    ),
    (("learning_rate: .inf\n"), ("learning_rate is inf; give a number above 0, such as 3e-3")),
    (("epochs: .nan\n"), ("epochs is nan; give a whole number")),
    (("epochs: three\n"), ("epochs is 'three'; give a whole number")),
    (("epoch: 3\n"), ("unknown key 'epoch'; did you mean epochs?")),
    (
        ("zzz: 3\n"),
        (
            "unknown key 'zzz'; known keys: adam_beta1, adam_beta2, blocks, cache_dir, "
            "cache_dtype, cache_max_bytes, cache_tier, checkpoint_dir, data, device, "
            "devices, domain_text, epochs, eval_interval, force, global_batch_size, "
            "learning_rate, logger, lora_alpha, lora_dropout, lora_head, lora_key, "
            "lora_mlp, lora_projection, lora_query, lora_r, lora_value, lr_warmup_steps, "
            "mask_prompt, max_seq_length, max_steps, method, micro_batch_size, out_dir, "
            "precision, prompt_style, seed, skip_r, target, train_samples, "
            "val_split_fraction, weight_decay"
        ),
    ),
    (("train:\n  epoch: 1\n"), ("unknown key 'train.epoch'; did you mean epochs?")),
    (
        ("eval:\n  foo: 1\n"),
        (
            "unknown key 'eval.foo'; known keys: evaluate_example, final_validation, "
            "initial_validation, interval, max_iters, max_new_tokens"
        ),
    ),
    (("train: [1]\n"), ("train is [1]; write a mapping below it")),
    (("eval: 3\n"), ("eval is 3; write a mapping below it")),
    (
        ("data: {a: 1}\n"),
        ("data needs class_path (and init_args), such as class_path: litgpt.data.Alpaca2k"),
    ),
    (
        ("data:\n  class_path: os.system\n"),
        ("data needs class_path (and init_args), such as class_path: litgpt.data.Alpaca2k"),
    ),
    (
        ("data:\n  class_path: litgpt.data.JSON\n  init_args: {json_path: x.json, epochs: 3}\n"),
        (
            "unknown key 'data.init_args.epochs'; known keys: download_dir, "
            "ignore_index, mask_prompt, num_workers, prompt_style, seed, "
            "val_split_fraction"
        ),
    ),
    (
        ("data:\n  class_path: litgpt.data.JSON\n"),
        ("data of class JSON needs init_args: json_path"),
    ),
    (
        ("optimizer: SGD\n"),
        ("optimizer 'SGD' is not supported; every method trains with torch.optim.AdamW"),
    ),
    (
        ("optimizer:\n  class_path: AdamW\n  init_args: {eps: 1e-8}\n"),
        ("unknown key 'optimizer.init_args.eps'; known keys: betas, lr, weight_decay"),
    ),
    (
        ("optimizer: {class_path: AdamW, lr: 1}\n"),
        ("unknown key 'optimizer.lr'; known keys: class_path, init_args"),
    ),
    (
        ("optimizer:\n  class_path: AdamW\n  init_args: {betas: [a, b]}\n"),
        ("adam_beta1 is 'a'; give a number"),
    ),
    (
        ("optimizer:\n  class_path: AdamW\n  init_args: {betas: 0.9}\n"),
        ("optimizer betas 0.9 is no pair; write [0.9, 0.95]"),
    ),
    (
        ("quantize: bnb.nf4\n"),
        ("LitGPT's key 'quantize' is not supported; leave it empty (train without it)"),
    ),
    (
        ("num_nodes: 2\n"),
        ("LitGPT's key 'num_nodes' is not supported; leave it empty (a run is on one machine)"),
    ),
    (
        ("train: {max_norm: 1}\n"),
        (
            "LitGPT's key 'train.max_norm' is not supported; leave it empty (gradients "
            "are not clipped)"
        ),
    ),
    (
        ("train: {max_tokens: 1}\n"),
        ("LitGPT's key 'train.max_tokens' is not supported; leave it empty (use max_steps)"),
    ),
    (
        ("train: {max_time: 1}\n"),
        ("LitGPT's key 'train.max_time' is not supported; leave it empty (use max_steps)"),
    ),
    (
        ("train: {tie_embeddings: true}\n"),
        (
            "LitGPT's key 'train.tie_embeddings' is not supported; leave it empty (the "
            "checkpoint's own setting is used)"
        ),
    ),
    (
        ("train: {lr_warmup_fraction: 0.1}\n"),
        (
            "LitGPT's key 'train.lr_warmup_fraction' is not supported; leave it empty "
            "(use lr_warmup_steps)"
        ),
    ),
    (
        ("method: [lora]\n"),
        (
            "method is ['lora']; choose from lora, lora-all, lora-last, full, full+lora, "
            "last, bias, skip, skip2"
        ),
    ),
    (("target: [a]\n"), ("target is ['a']; choose from hidden, logits")),
    (
        ("precision: 32\n"),
        ("precision is 32; choose from auto, 32-true, bf16-true, bf16-mixed, 16-true, 16-mixed"),
    ),
    (("devices: auto\n"), ("devices is 'auto'; give a whole number")),
    (("skip2lora_enabled: maybe\n"), ("skip2lora_enabled is 'maybe'; give true or false")),
    (
        ("skip2lora_foo: 1\n"),
        (
            "unknown key 'skip2lora_foo'; known keys: adam_beta1, adam_beta2, blocks, "
            "cache_dir, cache_dtype, cache_max_bytes, cache_tier, checkpoint_dir, data, "
            "device, devices, domain_text, epochs, eval_interval, force, "
            "global_batch_size, learning_rate, logger, lora_alpha, lora_dropout, "
            "lora_head, lora_key, lora_mlp, lora_projection, lora_query, lora_r, "
            "lora_value, lr_warmup_steps, mask_prompt, max_seq_length, max_steps, "
            "method, micro_batch_size, out_dir, precision, prompt_style, seed, skip_r, "
            "target, train_samples, val_split_fraction, weight_decay"
        ),
    ),
    (("cache_max_bytes: 1.5\n"), ("cache_max_bytes is 1.5; give text")),
    (("blocks: [[0]]\n"), ("blocks is [[0]]; give a list of numbers such as [0, 1, 2, 3]")),
    (("blocks: true\n"), ("blocks is True; give text")),
    (("blocks: []\n"), ("blocks is empty; give text, or leave it out")),
    (("out_dir: no\n"), ("out_dir is False; give a path")),
    (('out_dir: "a\\0"\n'), ("out_dir is 'a\\x00', which holds a NUL; take it out")),
    (
        ('"\\e[31mx": 1\n'),
        (
            "unknown key '\\x1b[31mx'; known keys: adam_beta1, adam_beta2, blocks, "
            "cache_dir, cache_dtype, cache_max_bytes, cache_tier, checkpoint_dir, data, "
            "device, devices, domain_text, epochs, eval_interval, force, "
            "global_batch_size, learning_rate, logger, lora_alpha, lora_dropout, "
            "lora_head, lora_key, lora_mlp, lora_projection, lora_query, lora_r, "
            "lora_value, lr_warmup_steps, mask_prompt, max_seq_length, max_steps, "
            "method, micro_batch_size, out_dir, precision, prompt_style, seed, skip_r, "
            "target, train_samples, val_split_fraction, weight_decay"
        ),
    ),
    (
        ('"a\\nb": 1\n'),
        (
            "unknown key 'a\\nb'; known keys: adam_beta1, adam_beta2, blocks, cache_dir, "
            "cache_dtype, cache_max_bytes, cache_tier, checkpoint_dir, data, device, "
            "devices, domain_text, epochs, eval_interval, force, global_batch_size, "
            "learning_rate, logger, lora_alpha, lora_dropout, lora_head, lora_key, "
            "lora_mlp, lora_projection, lora_query, lora_r, lora_value, lr_warmup_steps, "
            "mask_prompt, max_seq_length, max_steps, method, micro_batch_size, out_dir, "
            "precision, prompt_style, seed, skip_r, target, train_samples, "
            "val_split_fraction, weight_decay"
        ),
    ),
    (
        ("method: " + "k" * 10000 + "\n"),
        (
            "method is '"
            + "k" * 265
            + "…"
            + "k" * 132
            + ("'; choose from lora, lora-all, lora-last, full, full+lora, last, bias, skip, skip2")
        ),
    ),
    (
        ('method: "\\ud800"\n'),
        (
            "method is '\\ud800'; choose from lora, lora-all, lora-last, full, full+lora, "
            "last, bias, skip, skip2"
        ),
    ),
    (("lora_query: 'true'\n"), ("lora_query is 'true'; give true or false")),
]
MATRIX = [
    (("configurations: lora\n"), ("configurations is no list of mappings; write '- method: lora'")),
    (("configurations: [1]\n"), ("configurations is no list of mappings; write '- method: lora'")),
    (("configurations: [{blocks: all}]\n"), ("configuration 1 has no method; add one")),
    (
        ("configurations: [{method: [a]}]\n"),
        (
            "method is ['a']; choose from lora, lora-all, lora-last, full, full+lora, "
            "last, bias, skip, skip2"
        ),
    ),
    (
        ("configurations: [{method: lora, learning_rates: [a]}]\n"),
        ("learning_rate is 'a'; give a number"),
    ),
    (
        ("configurations: [{method: lora, learning_rates: [.nan]}]\n"),
        ("learning_rate is nan; give a number above 0, such as 3e-3"),
    ),
    (
        ("configurations: [{method: lora, learning_rates: [true]}]\n"),
        ("learning_rate is True; give a number"),
    ),
    (
        ("configurations: [{method: lora, learning_rates: [1, 1.0]}]\n"),
        ("learning_rates of configuration 1 names a rate twice; give each once"),
    ),
    (
        ("configurations: [{method: lora, learning_rates: 3}]\n"),
        ("learning_rates of configuration 1 is 3; write a list such as [3e-3]"),
    ),
    (
        ("configurations: [{method: lora, learning_rates: [[1]]}]\n"),
        ("learning_rate is [1]; give a number"),
    ),
    (
        ("configurations: [{method: lora}, {method: skip2, blocks: [99]}]\n"),
        ("block 99 does not exist; the model has blocks 0 to 3"),
    ),
    (
        ("configurations: [{method: lora}, {method: skip2, blocks: {a: 1}}]\n"),
        ("blocks is {'a': 1}; give text"),
    ),
    (
        ("configurations: [{method: lora, label: [a]}]\n"),
        ("label of configuration 1 is ['a']; give a line of text"),
    ),
    (
        ('configurations: [{method: lora, label: "\\e[31m"}]\n'),
        ("label of configuration 1 is '\\x1b[31m'; give a line of text"),
    ),
    (
        ("configurations: [{method: lora, max_memory: [1]}]\n"),
        ("max_memory is '[1]'; give bytes, or such as 500MB or 2GiB"),
    ),
    (
        ("configurations: [{method: lora, block: 1}]\n"),
        ("unknown key 'block'; did you mean blocks?"),
    ),
    (("configurations: [{method: lora, lora_r: x}]\n"), ("lora_r is 'x'; give a whole number")),
    (
        ("configurations: [{method: lora, data: none.json}]\n"),
        ("data file 'none.json' does not exist; check the path"),
    ),
    (
        ("configurations: [{method: lora, checkpoint_dir: none}]\n"),
        (
            "configuration 1 has a checkpoint_dir of its own; all are compared on one "
            "model, so set it once, outside configurations"
        ),
    ),
    (("train: x\n"), ("train is 'x'; write a mapping below it")),
    (("train: {epoch: 1}\n"), ("unknown key 'train.epoch'; did you mean epochs?")),
    (("methods: 3\n"), ("methods is 3; give text")),
    (("methods: {a: 1}\n"), ("methods is {'a': 1}; give a list without empty entries")),
    (
        ("methods: [lora, ]\nlearning_rates: [~]\n"),
        ("learning_rates is [None]; give a list without empty entries"),
    ),
    (("flow: [a]\n"), ("flow is ['a']; choose from minimal, small, detailed")),
    (("target_loss: .nan\n"), ("target_loss is nan; give a number above 0")),
    (
        ("configurations: [{method: skip2}]\n"),
        ("the baseline 'lora' is not among the methods; add it, or set --baseline"),
    ),
    (("method: lora\n"), ("'method' is set for each cell by the matrix; use methods")),
    (
        ("optimizer: {class_path: AdamW, init_args: {lr: 1}}\n"),
        ("'learning_rate' is set for each cell by the matrix; use learning_rates"),
    ),
    (("seeds: three\n"), ("seeds is 'three'; give a whole number")),
    (
        ("seeds: 1\nseeds: 2\n"),
        (
            "config file '{in}/c.yaml' is not valid YAML: the key 'seeds' is there "
            "already, in line 1; keep one (line 2, column 1)"
        ),
    ),
]
DATA = [
    ("empty.json", (""), ("data file '{in}/empty.json' is empty; give a list of Alpaca records")),
    ("empty.jsonl", (""), ("data file '{in}/empty.jsonl' is empty; give a list of Alpaca records")),
    (
        "blank.jsonl",
        ("\n\n"),
        ("data file '{in}/blank.jsonl' is empty; give a list of Alpaca records"),
    ),
    (
        "list.json",
        ("[]"),
        ("data file '{in}/list.json' needs a list of at least 2 records, to train and to validate"),
    ),
    (
        "one.json",
        ('[{"instruction": "Do 0", "input": "", "output": "o0"}]'),
        ("data file '{in}/one.json' needs a list of at least 2 records, to train and to validate"),
    ),
    (
        "two.json",
        (
            '[{"instruction": "Do 0", "input": "", "output": "o0"}, {"instruction": "Do '
            '1", "input": "", "output": "o1"}]'
        ),
        (
            "data file '{in}/two.json' has 2 records, which leaves none to validate at "
            "val_split_fraction 0.05; give --val-split-fraction 0.5"
        ),
    ),
    (
        "missing.json",
        ('[{"instruction": "a"}, {}]'),
        (
            "record 0 of '{in}/missing.json' has no text under 'output' (its fields: "
            "instruction); add it"
        ),
    ),
    (
        "number.json",
        ('[{"instruction": "a", "output": 1}, {}]'),
        ("record 0 of '{in}/number.json' has 1 under 'output'; put text there"),
    ),
    (
        "items.json",
        ('[{"instruction": "a", "output": [1]}, {}]'),
        ("record 0 of '{in}/items.json' has [1] under 'output'; put text there"),
    ),
    (
        "null.json",
        ('[{"instruction": "a", "output": null}, {}]'),
        ("record 0 of '{in}/null.json' has None under 'output'; put text there"),
    ),
    (
        "input.json",
        ('[{"instruction": "a", "input": 3, "output": "b"}, {}]'),
        ("record 0 of '{in}/input.json' has 3 under 'input'; put text there"),
    ),
    (
        "map.json",
        ('{"data": [{"instruction": "a", "output": "b"}]}'),
        (
            "data file '{in}/map.json' holds a mapping, not a list of records: move the "
            "list under 'data' to the top"
        ),
    ),
    (
        "map2.json",
        ('{"a": 1}'),
        ("data file '{in}/map2.json' holds a mapping, not a list of records"),
    ),
    (
        "scalar.json",
        ("3"),
        (
            "data file '{in}/scalar.json' needs a list of at least 2 records, to train "
            "and to validate"
        ),
    ),
    (
        "texts.json",
        ('["a", "b"]'),
        (
            'record 0 of \'{in}/texts.json\' is no mapping; write {"instruction": "…", '
            '"input": "", "output": "…"}'
        ),
    ),
    (
        "messages.json",
        ('[{"messages": []}, {}]'),
        (
            "record 0 of '{in}/messages.json' has no text under 'instruction' (its "
            "fields: messages); add it"
        ),
    ),
    (
        "broken.jsonl",
        ('{"instruction": "a", "output": "b"}\n\n{"instr'),
        (
            "line 3 of data file '{in}/broken.jsonl' is not valid JSON: Unterminated "
            "string starting at (column 2); mend it"
        ),
    ),
    (
        "lines.json",
        ('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b"}\n'),
        (
            "data file '{in}/lines.json' holds a record a line (JSON Lines); rename it "
            "to end in .jsonl"
        ),
    ),
    (
        "list.jsonl",
        ('[{"instruction": "a", "output": "b"}]'),
        (
            "data file '{in}/list.jsonl' holds one JSON list, not a record a line; "
            "rename it to .json"
        ),
    ),
    (
        "long-list.jsonl",
        ('[\n{"instruction": "a", "output": "b"}\n]'),
        (
            "data file '{in}/long-list.jsonl' holds one JSON list, not a record a line; "
            "rename it to .json"
        ),
    ),
    (
        "utf16.json",
        (
            b'\xff\xfe[\x00{\x00"\x00i\x00n\x00s\x00t\x00r\x00u\x00c\x00t\x00i\x00o\x00n\x00"\x00:\x00 \x00"\x00a\x00"\x00}\x00]\x00'
        ),
        (
            "data file '{in}/utf16.json' is not UTF-8 but perhaps UTF-16; convert it: "
            "iconv -f UTF-16 -t UTF-8 {in}/utf16.json > {in}/utf16-utf8.json"
        ),
    ),
    (
        "wide.json",
        (
            b'[\x00{\x00"\x00i\x00n\x00s\x00t\x00r\x00u\x00c\x00t\x00i\x00o\x00n\x00"\x00:\x00 \x00"\x00a\x00"\x00}\x00]\x00'
        ),
        (
            "data file '{in}/wide.json' is not UTF-8 but perhaps UTF-16LE; convert it: "
            "iconv -f UTF-16LE -t UTF-8 {in}/wide.json > {in}/wide-utf8.json"
        ),
    ),
    (
        "sjis.json",
        (b'[{"instruction": "\x93\xfa\x96{\x8c\xea"}]'),
        (
            "data file '{in}/sjis.json' is not UTF-8 but perhaps CP932; convert it: "
            "iconv -f CP932 -t UTF-8 {in}/sjis.json > {in}/sjis-utf8.json"
        ),
    ),
    (
        "latin.json",
        (b'[{"instruction": "\xe9"}]'),
        (
            "data file '{in}/latin.json' is not UTF-8 but perhaps ISO-8859-1; convert "
            "it: iconv -f ISO-8859-1 -t UTF-8 {in}/latin.json > {in}/latin-utf8.json"
        ),
    ),
    (
        "gzip.json",
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"),
        ("data file '{in}/gzip.json' is no text (it holds binary data); give a UTF-8 text file"),
    ),
    (
        "nul.json",
        ('[{"instruction": "a\x00"}]'),
        (
            "data file '{in}/nul.json' is not valid JSON: Invalid control character at "
            "(column 20); mend it"
        ),
    ),
    (
        "after.json",
        ("[]\x00"),
        ("data file '{in}/after.json' is no text (it holds binary data); give a UTF-8 text file"),
    ),
    (
        "deep.json",
        ("[" * 100000),
        ("data file '{in}/deep.json' is not valid JSON: it is nested too deeply; mend it"),
    ),
    (
        "deep.jsonl",
        ("[" * 100000),
        (
            "line 1 of data file '{in}/deep.jsonl' is not valid JSON: it is nested too "
            "deeply; mend it"
        ),
    ),
    (
        "digits.json",
        ("[" + "9" * 5000 + "]"),
        (
            "data file '{in}/digits.json' is not valid JSON: it holds a number with "
            "thousands of digits; mend it"
        ),
    ),
    (
        "twice.json",
        ('[{"instruction": "a", "output": "b", "output": "c"}]'),
        (
            "data file '{in}/twice.json' is not valid JSON: a record has the key "
            "'output' twice; mend it"
        ),
    ),
    (
        "surrogate.json",
        ('[{"instruction": "\\ud800", "output": "b"}, {}]'),
        ("record 0 of '{in}/surrogate.json' holds half of a surrogate pair; mend the text"),
    ),
    (
        "large.json",
        ('[{"instruction": "a", "output": "' + "word " * 2000000 + '"}, {}]'),
        (
            "record 0 of '{in}/large.json' has 10,000,000 characters under 'output'; cut "
            "it to 1,000,000 or fewer"
        ),
    ),
    (
        "empty-outputs.json",
        ('[{"instruction": "a", "output": ""}, {"instruction": "a", "output": " "}]'),
        (
            "data file '{in}/empty-outputs.json' has nothing under 'output' in any "
            "record; fill them in"
        ),
    ),
    (
        "quotes.json",
        ("[{'instruction': 'a'}]"),
        (
            "data file '{in}/quotes.json' is not valid JSON: Expecting property name "
            "enclosed in double quotes (column 3); mend it"
        ),
    ),
    (
        "table.csv",
        ("instruction,output\na,b\n"),
        ("data '{in}/table.csv' ends in '.csv', not .json or .jsonl; give an Alpaca JSON file"),
    ),
    ("upper.JSON", ("{}"), ("data file '{in}/upper.JSON' holds a mapping, not a list of records")),
]
