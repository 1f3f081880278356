"""A view in the terminal: plain where the output is no terminal or NO_COLOR is set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from protege.report.inspect.model import ORDER, Result, Step, View, arguments
from protege.report.inspect.page import Line, diff_lines, one_line, seconds, signed
from protege.report.inspect.reckoning import ROMAN
from protege.report.inspect.text import visible

if TYPE_CHECKING:
    from rich.console import Console

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
    from rich.console import Console

    made = Console(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.soft_wrap = True
    return made


def print_view(view: View, out: Console, full: bool = False) -> None:
    """The whole view; observations, arguments and logs are cut to some lines unless ``full``."""
    _Printer(out, full).view(view)


def print_lines(lines: Sequence[Line], out: Console) -> None:
    """The index as a table, failures first."""
    from rich.table import Table

    ordered = sorted(lines, key=lambda r: (ORDER.index(r.result), r.instance_id, r.system, r.trajectory_id))
    names = ("result", "trajectory", "system", "ended by", "steps", "run", "asked", "reason")
    rows = [
        [
            visible(" ".join(cell.split()))
            for cell in (
                r.result,
                r.trajectory_id,
                r.system,
                r.exit_status,
                str(r.steps),
                f"{r.run}{' loop' if r.looped else ''}",
                str(r.calls),
                r.reason[:160],
            )
        ]
        for r in ordered
    ]
    if not out.is_terminal:  # one line a trajectory, for grep and cut
        for row in [list(names), *rows]:
            out.file.write("\t".join(row) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", justify="right" if name in ("steps", "asked") else "left")
    for r, row in zip(ordered, rows, strict=True):
        table.add_row(*row, style=_STYLE[r.result].replace("bold ", "") if r.result != "resolved" else "")
    out.print(table)


class _Printer:
    def __init__(self, out: Console, full: bool) -> None:
        self.out, self.full = out, full

    def line(self, text: str = "", style: str = "", indent: int = 0) -> None:
        from rich.text import Text

        for part in visible(text.replace("\r\n", "\n")).split("\n"):
            self.out.print(Text(" " * indent + part, style=style))

    def block(self, text: str, style: str = "", indent: int = 4, limit: int = OBSERVATION_LINES) -> None:
        lines = text.rstrip("\n").split("\n")
        kept = lines if self.full or len(lines) <= limit else lines[:limit]
        for part in kept:
            self.line(part if self.full or len(part) <= 500 else part[:500] + " …", style, indent)
        if len(kept) < len(lines):
            self.line(f"… {len(lines) - len(kept)} more lines (--full shows them)", "dim", indent)

    def title(self, text: str) -> None:
        self.line()
        self.line(text.upper(), "bold")

    def fact(self, name: str, value: str) -> None:
        self.line(f"  {name + ':':<16}{value}")

    def view(self, v: View) -> None:
        self.line(v.trajectory_id, "bold")
        self.line(v.headline, _STYLE[v.result])
        if v.reason:
            self.line(v.reason)
        for note in v.notes:
            self.line(f"note: {note}", "yellow")
        self._facts(v)
        self._turns(v)
        self._patches(v)
        self._verdict(v)
        self._reward(v)
        if v.commands:
            self.title("Reproduce this one instance")
            for command in v.commands:
                self.line(f"  {command.does}:")
                self.line(f"    {command.command}", "cyan")

    def _facts(self, v: View) -> None:
        self.title("Facts")
        t = v.totals
        self.fact("instance", v.instance_id)
        self.fact("policy", _who(v.policy))
        self.fact("expert", _who(v.expert) if v.expert else "none")
        self.fact("ended by", f"{v.exit_status}, {len(v.steps)} steps, {t.malformed} malformed")
        self.fact("longest run", f"{v.longest_run}{' (looped)' if v.looped else ''}")
        scores = "".join(
            f", {name} {value:.2f}"
            for name, value in (("warrant", t.warrant), ("follow", t.follow))
            if value is not None
        )
        self.fact("expert calls", f"{t.asked} answered, {t.refused} refused{scores}")
        self.fact("time", f"{seconds(v.seconds)}: model {seconds(t.model_seconds)}, tools {seconds(t.tool_seconds)}")
        self.fact(
            "tokens", f"{t.completion_tokens} generated, longest prompt {t.prompt_tokens}, expert {t.expert_tokens}"
        )
        self.fact("sandbox", f"{v.sandbox_backend or 'unknown'}, image {v.image_digest or 'unknown'}")
        if v.source:
            self.fact("file", v.source)

    def _turns(self, v: View) -> None:
        self.title("Turns")
        if not v.steps:
            self.line("  none is in the file")
        for number, step in enumerate(v.steps, 1):
            if step.run.length > 1 and number == step.run.first + 1:
                text = f"  ┌ {step.base} × {step.run.length}{', a loop' if step.run.loops else ''}"
                self.line(text, "red" if step.run.loops else "dim")
            self._turn(number, step)

    def _turn(self, number: int, step: Step) -> None:
        turn = step.turn
        marks = [step.base, f"{turn.completion_tokens} tokens"]
        marks += [f"model {seconds(turn.model_seconds)}", f"tool {seconds(turn.tool_seconds)}"]
        marks += [f"exit {turn.exit_code}"] if turn.exit_code else []
        marks += ["timed out"] if turn.timed_out else []
        marks += ["put into the policy's mouth"] if turn.finish_reason == "forced" else []
        self.line(f"{'  │' if step.run.length > 1 else '   '} {number}. {' · '.join(marks)}", "bold")
        if step.thought:
            self.block(step.thought)
        elif turn.call is None:
            self.line("(the message holds no text)", "dim", 4)
        if step.expert is not None:
            for name, score in (("warrant", step.expert.warrant), ("follow", step.expert.follow)):
                self.line(f"{name} {'not scored' if score is None else f'{score:.2f}'}", "magenta", 4)
            self.line("asked:", "magenta", 4)
            self.block(step.expert.query, "", 6)
            self.line("answer:" if step.expert.answered else "refused:", "magenta", 4)
            self.block(step.expert.reply, "magenta", 6, 40)
            return
        if turn.call is not None and turn.call.name != "submit":
            if self.full:
                for key, value in arguments(turn.call):
                    self.line(f"{turn.call.name} {key}:", "cyan", 4)
                    self.block(value, "cyan", 6)
            else:
                self.line(f"{turn.call.name}: {one_line(turn.call)}", "cyan", 4)
        if turn.observation:
            self.block(turn.observation, "yellow" if turn.malformed else "dim")

    def _patches(self, v: View) -> None:
        self.title("The agent's patch")
        self._diff(v.patch) if v.patch.strip() else self.line(
            "  none: the rollout did not end" if v.failure and not v.steps else "  empty: the agent changed nothing"
        )
        self.title("The gold patch")
        self._diff(v.gold_patch) if v.gold_patch is not None else self.line(f"  not shown: {v.no_gold}")

    def _diff(self, patch: str) -> None:
        for css, text in diff_lines(patch):
            self.line(text, _DIFF.get(css, ""), 2)

    def _verdict(self, v: View) -> None:
        self.title("Verdict")
        if v.failure is not None:
            self.fact("boundary", v.failure.boundary.replace("_", " "))
            self.fact("error", f"{v.failure.error} ({v.failure.attempts} attempts)")
            self.block(v.failure.message)
        if v.verdict is None:
            self.line("  there is none")
            return
        self.fact("resolved", "yes" if v.verdict.resolved else "no")
        self.fact("FAIL_TO_PASS", f"{v.verdict.fail_to_pass[0]} of {v.verdict.fail_to_pass[1]} pass")
        self.fact("PASS_TO_PASS", f"{v.verdict.pass_to_pass[0]} of {v.verdict.pass_to_pass[1]} pass")
        for name in v.verdict.failed_tests:
            self.line(f"does not pass: {name}", "red", 4)
        if v.verdict.log_tail and not v.verdict.resolved:
            self.line("the end of the test log:", "", 2)
            lines = v.verdict.log_tail.rstrip("\n").split("\n")
            self.block("\n".join(lines if self.full else lines[-20:]), "dim", 4, 20)

    def _reward(self, v: View) -> None:
        self.title("Reward")
        if v.reckoning is None:
            self.line(f"  {v.no_reckoning}")
            return
        r = v.reckoning
        self.line(f"  stage {ROMAN[r.stage]} ({r.why_stage}), with {r.params_from}")
        for item in r.items:
            adds = "" if item.adds is None else f"{signed(item.adds):>7}"
            self.line(
                f"  {'  ' if item.part else ''}{item.name:<{14 if item.part else 16}}{signed(item.value):>7}{adds:>9}  {item.how}"
            )
        self.line(f"  {'total':<23}{signed(r.reward.total):>9}", "bold")
        if r.logged is not None:
            self.line(f"  logged when it was made: {r.logged:.3f}")


def _who(identity: object) -> str:
    from protege.core.trajectory import Identity

    assert isinstance(identity, Identity)
    gold = ", has seen the gold patch" if identity.sees_gold else ""
    return f"{identity.name} ({identity.kind}, {identity.digest[:16]}{gold})"
