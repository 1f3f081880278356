"""An expert that does not always answer: what a protégé meets where the expert is busy, slow or out of reach."""

from __future__ import annotations

import random
from collections.abc import Sequence

from protege.core.instance import Instance
from protege.core.trajectory import Identity, Message
from protege.expert.base import Expert, ExpertReply
from protege.files import digest
from protege.identity import code_of

NO_ANSWER = "(The expert does not answer.)"


class SilentExpert:
    """``expert``, but each call goes unanswered with probability ``silence``. A call that does still counts as one.

    Which calls is decided by instance and call index alone, so samples of one instance meet the same silences. The
    expert behind counts the calls that reach it: its advice gets no more specific by silence.
    """

    def __init__(self, expert: Expert, silence: float = 0.5) -> None:
        self.expert, self.silence = expert, silence
        behind = expert.identity
        self.identity = Identity(
            name=f"{behind.name}, silent {silence:.0%}",
            digest=digest(behind.digest, silence, code_of("protege.expert.silent")),
            kind=behind.kind,
            sees_gold=behind.sees_gold,
        )

    def silent(self, instance_id: str, call_index: int) -> bool:
        """Whether call ``call_index`` (from 0) goes unanswered."""
        return random.Random(digest("silent", instance_id, call_index)).random() < self.silence

    def reply(self, instance: Instance, query: str, recent: Sequence[Message], call_index: int) -> ExpertReply:
        name = instance.instance_id
        if self.silent(name, call_index):
            return ExpertReply(text=NO_ANSWER)
        heard = sum(not self.silent(name, index) for index in range(call_index))
        return self.expert.reply(instance, query, recent, heard)
