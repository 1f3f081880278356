"""The one place that turns chat messages into token ids, so that training and sampling see the same ids.

The format is derived from the tokenizer's own chat template by rendering marked conversations and cutting them
at the marks. It must be *linear*: adding a message never changes what came before. ChatML templates are
(SmolLM2, Qwen2.5); a template that is not is refused.

Two rules make a rollout token-exact (docs/architecture.md, rule 5):

* An assistant turn starts after the template's assistant header and is tokenised by itself, as it is sampled.
* Text that the environment or a user wrote is never read as control tokens: an observation that holds
  ``<|im_end|>`` becomes the ordinary characters ``<``, ``|``, ``im`` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protege.core.trajectory import Message
from protege.errors import BadInput

_MARK = "XxMARK{}xX"


@dataclass(frozen=True)
class Rendered:
    """A conversation as ids (length T); ``mask[t]`` is 1 on assistant text and its end-of-turn token, else 0."""

    ids: list[int]
    mask: list[int]


@dataclass(frozen=True)
class _Gap:
    """The template's text between two contents: glued to the left one, control tokens, glued to the right one."""

    left: str
    ids: tuple[int, ...]
    right: str


class ChatFormat:
    """Renders messages to ids, incrementally. Safe to share between threads.

    Raises:
        BadInput: the tokenizer has no chat template, or one that is not linear; the message says what failed.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise BadInput(f"the tokenizer of {tokenizer.name_or_path} has no chat template; use an instruct model")
        self.tokenizer = tokenizer
        self.name = str(tokenizer.name_or_path)
        # Own copies: switching special-token handling on a shared Rust tokenizer is not thread-safe.
        self._control = _copy(tokenizer, literal=False)
        self._literal = _copy(tokenizer, literal=True)
        self._special = sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._gaps = self._derive()
        close = self._gaps["assistant", "user"]
        if close.left or not close.ids:
            raise BadInput(f"{self.name}: the chat template puts no control token right after an assistant message")
        self.end_of_turn: int = close.ids[0]
        end_text = tokenizer.convert_ids_to_tokens(self.end_of_turn)
        if self.end_of_turn in self.encode(end_text):
            raise BadInput(
                f"{self.name}: text that holds {end_text!r} would be read as a control token; mark it special"
            )
        self._check()

    @classmethod
    def from_folder(cls, folder: Path | str) -> ChatFormat:
        """Of the tokenizer saved in ``folder``."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(folder), local_files_only=True))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; control tokens spelled in it stay text."""
        return list(self._literal.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens spelled out, no white-space clean-up."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def prefix_ids(self, messages: Sequence[Message]) -> list[int]:
        """The opening: system and user messages, and the header of the first assistant turn."""
        if not messages or any(message.role == "assistant" for message in messages):
            raise BadInput("a conversation opens with at least one message, none of them the assistant's")
        return self._run("start", messages)

    def observation_ids(self, messages: Sequence[Message]) -> list[int]:
        """What goes between an assistant turn's end-of-turn token and the next assistant turn, header included."""
        if not messages or any(message.role != "user" for message in messages):
            raise BadInput("an assistant turn is answered by at least one user message")
        return self._run("assistant", messages)

    def assistant_ids(self, text: str) -> list[int]:
        """An assistant turn as the model would have to sample it: its text and the end-of-turn token."""
        return [*self.encode(text), self.end_of_turn]

    def render(self, messages: Sequence[Message] | Sequence[Mapping[str, str]]) -> Rendered:
        """A whole conversation that ends with an assistant message (for SFT)."""
        turns = [m if isinstance(m, Message) else Message(role=m["role"], content=m["content"]) for m in messages]
        if not turns or turns[-1].role != "assistant":
            raise BadInput("a training conversation ends with an assistant message")
        ids: list[int] = []
        mask: list[int] = []
        pending: list[Message] = []
        for turn in turns:
            if turn.role != "assistant":
                pending.append(turn)
                continue
            context = self.observation_ids(pending) if ids else self.prefix_ids(pending)
            said = self.assistant_ids(turn.content)
            ids += [*context, *said]
            mask += [0] * len(context) + [1] * len(said)
            pending = []
        return Rendered(ids, mask)

    def _run(self, before: str, messages: Sequence[Message]) -> list[int]:
        ids: list[int] = []
        text = ""
        for index, message in enumerate([*messages, None]):
            role = "assistant" if message is None else message.role
            gap = self._gaps.get((before, role))
            if gap is None:
                raise BadInput(f"{self.name}: the chat template does not allow a {role} message after {before}")
            if not (index == 0 and before == "assistant"):
                ids += self.encode(text + gap.left) if text + gap.left else []
                ids += gap.ids
            else:
                ids += gap.ids[1:]
            text = gap.right + (message.content if message else "")
            before = role
        return ids + self.encode(text)

    def _template(self, roles: Sequence[str], generate: bool = False) -> str:
        messages = [{"role": role, "content": _MARK.format(index)} for index, role in enumerate(roles)]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    def _cut(self, roles: Sequence[str], generate: bool = False) -> list[str]:
        text, parts = self._template(roles, generate), []
        for index in range(len(roles)):
            head, found, text = text.partition(_MARK.format(index))
            if not found:
                raise BadInput(f"{self.name}: the chat template drops or reorders messages ({'/'.join(roles)})")
            parts.append(head)
        return [*parts, text]

    def _derive(self) -> dict[tuple[str, str], _Gap]:
        full = self._cut(["system", "user", "assistant", "user", "assistant", "user"], generate=True)
        opening = self._cut(["system", "user"], generate=True)
        if (
            full[2] != opening[2]
            or full[4] != full[2]
            or full[6] != full[2]
            or full[3] != full[5]
            or full[:2] != opening[:2]
        ):
            raise BadInput(
                f"{self.name}: the chat template is not linear (an earlier turn is rendered differently once later "
                "turns follow); token-exact rollouts need a ChatML-like template"
            )
        texts = {
            ("start", "system"): full[0],
            ("system", "user"): full[1],
            ("user", "assistant"): full[2],
            ("assistant", "user"): full[3],
        }
        # Some templates refuse these; then they are refused only when they are met.
        for key, roles, index in ((("start", "user"), ["user"], 0), (("user", "user"), ["system", "user", "user"], 2)):
            try:
                texts[key] = self._cut(roles, generate=True)[index]
            except Exception:
                continue
        return {key: self._gap(text) for key, text in texts.items()}

    def _gap(self, text: str) -> _Gap:
        spots = [(text.find(token), token) for token in self._special if token in text]
        if not spots:
            raise BadInput(
                f"{self.name}: the chat template separates messages by plain text, which content could imitate"
            )
        first = min(spot for spot, _ in spots)
        last = max(text.rfind(token) + len(token) for _, token in spots)
        return _Gap(
            text[:first], tuple(self._control.encode(text[first:last], add_special_tokens=False).ids), text[last:]
        )

    def _check(self) -> None:
        """Incremental ids equal the template's own for a conversation with code, blank lines and other scripts."""
        messages = [
            Message(role="system", content="Be brief.\n\nTwo rules: 1. test 22, 2. submit."),
            Message(role="user", content="  indented\n\n\tdef f(x):\n        return x  # é 中\n"),
            Message(role="assistant", content="I look.\n<function=bash>\nls -la\n</function>"),
            Message(role="user", content="\n\n  total 0\n"),
            Message(role="assistant", content="Done."),
        ]
        wanted = self.tokenizer.apply_chat_template(
            [message.model_dump() for message in messages], tokenize=True, return_dict=False
        )
        got = self.render(messages).ids
        if list(wanted)[: len(got)] != got:
            raise BadInput(f"{self.name}: rendering step by step and rendering at once give different token ids")


def _copy(tokenizer: Any, *, literal: bool) -> Any:
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BadInput(f"{tokenizer.name_or_path} has no fast tokenizer (tokenizer.json); one is needed")
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = literal
    return copy
