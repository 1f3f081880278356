"""Every error this project raises, and the boundary each belongs to, on one page.

A failure is attributed to exactly one boundary (docs/inspect.md shows where each surfaces):

* ``agent``        the model's own doing. Never raised: it is an observation or an exit status.
* ``sandbox``      container, daemon, disk, runner.           Retried, then masked.
* ``expert``       the expert or judge endpoint.              Retried, then masked.
* ``model_server`` the vLLM server that holds the policy.     Retried, then masked.
* ``input``        rows, params, models that we were given.   Never retried: the user must act.

"Masked" means: left out of an RL group and counted apart in a report; never reward 0, never
silently dropped from a denominator.
"""

from __future__ import annotations

from typing import Literal

Boundary = Literal["sandbox", "expert", "model_server", "input"]


class ProtegeError(Exception):
    """Base of all our errors. ``boundary`` says whose failure it is, ``retryable`` whether a retry can help."""

    boundary: Boundary = "input"
    retryable: bool = False


class SandboxError(ProtegeError):
    """The sandbox itself failed (never: a command in it exited non-zero)."""

    boundary: Boundary = "sandbox"
    retryable = True


class SandboxUnavailable(SandboxError):
    """No engine for the requested backend on this machine. A retry does not help."""

    retryable = False


class SandboxDied(SandboxError):
    """The container or process tree vanished in the middle of a rollout or a grade."""


class SandboxOutOfMemory(SandboxDied):
    """The kernel killed the sandbox at its memory limit."""


class GradingError(SandboxError):
    """The harness could not come to a verdict for a reason that is not the patch's. ``log_tail``: the end of the test log."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class ExpertError(ProtegeError):
    """The expert (or judge) gave no usable reply after its own retries."""

    boundary: Boundary = "expert"
    retryable = True


class ExpertRefused(ExpertError):
    """The endpoint refuses the request itself: wrong key, unknown model, a request it cannot take. A retry does not
    help. ``bad_request`` is True for 400 and 422, ``too_long`` where the context length is said to be exceeded; what
    would be refused to every request (key, model, credit) is at the boundary ``input`` and stops the stage."""

    retryable = False
    bad_request: bool = False
    too_long: bool = False


class BudgetExhausted(ExpertError):
    """The next call could pass a budget of section ``api``, so it was not made. A retry does not help. An instance's
    budget masks that instance's work; the run's is at the boundary ``input`` and stops the stage, which goes on from
    its finished units when the budget is raised."""

    retryable = False


class ModelServerError(ProtegeError):
    """The model server is down, answered with an error, or broke the token-exact contract."""

    boundary: Boundary = "model_server"
    retryable = True


class TrainingFailed(ProtegeError):
    """The processes that trained ended without a model. A retry goes on from the last checkpoint."""

    boundary: Boundary = "sandbox"
    retryable = True


class ContextLimitReached(Exception):
    """The next turn does not fit in the policy's context. Ends the rollout as an agent outcome, so no ProtegeError."""


class BadInput(ProtegeError):
    """Something we were given is wrong. The message says what, where, and what it should be."""


class BadParams(BadInput):
    """A key in params.yaml is missing, unknown or of the wrong kind. The message names the key."""


class BadRow(BadInput):
    """An instance row is unusable. The message names the file, the row and the field."""


class ImageMissing(BadInput):
    """An instance's image is not on this machine. The message names the image and how to get it."""


class StorageError(ProtegeError, OSError):
    """A file of ours cannot be written: disk full, read-only, or a file where a folder belongs. The message names the
    path. At the boundary ``input``, since nothing more could be kept: it stops the stage, and only a person can mend it."""


class ValidationFailed(BadInput):
    """The data expectations are violated. The message names the rows."""
