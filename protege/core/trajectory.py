"""What a rollout leaves behind: one JSON file each, written atomically, complete enough to re-score.

Vocabulary: a *trajectory* is one rollout of one instance; a *turn* is one assistant message with at
most one tool call and the observation that answered it; ``tokens`` is the exact token sequence when the
policy was a served model (docs/architecture.md, rule 5).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from protege.files import digest, write_atomic

ExitStatus = Literal[
    "submitted",
    "step_limit",
    "context_limit",
    "time_limit",
    "malformed_limit",
    "infrastructure",
]
"""How a rollout ended. All but ``infrastructure`` are the agent's own outcomes and are graded."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Message(_Record):
    """One chat message of the linear history."""

    role: Literal["system", "user", "assistant"]
    content: str


class ToolCall(_Record):
    """A parsed call: the tool's name and its arguments, all strings as the model wrote them."""

    name: str
    arguments: dict[str, str] = Field(default_factory=dict)


class Turn(_Record):
    """One step. ``call`` is None when the message held no well-formed call; ``observation`` then says why."""

    index: int
    message: str
    call: ToolCall | None
    observation: str
    malformed: bool = False
    exit_code: int | None = None
    timed_out: bool = False
    truncated_chars: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"
    model_seconds: float = 0.0
    tool_seconds: float = 0.0


class ExpertCall(_Record):
    """One ``ask_expert`` exchange. ``warrant`` and ``follow`` (both in [0, 1]) are the hidden judge's scores.

    ``answered`` is False when the quota refused the call. ``overlap_chars`` is the longest verbatim
    overlap of the reply with a changed line of the gold patch (leak audit).
    """

    turn: int
    query: str
    reply: str
    answered: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    overlap_chars: int = 0
    warrant: float | None = None
    follow: float | None = None


class Tokens(_Record):
    """The exact sequence, all three lists of equal length T.

    ``mask[t]`` is 1 where the policy sampled token t, 0 where the environment put it; ``logprobs[t]`` is
    the server's log-probability of a sampled token and 0.0 elsewhere. ``prompt_length`` is the number of
    leading tokens (system prompt and problem statement) before the first sampled one.
    """

    ids: list[int]
    mask: list[int]
    logprobs: list[float]
    prompt_length: int


class Failure(_Record):
    """An infrastructure failure, attributed to one boundary (errors.py)."""

    boundary: Literal["sandbox", "expert", "model_server", "input"]
    error: str
    message: str
    attempts: int = 1


class Identity(_Record):
    """Who acted: a policy or an expert. ``sees_gold`` marks an oracle."""

    name: str
    digest: str
    kind: str
    sees_gold: bool = False


class Verdict(_Record):
    """What grading said about one patch. Counts are of test ids; ``log_tail`` is the end of the test log.

    ``dropped`` names the paths of the patch that grading left out (harness/filtering.py). ``evidence`` says what a
    "resolved" rests on: "record" (the tests' own signed record agrees with the log) or "log" (the log alone,
    where the tests are not pytest's); "refuted" is a "resolved" that was taken back, ``reason`` says why.
    """

    instance_id: str
    instance_digest: str
    patch_digest: str
    resolved: bool
    applied: bool
    empty_patch: bool = False
    fail_to_pass: tuple[int, int] = (0, 0)
    pass_to_pass: tuple[int, int] = (0, 0)
    failed_tests: list[str] = Field(default_factory=list)
    reason: str = ""
    dropped: list[str] = Field(default_factory=list)
    evidence: str = ""
    log_tail: str = ""
    backend: str = ""
    image_digest: str = ""
    seconds: float = 0.0


class Trajectory(_Record):
    """One rollout, complete. See the module docstring for the vocabulary."""

    trajectory_id: str
    instance_id: str
    instance_digest: str
    repo: str
    policy: Identity
    expert: Identity | None
    seed: int
    messages: list[Message]
    turns: list[Turn]
    expert_calls: list[ExpertCall] = Field(default_factory=list)
    exit_status: ExitStatus
    failure: Failure | None = None
    patch: str = ""
    tokens: Tokens | None = None
    sandbox_backend: str = ""
    image_digest: str = ""
    started_at: str = ""
    seconds: float = 0.0
    plan: str = ""
    verdict: Verdict | None = None

    @property
    def completion_tokens(self) -> int:
        """Tokens that the policy generated."""
        return sum(turn.completion_tokens for turn in self.turns)

    @property
    def expert_tokens(self) -> int:
        """Tokens that the expert generated."""
        return sum(call.completion_tokens for call in self.expert_calls)

    @property
    def resolved(self) -> bool:
        return self.verdict is not None and self.verdict.resolved

    def save(self, folder: Path | str) -> Path:
        return write_atomic(Path(folder) / f"{self.trajectory_id}.json", self.model_dump_json(indent=1))

    @classmethod
    def load(cls, path: Path | str) -> Trajectory:
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))


def load_trajectories(folder: Path | str) -> list[Trajectory]:
    """All trajectories in ``folder``, sorted by file name."""
    return [Trajectory.load(path) for path in sorted(Path(folder).glob("*.json"))]


def patch_digest(patch: str) -> str:
    return digest("patch", patch)
