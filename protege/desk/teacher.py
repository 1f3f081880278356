"""The scripted teacher: the offline policy of trajectory synthesis.

It may use the gold patch (as the paper's phase-I teacher-expert does) but works through the same tools,
sandbox and limits as everybody else, and everything it says rests on what it was shown. A plan is drawn
for each (instance, seed), so that no single path can be memorised: some solve alone, some stall first,
some take a wrong turn, some need the expert twice or three times.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Sequence

from protege.agent.tools import EXPERT_OPEN, OBSERVATION_PREFIX
from protege.core.instance import Instance
from protege.core.patches import Change, changes, enclosing_function
from protege.core.trajectory import Identity, Message
from protege.desk import wording
from protege.desk.example import last_line, snippet
from protege.desk.wording import say
from protege.expert.silent import NO_ANSWER
from protege.identity import code_of
from protege.policy.base import Completion
from protege.sandbox.base import WORKDIR

PLANS = {"alone": 1, "stall": 4, "wrong_turn": 1, "evidence": 5}
"""Plan -> weight in the draw. "alone" is rare: a fix made without advice rests on the gold patch, which no protégé sees."""

READS_FIRST = {"alone", "wrong_turn"}
"""Plans that go to the function before any advice: only where the issue names it, for nobody could know it otherwise."""

MAX_QUESTIONS = 3
MAX_SILENCES = 3
"""How often a question that got no answer is asked again."""

VIEW_LINES = 20
Script = Generator[str, str, None]


class ScriptedTeacher:
    """Policy whose sessions follow a drawn plan. ``identity.sees_gold`` is True."""

    def __init__(self) -> None:
        self.identity = Identity(
            name="scripted-teacher",
            digest=code_of("protege.desk.teacher"),
            kind="scripted",
            sees_gold=True,
        )

    def start(self, instance: Instance, seed: int) -> TeacherSession:
        return TeacherSession(instance, seed)


class TeacherSession:
    """One scripted rollout; ``plan`` is its name."""

    def __init__(self, instance: Instance, seed: int) -> None:
        self.rng = random.Random(f"{instance.instance_id}:{seed}")
        self.instance = instance
        self.changes = changes(instance.patch)
        self.plan = self.rng.choices(list(PLANS), weights=list(PLANS.values()))[0] if self.changes else "alone"
        if self.plan in READS_FIRST and self._entity(self.changes[0]) not in instance.problem_statement.split("`"):
            self.plan = "evidence"
        self.queries = 0
        self.advice = ""  # the latest
        self.deserted = False  # the latest question got no answer, however often it was asked
        self.seen = ("", 0)  # path and first line of the last view
        self.view_lines = VIEW_LINES
        self._script = self._run()
        self._started = False

    def step(self, new_messages: Sequence[Message]) -> Completion:
        try:
            if self._started:
                text = self._script.send(new_messages[-1].content.removeprefix(OBSERVATION_PREFIX))
            else:
                self._started = True
                text = next(self._script)
        except StopIteration:  # a script that ran out submits what it has
            text = say("This is as far as I get.", "submit")
        return Completion(text)

    def tokens(self) -> None:
        return None

    def carry_out(self, advice: str, view_lines: int = VIEW_LINES) -> Script:
        """Only the part from ``advice``, a marked reply of the expert, to the edits: yields messages, takes observations."""
        self.queries, self.advice, self.view_lines = 1, advice, view_lines
        yield from self._edit_all()

    def _run(self) -> Script:
        if not self.changes:
            yield say("There is no change to make.", "submit")
            return
        yield from self._look_around()
        yield from {
            "alone": self._alone,
            "stall": self._stall,
            "wrong_turn": self._wrong_turn,
            "evidence": self._evidence,
        }[self.plan]()
        if self.deserted:
            yield say("Nobody answers, and I do not find the mistake by myself.", "submit")
            return
        edited = yield from self._edit_all()
        yield from self._check(edited)

    # ---- plans: what happens before the edit ----

    def _alone(self) -> Script:
        yield from self._read(self.changes[0])

    def _stall(self) -> Script:
        tried = yield from self._wander(self.rng.randint(3, 4))
        yield from self._ask_until_clear(f"I searched {tried} and do not find the cause.")

    def _wrong_turn(self) -> Script:
        yield from self._read(self.changes[0])
        where = yield from self._wrong_edit(self.changes[0])
        yield from self._ask_until_clear(f"I changed {where}, but the result did not get better, so I took it back.")

    def _evidence(self) -> Script:
        seen = yield from self._reproduce()
        yield from self._ask_until_clear(seen)

    # ---- steps ----

    def _look_around(self) -> Script:
        if self.rng.random() < 0.5:
            yield say(self._pick("First I look at the repository.", "Let me see what is here."), "bash", command="ls")

    def _wander(self, steps: int) -> Generator[str, str, str]:
        words = [w for w in re.findall(r"[a-z_]{5,}", self.instance.problem_statement.lower()) if w not in _STOP]
        words = list(dict.fromkeys(words)) or ["result"]
        self.rng.shuffle(words)
        tried = []
        for index in range(steps):
            word = words[index % len(words)]
            tried.append(f"`{word}`")
            thought = self._pick(f"I search for {word}.", f"Maybe {word} leads there.", f"Let me look for {word}.")
            yield say(thought, "bash", command=f"grep -rn --include=*.py {word} . | sort | head -n 5")
        return " and ".join(tried[:3])

    def _reproduce(self) -> Generator[str, str, str]:
        code = snippet(self.instance.problem_statement)
        if not code:
            observation = yield say("I run the tests to see where it stands.", "bash", command=_TESTS)
            return f"The tests of the repository say: {last_line(observation)}."
        observation = yield say(
            self._pick("I reproduce the issue first.", "Let me run the example from the issue."),
            "bash",
            command=f"python - <<'EOF'\n{code}\nEOF",
        )
        return f"I ran the example and got: {last_line(observation)}."

    def _read(self, change: Change) -> Script:
        """Read from the line that the advice names; without one, from the definition that a search finds, to the change."""
        first, name = wording.start(change), self._entity(change)
        told = change.path in self.advice and f"line {first}" in self.advice
        if name and not told:
            found = yield say(
                self._pick(f"I look for `{name}`.", f"Where is `{name}` defined?"),
                "bash",
                command=f"grep -rn --include=*.py '{wording.definition(name)}' . | sort | head -n 5",
            )
            lines = re.findall(rf"^(?:\./)?{re.escape(change.path)}:(\d+):", found, re.MULTILINE)
            first = max((int(n) for n in lines if 0 <= change.line - int(n) <= 3 * self.view_lines), default=first)
        while True:
            yield from self._view(change.path, first)
            if change.line + len(change.removed) <= first + self.view_lines:
                return
            first += self.view_lines

    def _view(self, path: str, first: int) -> Script:
        yield say(
            self._pick(f"I read it from line {first}.", "Let me read the code."),
            "str_replace_editor",
            command="view",
            path=f"{WORKDIR}/{path}",
            view_range=f"[{first}, {first + self.view_lines}]",
        )
        self.seen = (path, first)

    def _has_seen(self, change: Change, shift: int) -> bool:
        path, first = self.seen
        return path == change.path and first <= wording.start(change) + shift <= first + self.view_lines

    def _ask_until_clear(self, report: str) -> Script:
        """Ask, read what the advice names, and ask again with what was seen, until the advice says what to change.

        Something is always done between two questions; at most MAX_QUESTIONS.
        """
        first = self.changes[0]
        name = self._entity(first)
        what = f"`{name}` in `{first.path}`" if name else f"`{first.path}`"
        yield from self._ask(self._pick("I am stuck.", "This leads nowhere; I ask."), report)
        if self.deserted:
            return
        if self.plan == "wrong_turn":  # it has read the function already
            yield from self._reproduce()
        else:
            yield from self._read(first)
        if not self.advice:
            return
        for question in range(1, MAX_QUESTIONS):
            if self._clear() or self.deserted:
                return
            if question == 1:
                thought = "I followed the advice but do not see the mistake yet."
                query = f"I read {what} as you said. What is wrong there?"
            else:
                seen = yield from self._reproduce()
                thought = "I know the place now, but not how it should behave."
                query = f"I looked at {what} and at the part you named. {seen} How should it behave exactly?"
            yield from self._ask(thought, query)

    def _clear(self) -> bool:
        """Whether every change is described in the advice; words that are not the oracle's are never taken to be."""
        return bool(self.advice) and all(wording.told(c) in self.advice for c in self.changes[:4])

    def _ask(self, thought: str, report: str) -> Script:
        title = self.instance.problem_statement.strip().splitlines()[0].lstrip("# ")[:120]
        query = f"The issue: {title}. {report}" if not self.queries else report
        self.queries += 1
        reply = yield say(thought, "ask_expert", query=query)
        for _ in range(MAX_SILENCES):
            if NO_ANSWER not in reply:
                break
            seen = yield from self._on_its_own()
            thought = self._pick(
                "No answer came, and I still need one. I ask again.", "The expert was silent; I ask once more."
            )
            reply = yield say(thought, "ask_expert", query=f"{query} {seen}")
        self.deserted = NO_ANSWER in reply
        self.advice = reply if reply.startswith(EXPERT_OPEN) and not self.deserted else ""

    def _on_its_own(self) -> Generator[str, str, str]:
        """What is done while nobody answers; nothing in it rests on advice that did not come."""
        if self.rng.random() < 0.5:
            return (yield from self._reproduce())
        return f"Meanwhile I searched {(yield from self._wander(1))}."

    def _wrong_edit(self, change: Change) -> Generator[str, str, str]:
        old = next((line for line in (change.before[::-1] + change.after) if len(line.strip()) > 12), "")
        path = f"{WORKDIR}/{change.path}"
        if not old:
            return "a line nearby"
        observation = yield say(
            "This line looks suspicious; I try a change there.",
            "str_replace_editor",
            command="str_replace",
            path=path,
            old_str=old,
            new_str=f"{old}  # checked" if "#" not in old and not old.rstrip().endswith("\\") else f"{old} ",
        )
        if "has been edited" in observation:
            yield from self._reproduce()
            yield say("That was not it. I take the change back.", "str_replace_editor", command="undo_edit", path=path)
        return f"a line in `{change.path}`"

    def _edit_all(self) -> Generator[str, str, bool]:
        shift, done = 0, True
        for index, change in enumerate(self.changes):
            if index and change.path != self.changes[index - 1].path:
                shift = 0
            if not self._has_seen(change, shift):
                yield from self._view(change.path, wording.start(change) + shift)
            done = (yield from self._edit(change, shift)) and done
            shift += len(wording.added(change)) - len(change.removed)
        return done

    def _edit(self, change: Change, shift: int) -> Generator[str, str, bool]:
        path, added = f"{WORKDIR}/{change.path}", wording.added(change)
        if (told := wording.told(change)) in self.advice:
            # Said again next to the edit: what has to be copied is near, and "change" and "add" are told apart first.
            place = f"change line {change.line}" if change.removed else f"add it after line {change.line - 1}"
            thought = f"{self._pick('Following the expert', 'As the expert said')}, I {place}: {told}."
        elif self.queries:
            thought = self._pick("Following the expert's advice, I change it.", "I do what the expert said.")
        else:
            thought = self._pick("I see the mistake and fix it.", "This is the bug; I correct it.")
        if not change.removed:
            observation = yield say(
                thought,
                "str_replace_editor",
                command="insert",
                path=path,
                insert_line=str(change.line - 1 + shift),
                new_str="\n".join(added),
            )
            return "has been edited" in observation
        for context in range(7):
            before = change.before[len(change.before) - context :] if context else []
            after = change.after[: max(context, 0 if added else 1)]
            observation = yield say(
                thought,
                "str_replace_editor",
                command="str_replace",
                path=path,
                old_str="\n".join([*before, *change.removed, *after]),
                new_str="\n".join([*before, *added, *after]),
            )
            if "Multiple occurrences" not in observation:
                return "has been edited" in observation
            thought = "That text is there more than once; I give more context."
        return False

    def _check(self, edited: bool) -> Script:
        code = snippet(self.instance.problem_statement)
        said = "" if edited else "The edit did not go through as I wanted. "
        if code and self.rng.random() < 0.7:
            yield say(f"{said}Now I run the example again.", "bash", command=f"python - <<'EOF'\n{code}\nEOF")
        observation = yield say(self._pick("I run the tests.", "Let me check the tests."), "bash", command=_TESTS)
        report = f"The tests say: {last_line(observation)}."
        if self.queries:
            report = f"The expert's advice led to `{self.changes[0].path}`; I made the change. {report}"
        yield say(f"{report} I submit.", "submit")

    def _entity(self, change: Change) -> str:
        entity = str((self.instance.model_extra or {}).get("entity") or "")
        return (entity if change is self.changes[0] and entity else enclosing_function(change)).rsplit(".", 1)[-1]

    def _pick(self, *options: str) -> str:
        return self.rng.choice(options)


_TESTS = "python -m pytest -q 2>&1 | tail -n 3"
_STOP = frozenset(
    "about after again because before being could expected instead issue python should there these thing while "
    "would which returns return value result called calling import".split()
)
