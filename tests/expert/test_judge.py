from hypothesis import given
from hypothesis import strategies as st

from protege.core.trajectory import ExpertCall
from protege.expert.judge import HeuristicJudge, judged, named_things, steps_after, steps_before
from tests.helpers import GOLD, make_trajectory, make_turn

JUDGE = HeuristicJudge()
REPLY = "In `calc/core.py`, look at `difference`: an operator is wrong."


def asked(turn, query="difference() in calc/core.py gives 8"):
    return ExpertCall(turn=turn, query=query, reply=REPLY)


def look(i, observation="calc/core.py:1: def difference"):
    return make_turn(i, "bash", command=f"grep -rn word{i} .", observation=observation)


def test_asking_before_trying_is_not_warranted():
    t = make_trajectory([make_turn(0, "ask_expert", query="help")], [asked(0, "help")])
    assert JUDGE.warrant(t, t.expert_calls[0]) == 0.0


def test_a_stalled_and_specific_call_is_fully_warranted():
    t = make_trajectory([look(0), look(1), look(2), make_turn(3, "ask_expert", query="q")], [asked(3)])
    assert JUDGE.warrant(t, t.expert_calls[0]) == 1.0


def test_an_unstalled_vague_call_is_hardly_warranted():
    t = make_trajectory(
        [look(0), make_turn(1, "bash", command="python x.py"), make_turn(2, "ask_expert", query="q")],
        [asked(2, "help me")],
    )
    assert JUDGE.warrant(t, t.expert_calls[0]) == 0.3


def test_following_touches_edits_and_takes_up():
    turns = [
        make_turn(0, "ask_expert", query="q"),
        make_turn(1, "bash", message="I look at `difference`", command="grep -n difference calc/core.py"),
        make_turn(2, "str_replace_editor", command="str_replace", path="/testbed/calc/core.py", observation="edited"),
    ]
    t = make_trajectory(turns, [asked(0)])
    assert JUDGE.follow(t, t.expert_calls[0]) == 1.0


def test_ignoring_the_advice_scores_zero_and_a_terminal_call_nothing():
    t = make_trajectory([make_turn(0, "ask_expert", query="q"), make_turn(1, "bash", command="ls")], [asked(0)])
    assert JUDGE.follow(t, t.expert_calls[0]) == 0.0
    t = make_trajectory([make_turn(0, "ask_expert", query="q")], [asked(0)])
    assert JUDGE.follow(t, t.expert_calls[0]) is None


def test_windows_lie_between_calls():
    turns = [
        look(0),
        make_turn(1, "ask_expert", query="q"),
        look(2),
        look(3),
        make_turn(4, "ask_expert", query="q"),
        look(5),
    ]
    t = make_trajectory(turns, [asked(1), asked(4)])
    first, second = t.expert_calls
    assert [x.index for x in steps_before(t, first)] == [0]
    assert [x.index for x in steps_after(t, first)] == [2, 3]
    assert [x.index for x in steps_before(t, second)] == [2, 3]
    assert [x.index for x in steps_after(t, second)] == [5]


def test_refused_calls_are_not_judged():
    refused = asked(0).model_copy(update={"answered": False})
    t = judged(make_trajectory([make_turn(0, "ask_expert", query="q"), look(1)], [refused]), JUDGE)
    assert t.expert_calls[0].warrant is None and t.expert_calls[0].follow is None


# ---- warrant: was it stalled or failing before it asked ----


def run(i, command="python x.py", exit_code=0, **more):
    return make_turn(i, "bash", command=command, **more).model_copy(update={"exit_code": exit_code})


def edit(i, path="/testbed/calc/core.py", action="str_replace", observation="The file has been edited.", **more):
    return make_turn(i, "str_replace_editor", command=action, path=path, observation=observation, **more)


def warrant(*own, query="What does `difference` in calc/core.py want?", earlier=()):
    """Of a call after ``own`` steps; ``earlier`` queries were asked and answered before them."""
    turns = [make_turn(i, "ask_expert", query="q") for i in range(len(earlier))]
    turns += [turn.model_copy(update={"index": len(turns) + n}) for n, turn in enumerate(own)]
    calls = [asked(i, text) for i, text in enumerate(earlier)] + [asked(len(turns), query)]
    t = make_trajectory([*turns, make_turn(len(turns), "ask_expert", query=query)], calls)
    return JUDGE.warrant(t, calls[-1])


