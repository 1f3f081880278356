"""A rule decides when the expert is asked, in place of the model: baselines for what the model learned about asking.

The rule speaks between two of the model's own steps: it puts a question into the model's mouth, in the form of the
model's own questions, made of nothing but what the agent saw. These tokens carry mask 0. The model's own questions
are refused, so that the rule alone decides; the refusal costs the model its step, as it does where no expert is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from protege.agent.tools import OBSERVATION_PREFIX, Malformed, parse_call, render_call
from protege.config import STRATEGIES, System
from protege.core.instance import Instance
from protege.core.loops import base_command
from protege.core.markers import defuse
from protege.core.trajectory import Identity, Message, Tokens, ToolCall
from protege.errors import BadParams, ContextLimitReached
from protege.files import digest
from protege.identity import code_of
from protege.policy.base import Completion, Policy, Session

REFUSAL = "The expert does not take your questions now. Go on by yourself."
TITLE_CHARS = 120
COMMAND_CHARS = 160
OBSERVATION_CHARS = 160


class SayingSession(Session, Protocol):
    """A session into which an assistant message can be put (served.py)."""

    def say(self, message: str, new_messages: Sequence[Message]) -> Completion: ...


@dataclass(frozen=True)
class Step:
    """One of the model's own steps as it stands in the history; ``call`` is None for a malformed message."""

    call: ToolCall | None
    observation: str


Rule = Callable[[Sequence[Step], random.Random], bool]
"""Whether to ask now, given the own steps since the last question (at least one) and a generator for this turn."""


def rule(system: System) -> Rule:
    """The rule of a system of :data:`STRATEGIES`."""
    if system.kind == "random":
        return lambda steps, rng: rng.random() < system.value
    if system.kind == "every":
        return lambda steps, rng: len(steps) >= system.value
    if system.kind == "loop":
        return lambda steps, rng: looping(steps, int(system.value))
    if system.kind == "always":
        return lambda steps, rng: True
    raise ValueError(f"{system.kind} is not one of {', '.join(STRATEGIES)}")


def looping(steps: Sequence[Step], length: int) -> bool:
    """The last ``length`` steps are one run (loops.py), or the last two are the same call word for word."""
    if len(steps) >= 2 and steps[-1].call is not None and steps[-1].call == steps[-2].call:
        return True
    last = [base_command(s.call.name if s.call else None, s.call.arguments if s.call else {}) for s in steps[-length:]]
    return len(last) == length and len(set(last)) == 1


class AskingPolicy:
    """``policy`` under the rule of ``system``; at most ``quota`` questions a rollout.

    Raises:
        BadParams: at ``start``, when the policy's sessions cannot be made to say something.
    """

    def __init__(self, policy: Policy, system: System, quota: int) -> None:
        self.policy, self.system, self.quota = policy, system, quota
        self.rule = rule(system)
        self.identity = Identity(
            name=f"{policy.identity.name}, asks {system.label}",
            digest=digest(policy.identity.digest, system.name, quota, code_of("protege.frontier.asking")),
            kind=policy.identity.kind,
        )

    def start(self, instance: Instance, seed: int) -> AskingSession:
        session = self.policy.start(instance, seed)
        if not hasattr(session, "say"):
            raise BadParams(f"a rule cannot ask in the place of {self.policy.identity.name}: it needs a served model")
        return AskingSession(session, self.rule, self.quota, seed)  # type: ignore[arg-type]


class AskingSession:
    """One rollout under a rule. Knows the messages of the rollout and nothing else of the instance."""

    def __init__(self, session: SayingSession, rule: Rule, quota: int, seed: int) -> None:
        self._session, self._rule, self._quota, self._seed = session, rule, quota, seed
        self._title = ""
        self._turn = self._asked = 0
        self._since: list[Step] = []  # own steps since the last question
        self._open: Completion | None = None  # the last message, when it was the model's own

    def step(self, new_messages: Sequence[Message]) -> Completion:
        if not self._turn:
            self._title = title(new_messages)
        steps = self._since
        if self._open is not None:
            steps = [*steps, Step(_call(self._open.text), _observation(new_messages))]
            if self._asked < self._quota and self._rule(steps, self._rng()):
                try:
                    asked = self._session.say(question(self._title, steps[-1]), new_messages)
                except ContextLimitReached:
                    pass  # a question that no longer fits is not asked; perhaps a last step does
                else:
                    self._commit([], None)
                    self._asked += 1
                    return asked
        own = self._session.step(new_messages)
        self._commit(steps, own)
        return replace(own, refusal=REFUSAL)

    def tokens(self) -> Tokens | None:
        return self._session.tokens()

    def _commit(self, steps: list[Step], own: Completion | None) -> None:
        self._since, self._open = steps, own
        self._turn += 1

    def _rng(self) -> random.Random:
        return random.Random(digest("asking", self._seed, self._turn))


def question(title: str, last: Step) -> str:
    """The forced message: the issue's title, the last command, and the last line that it printed.

    >>> print(question("f(1) gives 2", Step(ToolCall(name="bash", arguments={"command": "ls"}), "a.py")))
    I am stuck.
    <BLANKLINE>
    <function=ask_expert>
    <parameter=query>The issue: f(1) gives 2. My last command was: ls. It showed: a.py. What should I do next?</parameter>
    </function>
    """
    query = (
        f"The issue: {_line(title, TITLE_CHARS).rstrip('.')}. {_what(last.call)} "
        f"It showed: {_line(_last_line(last.observation), OBSERVATION_CHARS).rstrip('.')}. What should I do next?"
    )
    return f"I am stuck.\n\n{render_call(ToolCall(name='ask_expert', arguments={'query': query}))}"


def title(opening: Sequence[Message]) -> str:
    """First line of the issue, from the rollout's opening messages (prompts/instance.md)."""
    user = next((m.content for m in reversed(opening) if m.role == "user"), "")
    _, _, issue = user.partition("\n\n")
    return next((line.lstrip("# ") for line in (issue or user).splitlines() if line.strip("# ")), "")


def _what(call: ToolCall | None) -> str:
    if call is None:
        return "My last message held no well-formed call."
    if call.name == "bash":
        return f"My last command was: {_line(call.arguments['command'], COMMAND_CHARS)}."
    words = [call.name, *(call.arguments[key] for key in ("command", "path") if key in call.arguments)]
    return f"My last step was: {_line(' '.join(words), COMMAND_CHARS)}."


def _line(text: str, limit: int) -> str:
    """One line of at most ``limit`` characters that can neither close the call it stands in nor speak as the expert."""
    # A space in a tag's place keeps what stood around it from joining into another tag.
    return " ".join(defuse(_TAG.sub(" ", text)).split())[:limit]


_TAG = re.compile(r"</?(?:function|parameter)\b[^>]*>?")


def _last_line(observation: str) -> str:
    lines = [line for line in observation.splitlines() if line.strip() and not line.startswith("(exit code")]
    return lines[-1] if lines else "nothing"


def _call(message: str) -> ToolCall | None:
    try:
        return parse_call(message)
    except Malformed:
        return None


def _observation(new_messages: Sequence[Message]) -> str:
    return "\n".join(m.content for m in new_messages).removeprefix(OBSERVATION_PREFIX)
