"""``python -m protege.cli.doctor``: the doctor where not even the command line's own packages are installed."""

from __future__ import annotations

import sys

from protege.cli.doctor import as_json, as_text, examine

if __name__ == "__main__":
    findings = examine()
    print(as_json(findings) if "--json" in sys.argv[1:] else as_text(findings))
    sys.exit(any(finding.status == "fail" for finding in findings))