def test_a_failing_step_just_before_counts_and_one_long_ago_does_not():
    fails = run(0, "python a.py", exit_code=1)
    clean = [run(1, "pytest"), edit(2), look(3), run(4, "python b.py")]
    assert warrant(*clean, fails) == 1.0
    assert warrant(fails, *clean) == 0.6


def test_trouble_that_an_edit_cured_is_over():
    stalled = [look(i) for i in range(4)]
    assert warrant(*stalled) == 1.0
    assert warrant(*stalled, edit(4), run(5)) == 0.6
    assert warrant(*stalled, edit(4), run(5, exit_code=1)) == 1.0


def test_a_change_that_was_taken_back_cured_nothing():
    undo = edit(2, action="undo_edit", observation="Last edit undone successfully.")
    assert warrant(edit(0), run(1), undo) == 1.0
    assert warrant(edit(0), run(1)) == 0.6


def test_the_same_command_twice_is_a_stall_unless_something_was_changed_between():
    assert warrant(run(0, "pytest -q"), look(1), run(2, "pytest -q")) == 1.0
    assert warrant(run(0, "pytest -q"), edit(1), run(2, "pytest -q")) == 0.6
    assert warrant(run(0, "pytest -q"), look(1), run(2, "python y.py")) == 0.6


def test_messages_without_a_call_try_nothing():
    blank = make_turn(0, None, observation="Your message has no tool call.")
    assert warrant(blank, blank, blank) == 0.0
    assert warrant(blank, look(1)) < 0.5


def test_asking_the_same_again_is_worth_half():
    query = "What does `difference` in calc/core.py want?"
    assert warrant(*[look(i) for i in range(3)], query=query, earlier=["Something else?"]) == 1.0
    assert warrant(*[look(i) for i in range(3)], query=query.upper(), earlier=[query]) == 0.35  # nor is it specific
    assert warrant(*[look(i) for i in range(3)], query=query + " ", earlier=[query]) == 0.5
    padded = f"{query} What does it want? {query}" + " I want it." * 20
    assert warrant(*[look(i) for i in range(3)], query=padded, earlier=["Something else?", query]) == 0.5
    other = query.replace("want", "return where both signs differ")
    assert warrant(*[look(i) for i in range(3)], query=other, earlier=[query]) == 1.0


@given(st.lists(st.sampled_from(["look", "run", "fail", "edit", "blank"]), max_size=9))
def test_a_failing_step_before_asking_never_makes_it_less_warranted(kinds):
    make = {
        "look": look,
        "run": lambda i: run(i, f"python {i}.py"),
        "fail": lambda i: run(i, f"python {i}.py", exit_code=1),
        "edit": lambda i: edit(i, new_str=str(i)),
        "blank": lambda i: make_turn(i, None),
    }
    own = [make[kind](i) for i, kind in enumerate(kinds)]
    before, after = warrant(*own), warrant(*own, run(99, "pytest tests", exit_code=1))
    assert 0.0 <= before <= after <= 1.0
    assert all(warrant(*own, query=q) <= before for q in ("help", "", "what now"))


# ---- follow: did its next actions and its diff touch what the advice named; did it report back ----

OTHER = GOLD.replace("calc/core.py", "calc/table.py").replace("difference", "total")


def follow(*after, reply=REPLY, patch=GOLD, next_query=None):
    turns = [make_turn(0, "ask_expert", query="q")]
    turns += [turn.model_copy(update={"index": 1 + n}) for n, turn in enumerate(after)]
    calls = [asked(0).model_copy(update={"reply": reply})]
    if next_query is not None:
        calls.append(asked(len(turns), next_query))
        turns.append(make_turn(len(turns), "ask_expert", query=next_query))
    t = make_trajectory(turns, calls, patch=patch)
    return JUDGE.follow(t, calls[0])


