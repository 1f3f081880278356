"""What differs between two runs of the same command, taken out of the output that the agent is shown.

Transcripts, training data and what a policy says of its tests hold this text, so two clones get equal trajectories and
equal datasets. Grading reads the raw log. Placeholders stand in brackets, so that nobody takes them for a measurement.
"""

from __future__ import annotations

import re

_COUNTED = (
    r"(?:\b\d+ (?:passed|failed|errors?|skipped|deselected|xfailed|xpassed|warnings?|rerun)"
    r"|\bno tests (?:ran|collected)|\btests? collected|\(\d+ deselected\))"
)
_CLOCK = r"(?: \((?:\d+ days?, )?\d+:\d\d:\d\d\))?"
_DEATHS = r"Aborted|Alarm clock|Bus error|Floating point exception|Hangup|Illegal instruction|Killed|Segmentation fault|Terminated"

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.MULTILINE), shown)
    for pattern, shown in (
        # pytest: "3 passed in 1.08s", "in 65.32s (0:01:05)", "in 0.12 seconds"; "1.08s call tests/test_x.py::test_y"
        (rf"({_COUNTED} in )\d+\.\d+ ?s(?:econds)?\b{_CLOCK}", r"\1[time]"),
        (r"^\d+\.\d\ds( (?:call|setup|teardown) +\S)", r"[time]\1"),
        # unittest, bash's time, time -p
        (r"^(Ran \d+ tests? in )\d+\.\d+s$", r"\1[time]"),
        (r"^((?:real|user|sys)[\t ]+)(?:\d+m\d+[.,]\d+s|\d+\.\d\d)$", r"\1[time]"),
        # hypothesis: "this test took 312.15ms, which exceeded the deadline of 200.00ms"
        (r"(\b(?:[Tt]est|subsequent run it) took )\d+\.\d+ ?ms\b", r"\1[time]"),
        # a repr's or faulthandler's address, a mock's id
        (r"(\b(?:at|[Tt]hread) 0x)[0-9a-fA-F]{6,16}\b", r"\1[address]"),
        (r"(<\w*Mock\b[^<>\n]* id=')\d{6,}(?='>)", r"\1[address]"),
        # "bash: line 1:    17 Segmentation fault", "This process (pid=17) is multi-threaded"
        (rf"^(\S*bash: line \d+: +)\d+( (?:{_DEATHS})\b)", r"\1[pid]\2"),
        (r"(\(pid[= ])\d+(?=\))", r"\1[pid]"),
        # where a sandbox of bubblewrap lies on its host, and its name
        (r"(/protege-)\d+(/sandbox-)\w{8}\b", r"\1[user]\2[name]"),
        (r"^(PROTEGE_SANDBOX=)\S+$", r"\1[name]"),
    )
)
_TEMPORARY = re.compile(
    r"(?<![\w/])((?:/var)?/tmp/)(?:(tmp)[a-z0-9_]{8}|(tmp\.)[A-Za-z0-9]{10}|(pytest-of-\w+/pytest-)\d+)\b"
)
_BAR = re.compile(r"^=+ (.*\[time\]) =+$", re.MULTILINE)
_WIDTH = 80


def normalised(output: str, said: str = "") -> str:
    """``output`` of a command with durations, addresses, process ids and the names of temporary files replaced.

    Only what is beyond doubt: a number counts as a duration in the phrases of pytest, unittest and ``time``. A
    temporary path stays where the agent needs it: alone on a line (mktemp's answer), or part of what the agent has
    ``said`` so far.

    >>> normalised("..\\n2 passed, 1 warning in 1.08s")
    '..\\n2 passed, 1 warning in [time]'
    >>> normalised("Ran 3 tests in 0.012s\\n\\nOK")
    'Ran 3 tests in [time]\\n\\nOK'
    >>> normalised("<core.Item object at 0x7f3a5c0b2d90>, delay = 0.25s, mask = 0x7f3a5c0b2d90")
    '<core.Item object at 0x[address]>, delay = 0.25s, mask = 0x7f3a5c0b2d90'
    >>> normalised("No such file or directory: '/tmp/tmpk3v_9x1a/x.json'")
    "No such file or directory: '/tmp/tmp[name]/x.json'"
    >>> normalised("/tmp/tmp.Xk3v9A1b2C"), normalised("cat: /tmp/tmp.Xk3v9A1b2C/x", said="cat /tmp/tmp.Xk3v9A1b2C/x")
    ('/tmp/tmp.Xk3v9A1b2C', 'cat: /tmp/tmp.Xk3v9A1b2C/x')
    """
    for pattern, shown in _RULES:
        output = pattern.sub(shown, output)
    # pytest fills the line of its summary with "=", as many as the duration leaves room for
    output = _BAR.sub(lambda bar: f" {bar[1]} ".center(_WIDTH, "="), output)

    def unnamed(found: re.Match[str]) -> str:
        path, line_start, line_end = found[0], found.start() - 1, found.end()
        alone = output[max(line_start, 0) : found.start()] in ("", "\n") and output[line_end : line_end + 1] in (
            "",
            "\n",
        )
        if alone or path in said:
            return path
        return f"{found[1]}{found[2] or found[3] or found[4]}{'[n]' if found[4] else '[name]'}"

    return _TEMPORARY.sub(unnamed, output)
