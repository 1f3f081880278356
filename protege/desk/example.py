"""The runnable example of a problem statement, and what it printed."""

from __future__ import annotations

import ast
import re


def last_line(observation: str) -> str:
    """The last line that says something, at most 160 characters; "nothing" for an empty observation."""
    lines = [line.strip() for line in observation.strip().splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("(exit code")] or ["nothing"]
    return lines[-1].strip("= ")[:160]


def snippet(problem: str) -> str:
    """The runnable example of a problem statement: its first fenced block, or its ``>>>`` lines."""
    if match := re.search(r"```(?:python|py|pycon)?\n(.*?)```", problem, re.DOTALL):
        block = match.group(1)
    else:
        block = problem
    prompt = [line.strip()[4:] for line in block.splitlines() if line.strip().startswith((">>> ", "... "))]
    code = "\n".join(prompt) if prompt else block.strip("\n") if match else ""
    return _printing(code) if code and "EOF" not in code else ""


def _printing(code: str) -> str:
    """``code`` with its last expression printed; "" for text that does not parse."""
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return ""
    last = body[-1] if body else None
    if not isinstance(last, ast.Expr) or (isinstance(last.value, ast.Call) and ast.unparse(last.value.func) == "print"):
        return code
    lines = code.split("\n")
    head = lines[: last.lineno - 1]
    return "\n".join([*head, f"print({ast.unparse(last.value)})"])
