"""Look at a trajectory: as one self-contained HTML page, in the terminal, or as JSON.

Entry points: :func:`protege.report.inspect.model.view` (what is shown), :func:`protege.report.inspect.pages.write_pages`
(pages and their index), :class:`protege.report.inspect.terminal.Printer`.
"""
