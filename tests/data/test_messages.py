import re
import struct

import pytest

from bltjax.data.messages import as_documents, catalogue, parallel_messages


def write_mo(path, messages, order="<"):
    """A catalogue as msgfmt writes it: header, two tables of lengths and offsets, then the texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = sorted((key.encode(), value.encode()) for key, value in messages.items())
    tables, texts, place = b"", b"", 28 + 16 * len(pairs)
    for column in (0, 1):
        for pair in pairs:
            tables += struct.pack(f"{order}2I", len(pair[column]), place + len(texts))
            texts += pair[column] + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    path.write_bytes(head + tables + texts)


GERMAN = {"": "Language: de", "Yes": "Ja", "No": "Nein", "month\x04May": "Mai", "%d day\0%d days": "%d Tag\0%d Tage"}


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalogue_is_read_without_its_head_and_plurals(order, tmp_path):
    write_mo(tmp_path / "a.mo", GERMAN, order)
    assert catalogue(tmp_path / "a.mo") == {"Yes": "Ja", "No": "Nein", "month\x04May": "Mai"}


DAMAGES = {
    "has 9 bytes": lambda data: data[:9],
    "does not begin": lambda data: b"x" + data[1:],
    "cut short: unpack_from": lambda data: data[:30],
    "cut short, a message ends": lambda data: data[:-9],
}


@pytest.mark.parametrize(("message", "damage"), DAMAGES.items())
def test_damage_is_named(message, damage, tmp_path):
    write_mo(tmp_path / "a.mo", GERMAN)
    (tmp_path / "a.mo").write_bytes(damage((tmp_path / "a.mo").read_bytes()))
    with pytest.raises(ValueError, match=message):
        catalogue(tmp_path / "a.mo")


@pytest.fixture
def tree(tmp_path):
    for app, german, russian in (
        ("admin", {**GERMAN, "Home": "Start"}, {"Yes": "Да", "No": "Нет", "month\x04May": "Май"}),
        ("auth", {"Yes": "Jawohl", "Sign in": "Anmelden"}, {"Yes": "Ага", "Sign in": "Войти"}),
    ):
        for language, messages in (("de", german), ("ru", russian)):
            write_mo(tmp_path / app / "locale" / language / "LC_MESSAGES" / "django.mo", messages)
    return tmp_path


def test_parallel_messages_are_those_that_all_languages_have_each_once(tree):
    found = {message.texts["en"]: message for message in parallel_messages(tree, ("en", "de", "ru"))}
    assert found.keys() == {"Yes", "No", "May", "Sign in"}
    assert found["May"].texts == {"en": "May", "de": "Mai", "ru": "Май"}
    assert (found["Yes"].texts["de"], found["Yes"].catalogue) == ("Ja", "admin/django.mo")
    assert "Home" in {message.texts["en"] for message in parallel_messages(tree, ("en", "de"))}


def test_whether_a_message_is_held_out_depends_on_its_english_alone(tree):
    few, many = parallel_messages(tree, ("de",)), parallel_messages(tree, ("de", "ru"))
    held = {message.texts["en"]: message.held_out(2) for message in few}
    assert set(held.values()) == {True, False}
    assert all(message.held_out(2) == held[message.texts["en"]] for message in many)


def test_documents_of_two_languages_say_the_same(tree):
    messages = parallel_messages(tree, ("de", "ru"))
    german, russian = (as_documents(messages, language, 3) for language in ("de", "ru"))
    assert [text.count(b"\n") for text in german] == [text.count(b"\n") for text in russian] == [3, 1]
    assert "".join(f"{message.texts['ru']}\n" for message in messages).encode() == b"".join(russian)


@pytest.mark.parametrize(("languages", "message"), [(("en", "fr"), "locale/fr/LC_MESSAGES"), (("en",), "besides 'en'")])
def test_a_language_that_is_not_there_is_named(languages, message, tree):
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(message)):
        parallel_messages(tree, languages)
