"""The leak audit stands in the report, from whatever origin the replies are."""

from __future__ import annotations

from pathlib import Path

from protege.config import ReportParams
from protege.core.trajectory import ExpertCall
from protege.report.leaks import leaks
from protege.report.metrics import load_systems
from protege.report.page import write_report
from tests.report.test_report import PROVENANCE, Page, rollout


def calls(*overlaps: int, refused: int | None = None) -> list[ExpertCall]:
    made = [ExpertCall(turn=0, query="?", reply="!", overlap_chars=chars) for chars in overlaps]
    if refused is not None:
        made.append(ExpertCall(turn=0, query="?", reply="no", answered=False, overlap_chars=refused))
    return made


def data(root: Path) -> Path:
    evaluation = root / "evaluation/rl-oracle/trajectories"
    rollout("a", resolved=True, expert_calls=calls(4, 20, 21, refused=99)).save(evaluation)
    rollout("b", resolved=False, expert_calls=calls(40)).save(evaluation)
    rollout("a", resolved=True, asked=0).save(root / "evaluation/rl-none/trajectories")
    rollout("c", resolved=True, expert_calls=calls(7)).save(root / "trajectories/sft")
    rollout("d", resolved=True, expert_calls=calls(33)).save(root / "rl/trajectories")
    return root


def test_every_origin_with_an_answered_call_is_audited(tmp_path: Path) -> None:
    root = data(tmp_path)
    found = {k.label: k for k in leaks(load_systems(root / "evaluation"), root, 20)}
    assert set(found) == {"rl + oracle", "synthesised: sft", "reinforcement learning"}
    system = found["rl + oracle"]
    assert (system.calls, system.median, system.longest, system.above, system.worst) == (4, 20.5, 40, 2, "b.0")
    assert found["synthesised: sft"].above == 0 and found["reinforcement learning"].longest == 33


def test_it_is_on_the_page_and_in_the_markdown(tmp_path: Path) -> None:
    write_report(data(tmp_path), tmp_path / "out", ReportParams(leak_chars=30), PROVENANCE)
    text = (tmp_path / "out/index.html").read_text()
    assert Page(text).open == [] and 'id="leaks"' in text and "than 30" in text
    markdown = (tmp_path / "out/report.md").read_text()
    assert "| rl + oracle | 4 | 20.5 | 40 | 1 (25.0%) | b.0 |" in markdown
    assert "| reinforcement learning | 1 | 33 | 33 | 1 (100.0%) | d.0 |" in markdown


def test_where_nobody_was_asked_there_is_no_audit(tmp_path: Path) -> None:
    rollout("a", resolved=True).save(tmp_path / "evaluation/sft-none/trajectories")
    write_report(tmp_path, tmp_path / "out", ReportParams(), PROVENANCE)
    assert "eak audit" not in (tmp_path / "out/index.html").read_text() + (tmp_path / "out/report.md").read_text()
