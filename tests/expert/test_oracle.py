import random

import pytest

from protege.config import LEVELS, OracleParams
from protege.expert.audit import leaks_line, longest_overlap
from protege.expert.oracle import OracleExpert, advice
from protege.expert.verbalise import fix, kind
from tests.helpers import GOLD, make_instance


def test_advice_grows_from_file_to_function_to_fix():
    instance = make_instance()
    vague, located, specific = (advice(instance, level, random.Random(0)) for level in range(LEVELS))
    assert "calc/core.py" in vague and "difference" not in vague
    assert "`difference`" in located and "operator is wrong" in located and "`-`" not in located
    assert "`-` instead of `+`" in specific


def test_repeated_calls_get_more_specific_and_never_quote_a_line():
    expert = OracleExpert()
    replies = [expert.reply(make_instance(), "q", [], i).text for i in range(6)]
    assert len(set(replies[:3])) == 3
    assert all(not leaks_line(r, GOLD) and longest_overlap(r, GOLD) <= 20 for r in replies)
    assert expert.identity.sees_gold


def test_a_reply_that_would_leak_is_made_vaguer():
    patch = GOLD.replace("first - second", "compute_the_long_difference_of(first, second)").replace(
        "first + second", "compute_the_long_difference_of(first, secondary)"
    )
    instance = make_instance(patch=patch)
    assert longest_overlap(OracleExpert().reply(instance, "q", [], 5).text, patch) <= 20


@pytest.mark.parametrize(
    ("removed", "added", "what", "how"),
    [
        (["  return a - b"], ["  return a + b"], "operator", "use `+` instead of `-`"),
        (["  n = 3"], ["  n = 2"], "constant", "`2` instead of `3`"),
        (["  return b % a"], ["  return a % b"], "wrong way round", "`a` modulo `b`"),
        ([], ["  x = f(y)"], "an assignment is missing", "set `x` to the call of `f` with (`y`)"),
        ([], ["  if x < 3:", "    return y"], "a condition is missing", "check whether `x` is less than `3`"),
        ([], ["  if x:", "    raise"], "a condition is missing", "if so raise the same error again"),
        (
            [],
            ["  for x in xs:", "    yield next(x)"],
            "a loop is missing",
            "; inside, yield the call of `next` with (`x`)",
        ),
        (["  x = 1"], [], "too many", "take it out"),
        (["  a = 1", "  b = a"], ["  b = a", "  a = 1"], "wrong order", "back in order"),
    ],
)
def test_words_for_every_kind_of_change(removed, added, what, how):
    assert what in kind(removed, added)
    assert how in fix(removed, added)


def test_words_exist_for_text_that_is_not_python():
    assert fix(["$ % ("], ["( ( foo bar"])
    assert fix([], ["elif foo(bar):"])


def test_first_and_last_level_bound_what_it_says():
    instance = make_instance()

    def level(params: OracleParams, call: int) -> int:
        said = OracleExpert(params).reply(instance, "q", [], call).text
        return 2 if "instead of" in said else 1 if "operator is wrong" in said else 0

    assert [level(OracleParams(), call) for call in range(4)] == [0, 1, 2, 2]
    assert [level(OracleParams(first_level=1), call) for call in range(3)] == [1, 2, 2]
    assert [level(OracleParams(last_level=0), call) for call in range(3)] == [0, 0, 0]
    assert OracleExpert().identity.digest != OracleExpert(OracleParams(first_level=1)).identity.digest
    with pytest.raises(ValueError, match="last_level = 0 lies below first_level = 1"):
        OracleParams(first_level=1, last_level=0)
