"""Several processes that train one model (`accelerate launch`): who is first, and what has to be done together.

Everything is a no-op in a process that nobody launched so.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def processes() -> int:
    """How many processes train together; `accelerate launch` tells each by its environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    if processes() > 1:
        _state().wait_for_everyone()


def first_then_others(do: Callable[[], T]) -> T:
    """What ``do`` returns; the first process does it before the others, who find what it left."""
    if processes() == 1:
        return do()
    with _state().main_process_first():
        return do()


def gathered(trainer: Any) -> dict[str, Any] | None:
    """The whole weights of a model that is shared out among the processes (FSDP); None where each holds all of it.

    To be called by all of them.
    """
    if not trainer.is_fsdp_enabled:
        return None
    return dict(trainer.accelerator.get_state_dict(trainer.model))


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())
