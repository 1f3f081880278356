"""Metrics with confidence intervals, Markdown, and one self-contained HTML page.

Entry points: :func:`evaluate_metrics` (numbers) and :func:`write_report` (everything).
"""

from protege.config import ReportParams
from protege.report.metrics import evaluate_metrics
from protege.report.page import write_report

__all__ = ["ReportParams", "evaluate_metrics", "write_report"]
