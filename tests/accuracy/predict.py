"""`python tests/accuracy/predict.py memory|speed ROWS.csv OUT.csv`: the product's predictions for published rows.

ROWS.csv has the columns of the published measurements with the measured ones emptied; OUT.csv gets one line a row: its
id, the predicted figures, or empty cells and a reason.
"""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    if len(arguments) != 3 or arguments[0] not in ("memory", "speed"):
        print("usage: predict.py memory|speed ROWS.csv OUT.csv", file=sys.stderr)
        return 2
    kind, source, target = arguments
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.insert(0, root)
    module = importlib.import_module(f"tests.accuracy.{kind}_rows")
    try:
        with Path(source).open(newline="", encoding="utf-8") as stream:
            rows = [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(stream)]
        with Path(target).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fieldnames=module.COLUMNS, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(module.predict(rows))
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
