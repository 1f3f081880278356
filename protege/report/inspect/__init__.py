"""Look at a trajectory: as one self-contained HTML page, in the terminal, or as JSON.

Entry points: :func:`protege.report.inspect.model.view` (what is shown), :func:`protege.report.inspect.write.write_pages`
(pages and their index), :func:`protege.report.inspect.terminal.print_view`.
"""
