"""Conversations: forms that people have, how they are rendered, and which tokens are labels."""

import json

import pytest
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer

from skip2bench.config.train import TrainConfig
from skip2bench.data.chat import (
    ChatError,
    ChatRenderer,
    apply_style,
    compile_template,
    encode_as_written,
    find_messages,
    name_tokens,
    read_messages,
    read_template,
)
from skip2bench.data.load import load_data
from skip2bench.data.samples import IGNORE_INDEX
from skip2bench.data.styles import CHAT_STYLE, read_style, save_style
from skip2bench.errors import Skip2BenchError

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }};"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
TALK = [("system", "be brief"), ("user", "3+4?"), ("assistant", "7"), ("user", "+1?")]
TALK.append(("assistant", "8"))
OPENAI = [{"role": role, "content": text} for role, text in TALK]
FORMS = {
    "openai": {"messages": OPENAI},
    "sharegpt": {
        "id": "x",
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": text}
            for role, text in TALK
        ],
    },
    "system beside": {
        "system": "be brief",
        "conversations": [{"from": role, "value": text} for role, text in TALK[1:]],
    },
    "parts": {
        "messages": [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK
        ]
    },
    "history": {
        "system": "be brief",
        "instruction": "+1?",
        "input": "",
        "output": "8",
        "history": [["3+4?", "7"]],
    },
}


@pytest.fixture
def load(tiny_checkpoint, tmp_path):
    def run(entries, folder=None, **changes):
        path = tmp_path / "chat.json"
        path.write_text(json.dumps(entries))
        config = TrainConfig(data=str(path), val_split_fraction=0.5, **changes)
        return load_data(config, Tokenizer(tiny_checkpoint), 96, folder=folder)

    return run


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_the_same_conversation(load, name, capsys):
    data = load([FORMS[name]] * 2)
    assert data.conversations == 2
    (record,) = data.held_out
    assert [(m["role"], m["content"]) for m in record["messages"]] == TALK
    assert (record["instruction"], record["output"]) == ("+1?", "8")
    assert "2 conversations, rendered by prompt style alpaca" in capsys.readouterr().err


def test_loss_is_on_the_assistants_turns(load, tiny_checkpoint):
    tokenizer = Tokenizer(tiny_checkpoint)
    data = load([FORMS["openai"]] * 2)
    (ids,), (labels,) = data.train.input_ids, data.train.labels
    learnt = [int(it) for it in labels if it != IGNORE_INDEX]
    both = [tokenizer.encode(text, bos=False, eos=True).tolist() for text in ("7", "8")]
    assert learnt == both[0] + both[1]
    assert "be brief" in tokenizer.decode(ids)
    everything = load([FORMS["openai"]] * 2, mask_prompt=False)
    assert everything.train.labels[0].tolist() == ids.tolist()


