"""How near an answer comes to its reference, from 0 to 1; text alone, no model.

    exact     equal but for white space and the case of letters
    f1        of the words of both (Rajpurkar et al., SQuAD, arXiv:1606.05250)
    rouge-l   F-measure of the longest common subsequence of words (Lin, ROUGE, 2004)
    choice    the same option
    regex     the last match's first group is the same in both

Chinese and Japanese are written without spaces, so each of their characters counts as a word, for
f1 and rouge-l; letters and digits between them are words as ever.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from skip2bench.config.score import ScoreName

# hiragana and katakana with their marks, half-width katakana, and Han with its extensions
_UNSPACED = "\u3005-\u3007\u3041-\u309f\u30a0-\u30ff\uff66-\uff9f\u3400-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
_SPACED = re.compile(f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+")
_MARK = re.compile(r"[^\w\s]|_")
_ARTICLES = frozenset(("a", "an", "the"))
_LETTER = re.compile(r"(?<![A-Za-z0-9])[A-J](?![A-Za-z0-9])")
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+")


def score_answer(
    name: ScoreName, answer: str, reference: str, pattern: re.Pattern[str] | None = None
) -> float:
    """How near an answer comes to a reference, from 0 to 1.

    Args:
        name: Of the score; a choice is that of a letter here.
        answer: Any text.
        reference: What `find_fault` has nothing against.
        pattern: Of "regex".
    """
    if name == "f1":
        return measure_f1(answer, reference)
    if name == "rouge-l":
        return measure_rouge_l(answer, reference)
    read: Callable[[str], str | None] = fold
    if name == "choice":
        read = find_letter
    elif pattern is not None:
        read = partial(find_match, pattern)
    return float(read(answer) == read(reference))


def fold(text: str) -> str:
    """Text without what exact leaves out of account."""
    return " ".join(text.split()).casefold()


def measure_f1(answer: str, reference: str) -> float:
    """Harmonic mean of the shares of words that both have: of the answer's, of the reference's.

    As in SQuAD, articles are no words and punctuation counts for nothing, within a word either. Two
    texts without words are the same.
    """
    own, wanted = (
        Counter(it for it in _SPACED.findall(_MARK.sub("", text.casefold())) if it not in _ARTICLES)
        for text in (answer, reference)
    )
    if not own or not wanted:
        return float(own == wanted)
    return _harmonic((own & wanted).total(), own.total(), wanted.total())


def measure_rouge_l(answer: str, reference: str) -> float:
    """Harmonic mean of the shares of words in the longest common subsequence of both."""
    own, wanted = split_words(answer), split_words(reference)
    if not own or not wanted:
        return float(own == wanted)
    return _harmonic(_longest_common(own, wanted), len(own), len(wanted))


def split_words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; of scripts without spaces, single characters."""
    return _WORD.findall(text.casefold())


def find_letter(text: str) -> str | None:
    """The first capital letter from A to J that stands alone; None where there is none."""
    match = _LETTER.search(text)
    return match and match[0]


def find_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group of the last match; None where nothing matches.

    Numbers are brought to one form: "1,250.50" and "1250.5." are the same.
    """
    found = [match[1] for match in pattern.finditer(text)]
    if not found or found[-1] is None:
        return None
    last = fold(found[-1])
    plain = last.replace(",", "").rstrip(".")
    if not _NUMBER.fullmatch(plain):
        return last
    sign, digits = ("-", plain[1:]) if plain[0] == "-" else ("", plain.lstrip("+"))
    whole, _, part = digits.partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    number = f"{whole}.{part}" if part else whole
    return number if number == "0" else sign + number


def find_fault(
    name: ScoreName, reference: str, pattern: re.Pattern[str] | None = None
) -> str | None:
    """Why no answer could be compared with a reference; None where one can."""
    if name == "regex" and pattern is not None and find_match(pattern, reference) is None:
        return "the pattern does not match its output"
    if name == "choice" and find_letter(reference) is None:
        return "its output has no letter from A to J by itself"
    return None


def find_option(reference: str, choices: Sequence[str]) -> tuple[list[str], int] | None:
    """What is written for each choice, and the right one's place; None where none is right.

    That is the choices themselves where the output is one of them, and else their letters.
    """
    folded = [fold(choice) for choice in choices]
    if fold(reference) in folded:
        return list(choices), folded.index(fold(reference))
    letters = [chr(ord("A") + i) for i in range(min(len(choices), 26))]
    given = reference.strip().rstrip(".)").lstrip("(").upper()
    return (letters, letters.index(given)) if given in letters else None


def _harmonic(common: int, own: int, wanted: int) -> float:
    return 2 * common / (own + wanted)


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    before = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for place, other in enumerate(second):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[-1]))
        before = row
    return before[-1]
