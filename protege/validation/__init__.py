"""Great Expectations over a flattened table of the trajectories, and the SFT dataset as Parquet.

Entry point: :func:`protege.validation.validate`. A violation raises
:class:`protege.errors.ValidationFailed` after Data Docs and ``result.json`` were written.
"""

from protege.config import ValidateParams
from protege.validation.run import ValidationResult, token_counter, validate
from protege.validation.table import conversation, flatten, is_kept

__all__ = [
    "ValidateParams",
    "ValidationResult",
    "conversation",
    "flatten",
    "is_kept",
    "token_counter",
    "validate",
]
