"""In which script a text is written: in go a document's bytes, out comes a name of Unicode's, such as Latin or Han."""

from collections import Counter

from fontTools import unicodedata

NO_LETTERS = "no letters"
JAPANESE = "Japanese"
_KANA = ("Hira", "Kana")
_SHARED = ("Zyyy", "Zinh", "Zzzz")  # common to several scripts, inherited, unknown


def writing_system(data: bytes) -> str:
    """The script of most of a text's letters, by its name in Unicode; `NO_LETTERS` where it has none.

    Han is Japanese where a tenth of it and the kana together are kana: no Japanese text of some length has less.
    What is not UTF-8 does not count, nor do digits, punctuation and what several scripts share.
    """
    letters = Counter(data.decode("utf-8", errors="ignore"))
    counts: Counter[str] = Counter()
    for letter, times in letters.items():
        if letter.isalpha() and (script := unicodedata.script(letter)) not in _SHARED:
            counts[script] += times
    kana, han = sum(counts.pop(script, 0) for script in _KANA), counts.pop("Hani", 0)
    counts["Jpan" if kana and 10 * kana >= kana + han else "Hani"] = kana + han
    script = max(counts, key=lambda name: (counts[name], name))
    if not counts[script]:
        return NO_LETTERS
    return JAPANESE if script == "Jpan" else str(unicodedata.script_name(script))