def test_the_checkpoints_own_template_stands_before_the_style(load, tiny_checkpoint, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = Tokenizer(tiny_checkpoint)
    data = load([FORMS["openai"]] * 2, folder=tmp_path)
    text = "[system] be brief;[user] 3+4?;[assistant] 7;[user] +1?;[assistant] 8;"
    pieces = ["[system] be brief;[user] 3+4?;[assistant] ", "7;", "[user] +1?;[assistant] ", "8;"]
    assert "".join(pieces) == text
    wanted = [id_ for piece in pieces for id_ in encode_as_written(tokenizer, piece)]
    assert data.train.input_ids[0].tolist() == wanted
    by_style = load([FORMS["openai"]] * 2, folder=tmp_path, prompt_style="alpaca")
    assert by_style.train.input_ids[0].tolist() != wanted


def test_what_a_template_has_rendered_is_asked_by_it(load, tiny_checkpoint, tmp_path):
    """In training, in an adapter's folder, and when that is read again."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "chat_template.jinja").write_text("{{ bos_token }}" + TEMPLATE)
    tokenizer = Tokenizer(tiny_checkpoint)
    data = load([FORMS["openai"]] * 2, folder=own)
    assert data.prompt_style == CHAT_STYLE
    final = tmp_path / "final"
    final.mkdir()
    save_style(CHAT_STYLE, final)
    assert "Alpaca" in (final / "prompt_style.yaml").read_text()  # what LitGPT would ask in
    begin = name_tokens(tokenizer)["bos_token"]
    for name in (CHAT_STYLE, read_style(final / "prompt_template.jinja")):
        style = PromptStyle.from_name(name)
        assert style.apply("3+4?", sys_prompt="be brief") == (
            f"{begin}[system] be brief;[user] 3+4?;[assistant] "
        )
        assert style.stop_tokens(tokenizer) == (
            [tokenizer.eos_id],
            encode_as_written(tokenizer, ";"),
        )
    mixed = load([FORMS["openai"], {"instruction": "a", "output": "b"}] * 2, folder=own)
    assert mixed.prompt_style == "alpaca"


def test_a_chat_template_of_ones_own_is_a_style(load, tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "mine.jinja"
    path.write_text(TEMPLATE)
    records = [{"instruction": "add", "input": "3 and 4", "output": "7"}] * 2
    data = load(records, prompt_style=str(path))
    text = "[user] add\n\n3 and 4;[assistant] ", "7;"
    tokenizer = Tokenizer(tiny_checkpoint)
    wanted = [id_ for piece in text for id_ in encode_as_written(tokenizer, piece)]
    assert data.train.input_ids[0].tolist() == wanted
    assert data.prompt_style == str(path)
    assert f"2 conversations, rendered by chat template {path}" in capsys.readouterr().err


def test_what_a_template_refuses_is_counted_and_may_be_left_out(load, tmp_path, capsys):
    text = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(text + TEMPLATE)
    plain = {"messages": OPENAI[1:]}
    entries = [plain, FORMS["openai"]] * 4
    with pytest.raises(Skip2BenchError, match=r"4 of 8 conversations cannot be used: the conv"):
        load(entries, folder=tmp_path)
    data = load(entries, folder=tmp_path, drop_records=True)
    assert len(data.train) + len(data.val) == 4
    assert "4 of 8 conversations cannot be used" in capsys.readouterr().err


def test_tags_that_transformers_knows_are_read():
    text = "{% for m in messages %}{%- generation -%}{{ m['content'] }}{%- endgeneration %}"
    text += "{% if m['content'] == 'b' %}{% break %}{% endif %}{% endfor %}"
    messages = [{"content": letter} for letter in "abc"]
    assert compile_template(text, {}).render(messages=messages) == "ab"


def test_what_of_a_message_reaches_no_model_is_named(load, capsys):
    thinks = [{**OPENAI[1]}, {**OPENAI[2], "reasoning_content": "3 and 4", "name": ""}]
    load([{"messages": thinks}] * 2)
    assert "do not reach the model: messages.reasoning_content;" in capsys.readouterr().err


def test_what_is_asked_ends_where_the_last_answer_begins(tiny_checkpoint):
    tokenizer = Tokenizer(tiny_checkpoint)
    renderer = ChatRenderer(
        tokenizer=tokenizer, style=PromptStyle.from_name("alpaca"), template=TEMPLATE
    )
    ids, is_answer, last = renderer.encode(OPENAI)
    assert ids[last:].tolist() == encode_as_written(tokenizer, "8;")
    assert is_answer[last:].all()
    assert not is_answer[last - 1]


def test_turns_that_are_not_to_be_learnt(tiny_checkpoint):
    messages, _ = read_messages([*OPENAI[:2], {**OPENAI[2], "weight": 0}, *OPENAI[3:]])
    renderer = ChatRenderer(
        tokenizer=Tokenizer(tiny_checkpoint), style=PromptStyle.from_name("alpaca"), template=None
    )
    ids, is_answer, last = renderer.encode(messages)
    assert int(is_answer.sum()) == len(ids) - last
    # and yet they end as every answer does
    everything, _, _ = renderer.encode(read_messages(OPENAI)[0])
    assert ids.tolist() == everything.tolist()


def test_turns_of_which_some_are_not_to_be_learnt_are_not_joined():
    messages = [OPENAI[1], {**OPENAI[2], "weight": 0}, OPENAI[2]]
    with pytest.raises(ChatError, match="of which some are not to be learnt"):
        read_messages(messages)


def test_later_exchanges_do_not_begin_anew():
    def later(name):
        return apply_style(PromptStyle.from_name(name), "b", None, is_first=False)

    assert later("alpaca") == "\n\n### Instruction:\nb\n\n### Response:\n"
    assert later("qwen2.5") == "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    assert later("llama3").startswith("<|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|>")


def test_what_is_mended_is_counted(load, capsys):
    messages = [
        {"from": "gpt", "value": "hello"},
        {"from": "human", "value": "a"},
        {"from": "human", "value": "b"},
        {"from": "gpt", "value": "c"},
        {"from": "human", "value": "thanks"},
    ]
    data = load([{"conversations": messages}] * 2)
    found = [(m["role"], m["content"]) for m in data.held_out[0]["messages"]]
    assert found == [("user", "a\n\nb"), ("assistant", "c")]
    err = capsys.readouterr().err
    for text in ("an answer before the first question", "a last turn that nobody", "joined"):
        assert f"2 records: {text}" in err or text in err


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "has no answer of an assistant"),
        ([{"role": "user", "content": "a"}], "has no answer of an assistant"),
        ([{"role": "narrator", "content": "a"}], "message 0 of 'narrator', who is not known"),
        ([{"role": "user", "content": None}], "message 0 without text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part that is no text"),
        ([*OPENAI[1:3], {"role": "assistant", "tool_calls": [1], "content": None}], "calls a tool"),
        (["a"], "message 0 that is no mapping"),
        ([*OPENAI, {"role": "system", "content": "other"}], "a second system message"),
    ],
)
def test_conversations_that_cannot_be_used(messages, says):
    with pytest.raises(ChatError, match=says):
        read_messages(messages)


def test_a_template_that_refuses_is_named(load, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(Skip2BenchError, match=r"refused by the chat template \(no system role\)"):
        load([FORMS["openai"]] * 2, folder=tmp_path)


def test_templates_are_found_in_either_file(tmp_path):
    assert read_template(tmp_path) is None
    settings = {"chat_template": [{"name": "tool_use", "template": "x"}]}
    settings["chat_template"].append({"name": "default", "template": "y"})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_template(tmp_path) == "y"
    (tmp_path / "chat_template.jinja").write_text("z")
    assert read_template(tmp_path) == "z"


def test_records_of_one_exchange_are_no_conversations():
    assert find_messages({"instruction": "a", "output": "b", "history": []}, None) is None
    assert find_messages({"conversations": "text"}, None) is None
