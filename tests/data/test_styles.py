import pytest
from litgpt.prompts import PromptStyle, prompt_styles

from skip2bench.data.styles import choose_prompt_style, place_input
from skip2bench.errors import Skip2BenchError

RECORDS = [
    {"instruction": "Say what it does.", "input": "def f(): ...", "output": "Nothing."},
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
]


@pytest.mark.parametrize(
    ("model", "style"),
    [
        ("SmolLM2-135M-Instruct", "smollm2"),
        ("Llama-2-7b-chat-hf", "llama2"),
        ("Llama-2-7b-hf", "alpaca"),
        ("pystd", "alpaca"),
        ("", "alpaca"),
    ],
)
def test_a_chat_model_has_a_style_of_its_own(model, style):
    assert choose_prompt_style("auto", model) == style
    assert choose_prompt_style("flan", model) == "flan"


def test_an_unknown_style_is_named():
    with pytest.raises(Skip2BenchError, match="'poem'; choose from auto, alpaca"):
        choose_prompt_style("poem", "pystd")


@pytest.mark.parametrize("style", prompt_styles)
def test_every_part_of_a_record_reaches_the_prompt(style):
    if style == "llama2-function-calling":
        pytest.skip("it reads a list of functions from the record")
    for record, before in zip(
        place_input(RECORDS, PromptStyle.from_name(style)), RECORDS, strict=True
    ):
        prompt = PromptStyle.from_name(style).apply(record["instruction"], **record)
        assert prompt.count(before["instruction"]) == 1
        assert prompt.count(before["input"] or before["instruction"]) == 1
        assert record["output"] == before["output"]


def test_what_alpaca_has_a_place_for_stays_there():
    assert place_input(RECORDS, PromptStyle.from_name("alpaca")) == RECORDS
    assert place_input(RECORDS, PromptStyle.from_name("smollm2"))[0]["instruction"].endswith(
        "it does.\n\ndef f(): ..."
    )
    assert place_input(RECORDS, PromptStyle.from_name("smollm2"))[1] == RECORDS[1]


def test_a_file_is_a_style_and_travels_with_the_adapter(train, tmp_path):
    from skip2bench.export.source import open_source

    path = tmp_path / "mine.jinja"
    path.write_text("{% if system %}{{ system }}\n{% endif %}Q: {{ instruction }}\nA: ")
    name = choose_prompt_style(str(path), "pystd")
    style = PromptStyle.from_name(name)
    assert style.apply("1+1?") == "Q: 1+1?\nA: "
    assert style.apply("1+1?", sys_prompt="be brief") == "be brief\nQ: 1+1?\nA: "
    # it has no place for an input, which stands at the instruction then
    (record,) = place_input([{"instruction": "add", "input": "1", "output": "1"}], style)
    assert record["instruction"] == "add\n\n1"
    summary, _, _, folder = train(prompt_style=str(path), max_steps=1)
    assert summary["prompt_style"] == str(path)
    path.unlink()
    source = open_source(folder)
    assert PromptStyle.from_name(source.prompt_style).apply("x") == "Q: x\nA: "


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Answer: ", "no place for the instruction"),
        ("{{ question }}", "is no template of instruction, input and system"),
        ("{% if", "is no template"),
    ],
)
def test_a_file_that_is_no_style(tmp_path, text, says):
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    with pytest.raises(Skip2BenchError, match=says):
        choose_prompt_style(str(path), "pystd")
