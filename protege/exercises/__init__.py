"""Edit exercises: advice in words, the code it is about, and the edit that carries it out.

Whole trajectories are dear: each needs a bug that tests prove (docs/log.md: 130 in half an hour) and two thousand
tokens, of which some fifty are the edit. An exercise is only the part from the advice to the edit, of a bug that
nothing has to prove, because its fix is known. Several stand in one conversation (docs/design/0006-desk-experiment.md).
"""
