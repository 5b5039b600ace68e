"""The claim lines of the trust benches, from what criterion has measured: target/criterion/*/new/sample.json.

Criterion times batches of calls; a sample is a batch's mean. So there is no p99 of single calls here.
"""
import json
import os
import sys
import time
from pathlib import Path

US = 1e3  # nanoseconds

# what is shown; criterion's name; calls to records per second instead of time, if not None; the claim
ROWS = [
    ("sign: statement, signature, envelope as JSON", "attestation_sign", None, "≤ 100 µs"),
    ("the same, reading keyring and key from disk", "attestation_read_key_and_sign", None, ""),
    ("verify, 1 trusted key", "attestation_verify_1_keys", None, "≤ 200 µs"),
    ("verify, 100 trusted keys", "attestation_verify_100_keys", None, "≤ 200 µs"),
    ("spool append, 1 event: what the caller waits", "audit_spool_append_1", None, "reported"),
    ("spool append, 4 events in one call", "audit_spool_append_4", None, "reported"),
    ("spool append until it is on the disk (fsync)", "audit_spool_append_and_sync_1", None, "reported"),
    ("drain 2,000 records into an empty ledger", "audit_ledger_drain_2000/0", 2000, "≥ 5,000/s"),
    ("drain 2,000 records into a ledger of 10,000", "audit_ledger_drain_2000/10000", 2000, "≥ 5,000/s"),
    ("drain 2,000 records into a ledger of 50,000", "audit_ledger_drain_2000/50000", 2000, "≥ 5,000/s"),
]
# What a create waits for of the above: two signatures (token, statement), two appends (made, started).
CREATE = {"attestation_read_key_and_sign": 2, "audit_spool_append_4": 1, "audit_spool_append_1": 1}


def samples(root: Path, bench: str) -> list[float]:
    """Nanoseconds per call, ascending. Grouped benches have a directory each, others one of the joined name."""
    found = [p for p in root.rglob("new/sample.json") if name(root, p) == bench.replace("/", "_")]
    if len(found) != 1:
        sys.exit(f"error: {len(found)} results of {bench} below {root}: remove the directory and run again")
    measured = json.loads(found[0].read_text())
    return sorted(t / n for t, n in zip(measured["times"], measured["iters"]))


def name(root: Path, sample: Path) -> str:
    return "_".join(sample.relative_to(root).parts[:-2])


def median(ascending: list[float]) -> float:
    return ascending[len(ascending) // 2]


def cell(ns: float, records: int | None) -> str:
    if records:
        return f"{records / ns * 1e9:,.0f}/s"
    return f"{ns / US:,.0f} µs"


def cpu() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} × {models[0].split(':')[1].strip() if models else os.uname().machine}"


def main() -> None:
    root, envelope = Path(sys.argv[1]), sys.argv[2]
    print(f"Date {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}.\n")
    print(f"- cpu: {cpu()}\n- kernel: {os.uname().release}\n- load at the end: {os.getloadavg()[0]:.2f} (1 minute)\n")
    print("| | claim | fastest sample | median | slowest | samples |\n|---|---|---|---|---|---|")
    for text, bench, records, claim in ROWS:
        all_ = samples(root, bench)
        shown = " | ".join(cell(ns, records) for ns in (all_[0], median(all_), all_[-1]))
        print(f"| {text} | {claim} | {shown} | {len(all_)} |")
    print(f"| envelope | ≤ 4,096 bytes | {int(envelope):,} bytes | | | |")
    share = [sum(times * pick(samples(root, bench)) for bench, times in CREATE.items())
             for pick in (min, median, max)]
    print(f"| a create's share: 2 signatures, 2 appends | ≤ 5 ms | {' | '.join(cell(ns, None) for ns in share)} | |")


main()
