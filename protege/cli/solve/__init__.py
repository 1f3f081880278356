"""``protege solve``: the trained protégé on a user's own repository, in a sandbox, ending with a patch file."""

from protege.cli.solve.params import SolveParams
from protege.cli.solve.run import Solution, solve
from protege.cli.solve.serve import ServedModel

__all__ = ["ServedModel", "Solution", "SolveParams", "solve"]
