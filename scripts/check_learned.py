"""Ends with status 1 unless a run of the reduced quickstart learned: `python scripts/check_learned.py RUN`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

METRIC = "val/per_task/mean@4"
AT_MOST_FIRST, AT_LEAST_LAST = 0.15, 0.5
"""A guess is right once in sixteen; benchmarks/results/README.md says where ten seeds of the reduced world end."""


def main() -> int:
    """Compare the first and last validation in the run's summary.json with the bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the run's folder")
    options = parser.parse_args()
    values = json.loads((options.run / "summary.json").read_text())["metrics"][METRIC]
    has_learned = values["first"] <= AT_MOST_FIRST and values["last"] >= AT_LEAST_LAST
    verdict = "learned" if has_learned else "did not learn"
    print(
        f"{verdict}: {METRIC} from {values['first']:.3f} (at most {AT_MOST_FIRST}) "
        f"to {values['last']:.3f} (at least {AT_LEAST_LAST})"
    )
    return 0 if has_learned else 1


if __name__ == "__main__":
    sys.exit(main())