def test_repeating_the_advice_in_words_alone_stays_below_the_threshold():
    words = "As advised I look at `difference` in calc/core.py and fix it."
    assert follow(run(1, "ls", message=words), make_turn(2, "submit"), patch="") == 0.3


def test_work_elsewhere_is_not_following():
    assert follow(edit(1, "/testbed/calc/table.py"), make_turn(2, "submit"), patch=OTHER) == 0.0


def test_a_change_that_does_not_stand_is_no_change():
    there = edit(1, message="I change `difference`.")
    undo = make_turn(2, "str_replace_editor", command="undo_edit", path="/testbed/calc/core.py", observation="undone")
    assert follow(there, make_turn(3, "submit")) == 1.0
    assert follow(there, undo, make_turn(3, "submit"), patch="") == 0.7
    assert follow(there, undo, next_query="what now?") == 0.7
    assert follow(there, next_query="what now?") == 1.0


def test_a_shell_edit_counts_by_the_diff_it_leaves():
    assert follow(run(1, "sed -i s/+/-/ calc/core.py", message="`difference` it is"), make_turn(2, "submit")) == 1.0


def test_steps_that_failed_count_half():
    missed = edit(1, observation="No replacement was performed, old_str `x` did not appear verbatim in calc/core.py.")
    assert follow(missed, make_turn(2, "submit"), patch="") == 0.2


def test_looking_and_reporting_back_is_following_before_the_next_question():
    read = run(1, "grep -n difference calc/core.py", message="I look there.")
    assert follow(read, next_query="I read `difference`; it adds. What then?") == 0.7
    assert follow(read.model_copy(update={"message": "I read `difference`."}), next_query="I read difference.") == 1.0
    assert follow(read, next_query="And now?") == 0.4


def test_names_are_whole_names():
    advice = "Look at `re` and the `return` in `x.parse`."
    assert named_things(advice) == {"re", "x.parse", "parse"}
    assert follow(run(1, "grep -rn return ."), make_turn(2, "submit"), reply=advice, patch="") == 0.0
    assert follow(run(1, "grep -n 'parse(' x.py"), make_turn(2, "submit"), reply=advice, patch="") == 0.4


def test_advice_that_names_nothing_is_recognised_by_its_words():
    advice = "Reproduce the problem first and compare the results."
    assert follow(run(1, "ls", message="I shall do something."), make_turn(2, "submit"), reply=advice) == 0.0
    assert (
        follow(run(1, "ls", message="I reproduce and compare the results."), make_turn(2, "submit"), reply=advice)
        == 0.3
    )


STEPS = {
    "read": lambda i: run(i, "grep -n difference calc/core.py", message="I look at `difference`."),
    "edit": lambda i: edit(i),
    "away": lambda i: run(i, "ls"),
    "wrong": lambda i: edit(i, "/testbed/other.py"),
    "fail": lambda i: run(i, "grep difference nowhere", exit_code=1),
    "blank": lambda i: make_turn(i, None),
}


@given(
    st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6),
    st.sampled_from([None, "And now?", "I read `difference`."]),
    st.sampled_from(["", GOLD, OTHER]),
)
def test_doing_more_of_what_was_advised_never_lowers_the_score(kinds, next_query, patch):
    after = [STEPS[kind](i) for i, kind in enumerate(kinds)]
    value = follow(*after, next_query=next_query, patch=patch)
    assert 0.0 <= value <= 1.0
    for more in ("read", "edit"):
        assert follow(STEPS[more](0), *after, next_query=next_query, patch=patch) >= value
    if not {"read", "edit", "fail"} & set(kinds):
        assert follow(*after, patch="") == 0.0


def test_scores_never_reach_the_agent():
    """Judging changes nothing but the two scores: messages, turns and tokens stay as they were."""
    t = make_trajectory(
        [look(0), look(1), make_turn(2, "ask_expert", query="q"), edit(3), make_turn(4, "submit")], [asked(2)]
    )
    done = judged(t, JUDGE)
    assert done.expert_calls[0].warrant is not None and done.expert_calls[0].follow is not None
    blank = [c.model_copy(update={"warrant": None, "follow": None}) for c in done.expert_calls]
    assert done.model_copy(update={"expert_calls": blank}) == t
