import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from bltjax.data.corpus import Documents
from bltjax.data.messages import Message, as_documents
from bltjax.data.tokenizer import train
from bltjax.data.views import BLTSource, ByteSource, RowsConfig, TokenSource
from bltjax.scaling import experiment
from experiments import domains
from experiments.domains import AT_A_TIME, Languages, found_messages, studies, units
from tests.arms import SCALES, plans
from tests.data.test_messages import write_mo

TEXTS = [b"first of them\n", "ещё один\n".encode()]


def test_units_of_documents_leave_out_their_ends(tmp_path):
    documents, rows = Documents.of(TEXTS), RowsConfig(bytes=16, batch=1)
    starts = np.zeros(sum(len(text) + 2 for text in TEXTS), bool)
    starts[[0, 1, 5, 16, 17, 20, 22, 24]] = True
    assert units(ByteSource(documents, rows)).tolist() == [len(text) for text in TEXTS]
    assert units(BLTSource(documents, starts, rows)).tolist() == [2, 4]
    tokenizer = train(Documents.of([TEXTS[0] * 30]), 262, tmp_path / "tokenizer.json")
    tokens = units(TokenSource(documents, tokenizer, rows))
    assert tokens[0] < len(TEXTS[0]) and tokens[1] <= len(TEXTS[1])


@pytest.mark.parametrize("scale", SCALES)
def test_three_families_of_three_seeds_have_their_budget(scale):
    asked = studies(Languages(Path("runs/nowhere"), scale=scale, corpus=("text",)))
    assert len({plan.series for plan in plans(asked)}) == 3 and len(plans(asked)) == 9


def test_a_distribution_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="0 folders match"):
        found_messages(Languages(tmp_path, messages=str(tmp_path / "django-5.*")))


@pytest.mark.thorough
def test_every_run_is_scored_on_the_same_messages_in_every_language(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    words = {
        "en": ["a", "the", "one", "time", "red", "and"],
        "de": ["ein", "die", "Zeit", "rot", "und", "der"],
        "ru": ["это", "раз", "два", "три", "и", "на"],
    }
    english = {" ".join(generator.choice(words["en"], 6)) + f" {number}" for number in range(240)}
    for language in ("de", "ru"):
        said = {text: " ".join(generator.choice(words[language], 6)) for text in sorted(english)}
        write_mo(tmp_path / "source" / "django" / "locale" / language / "LC_MESSAGES" / "django.mo", said)

    def tiny(settings):
        (study,) = studies(settings).values()
        shape = {"row_bytes": 64, "batch": 8, "budgets": (4e8,), "patch_sizes": (3.0,), "heldout_percent": 20.0}
        entropy = {"entropy_model": "entropy-tiny", "entropy_bytes": 3000}
        return {"": dataclasses.replace(study, preset=("byte-tiny", "token-tiny", "blt-tiny"), **shape, **entropy)}

    monkeypatch.setattr(experiment, "keep_compiled", lambda folder: None)
    monkeypatch.setattr(domains, "studies", tiny)
    settings = Languages(tmp_path / "out", seeds=(0,), messages=str(tmp_path / "source"), languages=("en", "de", "ru"))
    domains.main(settings)
    with (settings.out / "domains.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3
    held = [message for message in found_messages(settings) if message.held_out(domains.ONE_IN)]
    for row in rows:
        size = sum(map(len, as_documents(held, row["language"], AT_A_TIME)))
        assert int(row["bytes"]) == size and int(row["messages"]) == len(held)
        bits = float(row["bits_per_byte"]) * size
        assert math.isclose(float(row["bits_per_message"]), bits / len(held))
    # Nothing that is scored was read in training.
    trained = "".join(path.read_text() for path in (settings.out / "text" / "en").iterdir()).splitlines()
    assert not {message.texts["en"] for message in held} & set(trained) and len(trained) + len(held) == len(english)
    assert "ru" in capsys.readouterr().out and (settings.out / "domains.png").is_file()


def test_messages_stand_in_documents_by_their_order():
    message = Message("a", {"en": "x", "de": "y"})
    assert as_documents([message] * 3, "de", 2) == [b"y\ny\n", b"y\n"]
