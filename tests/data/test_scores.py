"""Scores of texts: what counts as the same, and how near others come."""

import re

import pytest

from skip2bench.data.scores import (
    find_fault,
    find_letter,
    find_match,
    find_option,
    measure_f1,
    measure_rouge_l,
    score_answer,
    split_words,
)

GSM8K = re.compile(r"####\s*(-?[\d,.]+)")


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("  Paris\n", "paris", 1.0),
        ("New\u3000York  City", "new york city", 1.0),
        ("Straße", "STRASSE", 1.0),
        ("Paris.", "Paris", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_exact_leaves_white_space_and_case_out_of_account(answer, reference, score):
    assert score_answer("exact", answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat", "A cat sat.", 1.0),  # articles and punctuation count for nothing
        ("cat cat", "cat", 2 / 3),  # a word counts as often as both have it
        ("the red cat", "cat", 2 / 3),
        ("don't", "dont", 1.0),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("", "cat", 0.0),
        ("東京です", "東京", 2 * 2 / 6),
        ("GPU 2枚", "gpu2枚", 2 / 5),
    ],
)
def test_f1_is_of_words_and_of_characters_where_no_space_divides_them(answer, reference, score):
    assert measure_f1(answer, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the cat sat on the mat", "the cat lay on a mat", 2 * 4 / 12),
        ("mat the on sat cat the", "the cat sat on the mat", 2 * 3 / 12),
        ("police kill the gunman", "police killed the gunman", 2 * 3 / 8),
        ("猫がいる。", "犬がいる", 2 * 3 / 8),
        ("", "a", 0.0),
    ],
)
def test_rouge_l_is_of_the_longest_common_subsequence(answer, reference, score):
    assert measure_rouge_l(answer, reference) == pytest.approx(score)


def test_words_of_unspaced_scripts_are_characters_and_others_stay_whole():
    assert split_words("LoRAで2.5倍、ﾃｽﾄ") == [
        *("lora", "で", "2", "5", "倍"),
        *("ﾃ", "ｽ", "ﾄ"),
    ]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("#### 5 and then #### 1,250.50", "1250.5"),
        ("so #### 72.", "72"),
        ("#### -007", "-7"),
        ("#### -0.0", "0"),
        ("####  .5", "0.5"),
        ("72", None),
    ],
)
def test_a_pattern_finds_the_last_match_and_one_form_of_a_number(answer, found):
    assert find_match(GSM8K, answer) == found
    assert score_answer("regex", answer, f"#### {found or 72}", GSM8K) == float(found is not None)


def test_a_group_that_is_no_number_is_compared_as_text():
    pattern = re.compile(r"Answer:\s*(.*)")
    assert score_answer("regex", "Answer: New  York", "Answer: new york", pattern) == 1.0
    assert score_answer("regex", "Answer: York", "Answer: new york", pattern) == 0.0
    assert find_match(re.compile("(x)|y"), "x y") is None  # the last match has no such group


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("The answer is (C), not D.", "C"),
        ("答えはBです", "B"),
        ("b", None),
        ("Because K", None),
        ("B) Paris", "B"),
    ],
)
def test_a_letter_is_a_capital_that_stands_alone(text, letter):
    assert find_letter(text) == letter


def test_references_that_nothing_could_equal_are_faults():
    assert find_fault("regex", "72", GSM8K) is not None
    assert find_fault("regex", "#### 72", GSM8K) is None
    assert find_fault("choice", "Paris") is not None
    assert find_fault("choice", "B. Paris") is None
    assert find_fault("exact", "") is None


def test_the_right_option_is_a_text_or_its_letter():
    choices = ["Paris", "Rome", "Oslo"]
    assert find_option(" rome", choices) == (choices, 1)
    for output in ("B", "(b)", "B."):
        assert find_option(output, choices) == (["A", "B", "C"], 1)
    for output in ("D", "Bern", ""):
        assert find_option(output, choices) is None
