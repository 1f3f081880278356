"""Sandboxes that leave their diff behind when the work in them is broken off."""

from __future__ import annotations

import contextlib
from typing import Any

from protege.core.instance import Instance
from protege.errors import ProtegeError
from protege.sandbox.base import Sandbox, SandboxProvider


class Keeper:
    """A provider around ``inner``. After a rollout that was broken off, ``partial`` is the diff as it stood;
    ``reason`` says why a diff is empty although something may have changed."""

    def __init__(self, inner: SandboxProvider) -> None:
        self._inner = inner
        self.partial = ""
        self.reason = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, instance: Instance) -> Sandbox:
        return _Kept(self._inner.open(instance), self)  # type: ignore[return-value]


class _Kept:
    def __init__(self, inner: Sandbox, keeper: Keeper) -> None:
        self._inner, self._keeper = inner, keeper

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is not None:
                with contextlib.suppress(ProtegeError):  # the sandbox itself may be what failed
                    self._keeper.partial = self._inner.diff()
            self._keeper.reason = getattr(self._inner, "empty_diff_reason", "")
        finally:
            self._inner.close()
