"""What the benchmark client itself costs, and how late it notices tokens: `python tests/benchmarks/bench_client.py`.

Streams of 50 tokens/s each, all ticking together, from the self-test's server in another process. For each number of
users: the client's CPU share of one core, the 99th percentile of its event loop's lag, and the error of TTFT and TPOT.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    from provision.bench.self_test import run_self_test

    print("users  client CPU  lag p99 ms  TTFT error ms  TPOT error ms")
    for users in (1, 8, 16, 32, 64):
        test = run_self_test(users=(users,), tpot_s=0.02)
        errors = {row.figure: row.error_s * 1e3 for row in test.rows}
        lag_ms = "-" if test.client_lag_p99_s is None else f"{test.client_lag_p99_s * 1e3:.1f}"
        cpu = f"{test.client_cpu_ratio:.0%}" if test.client_cpu_ratio is not None else "-"
        print(f"{users:5}  {cpu:>10}  {lag_ms:>10}  {errors['ttft']:13.2f}  {errors['tpot']:13.3f}", flush=True)


if __name__ == "__main__":
    main()
