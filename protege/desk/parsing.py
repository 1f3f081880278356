"""``ast.parse`` for threads.

CPython 3.11 keeps the recursion depth of the AST constructor per interpreter, not per thread: when the garbage
collector hands the interpreter to another thread that parses too, ``SystemError: AST constructor recursion depth
mismatch`` follows. Met in practice; one lock around every parse of this package avoids it.
"""

from __future__ import annotations

import ast
import threading

lock = threading.RLock()


def parse(text: str) -> ast.Module:
    with lock:
        return ast.parse(text)
