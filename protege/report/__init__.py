"""Metrics with confidence intervals, Markdown, and one self-contained HTML page.

Entry points: :func:`protege.report.metrics.evaluate_metrics` (numbers), :func:`protege.report.page.write_report`
(everything). Nothing is imported here, so that each is loaded alone.
"""
