"""The agent loop: (instance, policy, expert, sandbox) -> Trajectory. The one rollout that every stage uses.

One message, one tool call, one observation, until ``submit`` or a limit. The history is linear: nothing
is elided, long observations are cut when they are made, so one trajectory is one token sequence
(docs/method.md, "Rollout"). Infrastructure failures leave as ProtegeError; everything else is data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from protege.agent.tools import (
    OBSERVATION_PREFIX,
    Malformed,
    Outcome,
    Toolbox,
    parse_call,
    truncate,
)
from protege.config import AgentParams, lifetime_problem
from protege.core.instance import Instance
from protege.core.markers import EXPERT_CLOSE, EXPERT_OPEN, as_material, defuse
from protege.core.trajectory import ExitStatus, ExpertCall, Message, ToolCall, Trajectory, Turn
from protege.errors import BadParams, ContextLimitReached
from protege.expert.audit import longest_overlap
from protege.expert.base import Expert
from protege.policy.base import Completion, Policy
from protege.sandbox.base import Sandbox, SandboxProvider

PROMPTS = Path(__file__).parent / "prompts"


def opening(instance: Instance, params: AgentParams) -> list[Message]:
    """The two messages every rollout starts with; of the instance only the problem statement is in them."""
    system = (
        (PROMPTS / "system.md").read_text(encoding="utf-8").strip().replace("{expert_quota}", str(params.expert_quota))
    )
    user = (PROMPTS / "instance.md").read_text(encoding="utf-8").strip()
    return [
        Message(role="system", content=system),
        Message(role="user", content=user.replace("{problem_statement}", defuse(instance.problem_statement.strip()))),
    ]


def roll_out(
    instance: Instance,
    policy: Policy,
    expert: Expert | None,
    provider: SandboxProvider,
    params: AgentParams,
    seed: int,
    *,
    trajectory_id: str,
    command_timeout_s: float = 60.0,
    on_turn: Callable[[Turn], None] | None = None,
) -> Trajectory:
    """Roll out ``policy`` on ``instance`` in a fresh sandbox of ``provider``.

    The patch is the sandbox's own diff, taken after the last turn whatever ended the rollout. Expert calls carry
    no scores yet: a judge gives them afterwards (:func:`protege.expert.judge.judged`).

    Raises:
        SandboxError, ExpertError, ModelServerError: infrastructure, for the caller to retry and then mask.
        BadParams: the provider's sandboxes do not outlive the time limit (:func:`lifetime_problem`).
    """
    lifetime = getattr(getattr(provider, "params", None), "lifetime_s", None)
    if lifetime is not None and (problem := lifetime_problem(params.time_limit_s, lifetime)):
        raise BadParams(problem)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    with provider.open(instance) as sandbox:
        rollout = _Rollout(instance, policy, expert, sandbox, params, seed, command_timeout_s, on_turn)
        status = rollout.run()
        patch = sandbox.diff()
        return Trajectory(
            trajectory_id=trajectory_id,
            instance_id=instance.instance_id,
            instance_digest=instance.digest,
            repo=instance.repo,
            policy=policy.identity,
            expert=expert.identity if expert else None,
            seed=seed,
            messages=rollout.messages,
            turns=rollout.turns,
            expert_calls=rollout.expert_calls,
            exit_status=status,
            patch=patch,
            tokens=rollout.session.tokens(),
            sandbox_backend=sandbox.backend,
            image_digest=sandbox.image_digest,
            started_at=started,
            seconds=round(time.monotonic() - clock, 3),
            plan=getattr(rollout.session, "plan", ""),
        )


class _Rollout:
    """The state of one rollout; ``run`` is the loop."""

    def __init__(
        self,
        instance: Instance,
        policy: Policy,
        expert: Expert | None,
        sandbox: Sandbox,
        params: AgentParams,
        seed: int,
        command_timeout_s: float,
        on_turn: Callable[[Turn], None] | None,
    ) -> None:
        self.instance, self.expert, self.params, self.on_turn = instance, expert, params, on_turn
        self.messages = opening(instance, params)
        self.turns: list[Turn] = []
        self.expert_calls: list[ExpertCall] = []
        self.session = policy.start(instance, seed)
        self.toolbox = Toolbox(sandbox, command_timeout_s)
        self.deadline = time.monotonic() + params.time_limit_s
        self.history = list(self.messages)

    def run(self) -> ExitStatus:
        new = self.messages
        malformed_in_a_row = 0
        while len(self.turns) < self.params.step_limit:
            if time.monotonic() >= self.deadline:
                return "time_limit"
            clock = time.monotonic()
            try:
                completion = self.session.step(new)
            except ContextLimitReached:
                return "context_limit"
            turn = self._act(completion, time.monotonic() - clock)
            self.turns.append(turn)
            if self.on_turn:
                self.on_turn(turn)
            if turn.call and turn.call.name == "submit":
                return "submitted"
            malformed_in_a_row = malformed_in_a_row + 1 if turn.malformed else 0
            if malformed_in_a_row >= self.params.malformed_limit:
                return "malformed_limit"
            new = [Message(role="user", content=OBSERVATION_PREFIX + turn.observation)]
            self.history += [Message(role="assistant", content=turn.message), *new]
        return "step_limit"

    def _act(self, completion: Completion, model_seconds: float) -> Turn:
        clock = time.monotonic()
        call: ToolCall | None = None
        try:
            call = parse_call(completion.text)
        except Malformed as error:
            outcome = Outcome(str(error))
        else:
            outcome = self._carry_out(call, completion)
        by_expert = call is not None and call.name == "ask_expert"
        observation, cut = outcome.observation, 0
        if not by_expert:  # the expert's replies are never elided (docs/method.md)
            observation, cut = truncate(observation, self.params.observation_chars)
            observation = defuse(observation)
        return Turn(
            index=len(self.turns),
            message=completion.text,
            call=call,
            observation=observation,
            malformed=call is None,
            exit_code=outcome.exit_code,
            timed_out=outcome.timed_out,
            truncated_chars=cut,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
            finish_reason=completion.finish_reason,
            model_seconds=round(model_seconds, 3),
            tool_seconds=round(time.monotonic() - clock, 3),
        )

    def _carry_out(self, call: ToolCall, completion: Completion) -> Outcome:
        if call.name == "submit":
            return Outcome("")
        if call.name == "ask_expert":
            return Outcome(self._ask(call.arguments["query"].strip(), completion))
        return self.toolbox.run(call, self.deadline - time.monotonic())

    def _ask(self, query: str, completion: Completion) -> str:
        index = len(self.turns)
        used = sum(c.answered for c in self.expert_calls)
        refusal = ""
        if self.expert is None:
            refusal = "No expert can be reached in this session. Go on by yourself."
        elif completion.refusal:
            refusal = completion.refusal
        elif used >= self.params.expert_quota:
            refusal = f"All {self.params.expert_quota} expert calls are used up. Go on by yourself."
        elif not query:
            refusal = "The query is empty. Say what you tried and what you saw."
        if self.expert is None or refusal:
            self.expert_calls.append(ExpertCall(turn=index, query=query, reply=refusal, answered=False))
            return refusal
        window = [*self.history, Message(role="assistant", content=completion.text)][-self.params.expert_window :]
        recent = [Message(role=m.role, content=as_material(m.content)) for m in window]
        reply = self.expert.reply(self.instance, as_material(query), recent, used)
        self.expert_calls.append(
            ExpertCall(
                turn=index,
                query=query,
                reply=reply.text,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
                seconds=round(reply.seconds, 3),
                cost_usd=reply.cost_usd,
                overlap_chars=longest_overlap(reply.text, self.instance.patch),
            )
        )
        return f"{EXPERT_OPEN}\n{defuse(reply.text.strip())}\n{EXPERT_CLOSE}"
