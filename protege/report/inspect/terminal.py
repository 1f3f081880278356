"""A view in the terminal: plain where the output is no terminal or NO_COLOR is set."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from protege.core.trajectory import Turn
from protege.report.inspect.breakdown import ROMAN
from protege.report.inspect.model import Result, Step, View, arguments, one_line
from protege.report.inspect.pages import Line, failures_first
from protege.report.inspect.text import diff_lines, seconds, signed, visible

OBSERVATION_LINES = 12
_STYLE: dict[Result, str] = {
    "infrastructure": "bold yellow",
    "not graded": "bold yellow",
    "unresolved": "bold red",
    "resolved": "bold green",
}
_DIFF = {"add": "green", "del": "red", "at": "cyan", "file": "bold"}


def console() -> Console:
    """Colours on a terminal only; no markup, so that no text of a trajectory can style itself; no wrapping in a pipe."""
    made = Console(markup=False, highlight=False, emoji=False)
    made.soft_wrap = not made.is_terminal
    return made


def print_lines(lines: Sequence[Line], out: Console) -> None:
    """The index as a table, failures first; in a pipe a line a trajectory, for grep and cut."""
    from rich.table import Table

    names = ("result", "trajectory", "system", "ended by", "steps", "run", "asked", "reason")
    table = Table(*names, box=None, pad_edge=False)
    for r in failures_first(lines):
        run = f"{r.run}{' loop' if r.looped else ''}"
        cells = (r.result, r.trajectory_id, r.system, r.exit_status, str(r.steps), run, str(r.calls), r.reason[:160])
        style = "" if r.result == "resolved" else _STYLE[r.result].removeprefix("bold ")
        table.add_row(*(Text(visible(" ".join(cell.split())), overflow="fold") for cell in cells), style=style)
    if out.is_terminal:
        out.print(table)
        return
    for row in [names, *zip(*(column.cells for column in table.columns), strict=True)]:
        out.file.write("\t".join(map(str, row)) + "\n")


class Printer:
    """Prints views; observations, arguments and logs are cut to some lines unless ``full``."""

    def __init__(self, out: Console, full: bool) -> None:
        self.out, self.full = out, full

    def line(self, text: str = "", style: str = "", indent: int = 0) -> None:
        text = visible(text.replace("\r\n", "\n"))
        self.out.print(Text(textwrap.indent(text, " " * indent, lambda _: True), style=style))

    def block(self, text: str, style: str = "", indent: int = 4, limit: int = OBSERVATION_LINES) -> None:
        lines = text.rstrip("\n").split("\n")
        if self.full:
            self.line("\n".join(lines), style, indent)
            return
        self.line("\n".join(part if len(part) <= 500 else part[:500] + " …" for part in lines[:limit]), style, indent)
        if len(lines) > limit:
            self.line(f"… {len(lines) - limit} more lines (--full shows them)", "dim", indent)

    def title(self, text: str) -> None:
        self.line(f"\n{text.upper()}", "bold")

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        for name, value in facts:
            self.line(f"  {name + ':':<20} {value}")

    def view(self, v: View) -> None:
        t = v.trajectory
        self.line(t.trajectory_id, "bold")
        self.line(v.headline, _STYLE[v.result])
        if v.reason:
            self.line(v.reason)
        for note in v.notes:
            self.line(f"note: {note}", "yellow")
        self.title("Facts")
        self.facts([("Ended by", f"{v.exit_status}, {len(v.steps)} steps, {v.totals.malformed} malformed"), *v.facts])
        self.title("Turns")
        if not v.steps:
            self.line("  none is in the file")
        for number, step in enumerate(v.steps, 1):
            self._step(number, step)
        self.title("The agent's patch")
        self._diff(t.patch) if not v.no_patch else self.line(f"  {v.no_patch}")
        self.title("The gold patch")
        self._diff(v.gold_patch) if v.gold_patch is not None else self.line(f"  not shown: {v.no_gold}")
        self._verdict(v)
        self._reward(v)
        if v.commands:
            self.title("Reproduce this one instance")
            for command in v.commands:
                self.line(f"  {command.does}:")
                self.line(f"    {command.command}", "cyan")

    def _step(self, number: int, step: Step) -> None:
        run, turn, expert = step.run, step.turn, step.expert
        if run.length > 1 and number == run.first + 1:
            looped = ", a loop" if run.loops else ""
            self.line(f"  ┌ {step.base} × {run.length}{looped}", "red" if run.loops else "dim")
        self.line(f"{'  │' if run.length > 1 else '   '} {number}. {' · '.join([step.base, *_marks(turn)])}", "bold")
        if step.thought:
            self.block(step.thought)
        elif turn.call is None:
            self.line("(the message holds no text)", "dim", 4)
        if expert is not None:
            for name, score in (("warrant", expert.warrant), ("follow", expert.follow)):
                self.line(f"{name} {'not scored' if score is None else f'{score:.2f}'}", "magenta", 4)
            self.line("asked:", "magenta", 4)
            self.block(expert.query, "", 6)
            self.line("answer:" if expert.answered else "refused:", "magenta", 4)
            self.block(expert.reply, "magenta", 6, 40)
            return
        if turn.call is not None and turn.call.name != "submit":
            if not self.full:
                self.line(f"{turn.call.name}: {one_line(turn.call)}", "cyan", 4)
            for key, value in arguments(turn.call) if self.full else ():
                self.line(f"{turn.call.name} {key}:", "cyan", 4)
                self.block(value, "cyan", 6)
        if turn.observation:
            self.block(turn.observation, "yellow" if turn.malformed else "dim")

    def _diff(self, patch: str) -> None:
        for css, text in diff_lines(patch):
            self.line(text, _DIFF.get(css, ""), 2)

    def _verdict(self, v: View) -> None:
        self.title("Verdict")
        failure, verdict = v.trajectory.failure, v.trajectory.verdict
        if failure is not None:
            self.facts([("Boundary", failure.boundary.replace("_", " "))])
            self.facts([("Error", f"{failure.error} ({failure.attempts} attempts)")])
            self.block(failure.message)
        if verdict is None:
            self.line("  there is none")
            return
        self.facts(v.verdict_facts)
        for name in verdict.failed_tests:
            self.line(f"does not pass: {name}", "red", 4)
        if verdict.log_tail and not verdict.resolved:
            self.line("the end of the test log:", "", 2)
            lines = verdict.log_tail.rstrip("\n").split("\n")
            self.block("\n".join(lines if self.full else lines[-20:]), "dim", 4, 20)

    def _reward(self, v: View) -> None:
        self.title("Reward")
        b = v.breakdown
        if b is None:
            self.line(f"  {v.no_breakdown}")
            return
        self.line(f"  stage {ROMAN[b.stage]} ({b.why_stage}), with {b.params_from}")
        for item in b.items:
            adds = "" if item.adds is None else signed(item.adds)
            self.line(f"  {'  ' * item.part + item.name:<16}{signed(item.value):>7}{adds:>9}  {item.how}")
        self.line(f"  {'total':<23}{signed(b.reward.total):>9}", "bold")
        if b.logged is not None:
            self.line(f"  logged when it was made: {b.logged:.3f}")


def _marks(turn: Turn) -> list[str]:
    """What the head of a turn says beside its command."""
    marks = [f"{turn.completion_tokens} tokens", f"model {seconds(turn.model_seconds)}"]
    marks += [f"tool {seconds(turn.tool_seconds)}"]
    marks += [f"exit {turn.exit_code}"] if turn.exit_code else []
    marks += ["timed out"] if turn.timed_out else []
    return marks + (["prefilled"] if turn.finish_reason == "forced" else [])
