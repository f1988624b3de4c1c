"""Writes tests/accuracy/held_out.csv.gz: what fits predict for rows whose source, or whose device, they had not seen.

    python -m tests.accuracy.held_out        after `make fit`; takes as long as it

Columns: id; `source_*`: fitted without this device's rows from this source; `device_*`: fitted without the device at
all. `expected` with the low and high ends that the committed intervals give it, in tokens/s.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

PATH = Path(__file__).parent / "held_out.csv.gz"
FIGURES = ("expected", "low", "high")
COLUMNS = ("id", *(f"{group}_{figure}" for group in ("source", "device") for figure in FIGURES))


def main() -> None:
    from provision.catalog import load_catalog
    from provision.sizing.efficiency import efficiency_lookup, interval_groups
    from tests.accuracy import fit

    catalog = load_catalog()
    efficiency = efficiency_lookup(catalog.efficiency, catalog.intervals)
    problem, _, device_out, source_out = fit.fitted(fit.read(fit.MEASUREMENTS), catalog)
    rows = []
    for cell, without_source, without_device in zip(problem.cells, source_out, device_out, strict=True):
        setup, ceiling = cell.case.setup, cell.tokens / cell.case.limit_s()
        figures: list[float] = []
        for predicted, seen in ((without_source, True), (without_device, False)):
            groups = interval_groups(
                setup.shares[0].kernel, seen, devices=setup.devices, partial=setup.partial, sized=setup.sized
            )
            interval = efficiency.interval(cell.case.measure, groups)
            expected = min(float(predicted), ceiling)
            figures += [expected, expected * interval.low_ratio, min(expected * interval.high_ratio, ceiling)]
        rows += [(row["id"], *(f"{figure:.4g}" for figure in figures)) for row in cell.rows]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(rows))
    with PATH.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as stream:
        stream.write(text.getvalue().encode())
    print(f"{len(rows):,} rows written")


if __name__ == "__main__":
    main()
