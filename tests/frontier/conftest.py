from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from protege.agent.tools import render_call
from protege.core.trajectory import Identity, ToolCall
from protege.policy.served import ServedPolicy


def call(tool: str, **arguments: str) -> str:
    return f"A thought.\n\n{render_call(ToolCall(name=tool, arguments=arguments))}"


class Recited(ServedPolicy):
    """A served policy whose samples are given texts, the last one for ever: its sessions keep real token records."""

    def __init__(self, folder: Path, *texts: str, context_tokens: int = 8192) -> None:
        who = Identity(name="recited", digest="0", kind="served")
        super().__init__("http://127.0.0.1:9", folder, who, context_tokens=context_tokens)
        self.texts = itertools.chain(texts, itertools.repeat(texts[-1]))
        self.sent: list[list[int]] = []

    def complete(self, ids: list[int], max_tokens: int, seed: int) -> tuple[list[int], list[float], str]:
        self.sent.append(list(ids))
        sampled = self.format.assistant_ids(next(self.texts))[:max_tokens]
        return sampled, [-0.5] * len(sampled), "stop" if len(sampled) < max_tokens else "length"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from protege.policy.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")
