"""Where a model is served and under which key, from the environment only (docs/architecture.md, rule 9).

| who | address | model | key |
|---|---|---|---|
| expert | PROTEGE_EXPERT_BASE_URL | PROTEGE_EXPERT_MODEL | PROTEGE_EXPERT_API_KEY |
| judge (default: the expert's) | PROTEGE_JUDGE_BASE_URL | PROTEGE_JUDGE_MODEL | PROTEGE_JUDGE_API_KEY |
| teacher, chat policies | PROTEGE_POLICY_BASE_URL | PROTEGE_POLICY_MODEL | PROTEGE_POLICY_API_KEY |

A local server that wants no key takes any word.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from protege.errors import BadParams


@dataclass(frozen=True)
class Endpoint:
    """Holds the *name* of the key's variable, never the key."""

    model: str
    base_url: str | None
    key_variable: str

    @classmethod
    def from_environment(cls, *whose: str, base_url: str | None = None, model: str | None = None) -> Endpoint:
        """The endpoint of the first of ``whose`` ("JUDGE", "EXPERT") of which any variable is set, else of the last.

        Raises:
            BadParams: address, model or key is missing, or the address holds a key.
        """
        parts = ("BASE_URL", "MODEL", "API_KEY")
        who = next((w for w in whose if any(os.environ.get(f"PROTEGE_{w}_{p}") for p in parts)), whose[-1])
        address, name, key = (f"PROTEGE_{who}_{part}" for part in parts)
        given = {address: base_url or os.environ.get(address), name: model or os.environ.get(name)}
        missing = [variable for variable, value in {**given, key: os.environ.get(key)}.items() if not value]
        if missing:
            raise BadParams(
                f"{'an' if whose[0][0] in 'AEIOU' else 'a'} {whose[0].lower()} behind an API needs the environment variable(s) {', '.join(missing)}; set them, "
                "or choose the offline one in params.yaml"
            )
        url = str(given[address])
        try:
            parsed = urlsplit(url)
            valid = parsed.scheme in {"http", "https"} and bool(parsed.hostname)
        except ValueError:
            valid = False
        if not valid:
            raise BadParams(f"{address} is not an http(s) address; it should look like http://host:8000/v1")
        if parsed.username or parsed.password or parsed.query:
            raise BadParams(f"{address} holds more than an address; the key goes to {key} alone")
        return cls(str(given[name]), url, key)

    @property
    def host(self) -> str:
        return urlsplit(self.base_url or "").netloc

    def key(self) -> str:
        """Raises BadParams where the variable is unset."""
        if not (key := os.environ.get(self.key_variable, "")):
            raise BadParams(f"{self.key_variable} is not set in the environment of this process")
        return key

    def without_key(self, text: str) -> str:
        key = os.environ.get(self.key_variable, "")
        return text.replace(key, "***") if len(key) >= 6 else text
