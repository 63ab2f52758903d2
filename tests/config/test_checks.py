import pytest

from bltjax.config.checks import at_least, one_of, require
from bltjax.config.run import RowsConfig


def test_what_is_refused_is_named_with_its_value_and_an_advice():
    with pytest.raises(ValueError, match=r"^rows\.batch=0: must be at least 1\.$"):
        require(False, "rows.batch", 0, "must be at least 1.")
    require(True, "rows.batch", 0, "must be at least 1.")


def test_a_choice_that_is_near_to_a_known_one_is_answered_with_it():
    with pytest.raises(ValueError, match=r"rule='spaces': choose one of 'space', 'entropy'\. Did you mean 'space'\?"):
        one_of("rule", "spaces", ("space", "entropy"))
    with pytest.raises(ValueError, match=r"rule=7: choose one of 'space', 'entropy'\.$"):
        one_of("rule", 7, ("space", "entropy"))


def test_none_has_no_bound():
    at_least(RowsConfig(slots=None), slots=2)
    with pytest.raises(ValueError, match=r"^x\.bytes=5: must be at least 6"):
        at_least(RowsConfig(bytes=5), "x.", bytes=6)
