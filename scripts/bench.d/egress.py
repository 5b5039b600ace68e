"""The claim lines of the egress benches: criterion's results below a directory, and what the benches have printed, on stdin.

Criterion times batches of calls, so its samples have no p99 of single calls; where a p99 is claimed, the bench takes it itself.
"""
import json
import os
import re
import sys
import time
from pathlib import Path

# what is shown; criterion's directory; the claim
SAMPLES = [
    ("check, a host's name, 1 rule", "egress_check_host_1", ""),
    ("the same, 1,000 rules", "egress_check_host_1000", ""),
    ("the same, 10,000 rules", "egress_check_host_10000", ""),
    ("check, an address, 1,000 rules", "egress_check_address_1000", ""),
    ("compile 1,000 rules", "egress_compile_1000", ""),
    ("Cedar decides, 10 policies, 10 entities", "authz_cedar_10_policies_10_entities", ""),
    ("Cedar decides, 1,000 policies, 10 entities", "authz_cedar_1000_policies_10_entities", ""),
    ("authz, decided before", "authz_known", ""),
]
CHECK = re.compile(r"^egress/check/one_by_one/1000: p50 (\S+), p99 (\S+), p99\.9 (\S+)$", re.M)
DNS = re.compile(r"^egress/dns/over_udp/(\S+): p50 (\S+), p99 (\S+) \(.*\), p99\.9 (\S+)$", re.M)
THROUGHPUT = re.compile(r"^\d: direct (\S+) GB/s, gate (\S+) GB/s: +(\d+) %, tinyproxy (\S+) GB/s$", re.M)
CONNECTS = re.compile(r"^\d: connect to first byte: direct p50 (\S+) p99 (\S+), gate p50 (\S+) p99 (\S+), tinyproxy p50 (\S+) p99 (\S+)$", re.M)
KERNEL = re.compile(r"^\d: no fence (\S+) GB/s, allowed by address (\S+) GB/s: +(\d+) %$", re.M)
FENCE = re.compile(r"^((?:attach|detach|round trip)[^:]*): p50 (\S+) p99 (\S+)$", re.M)
FENCE_CLAIMS = {"attach, the last hundred of 500": "p99 ≤ 10 ms", "round trip beside 500": "as beside 1"}


def samples(root: Path, bench: str) -> list[float]:
    """Nanoseconds per call, ascending."""
    try:
        measured = json.loads((root / bench / "new/sample.json").read_text())
    except OSError as error:
        sys.exit(f"error: no result of {bench}: {error}")
    return sorted(t / n for t, n in zip(measured["times"], measured["iters"]))


def cell(ns: float) -> str:
    return f"{ns:,.0f} ns" if ns < 1e4 else f"{ns / 1e3:,.0f} µs"


def printed(pattern: re.Pattern, text: str, what: str) -> list[tuple]:
    found = pattern.findall(text)
    if not found:
        sys.exit(f"error: the benches have printed no line about {what}")
    return found


def main() -> None:
    root, text = Path(sys.argv[1]), sys.stdin.read()
    print(f"Date {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}.\n")
    print(f"- cpus: {os.cpu_count()}\n- kernel: {os.uname().release}\n- load at the end: {os.getloadavg()[0]:.2f} (1 minute)\n")
    print("| | claim | fastest sample | median | slowest |\n|---|---|---|---|---|")
    for what, bench, claim in SAMPLES:
        all_ = samples(root, bench)
        print(f"| {what} | {claim} | {' | '.join(cell(ns) for ns in (all_[0], all_[len(all_) // 2], all_[-1]))} |")
    print("\n| check, single calls, 1,000 rules | claim | p50 | p99 | p99.9 |\n|---|---|---|---|---|")
    for shares in printed(CHECK, text, "single checks"):
        print(f"| all kinds of flows | p99 ≤ 10 µs | {' | '.join(shares)} |")
    print("\n| DNS, question to answer over UDP | claim | p50 | p99 | p99.9 |\n|---|---|---|---|---|")
    for what, *shares in printed(DNS, text, "DNS"):
        print(f"| {what.replace('_', ' ')} | p99 ≤ 1 ms | {' | '.join(shares)} |")
    print("\n| the gate, each round | claim | direct | gate | | tinyproxy, CONNECT |\n|---|---|---|---|---|---|")
    for direct, gate, share, proxy in printed(THROUGHPUT, text, "throughput"):
        print(f"| throughput | ≥ 60 % of direct | {direct} GB/s | {gate} GB/s | {share} % | {proxy} GB/s |")
    for direct50, direct99, gate50, gate99, proxy50, proxy99 in printed(CONNECTS, text, "connects"):
        print(f"| connect to first byte, p50, p99 | adds ≤ 1 ms p99 | {direct50}, {direct99} | {gate50}, {gate99} | | {proxy50}, {proxy99} |")
    print("\n| through the kernel alone, each round | claim | no fence | allowed by address | |\n|---|---|---|---|---|")
    for without, with_, share in printed(KERNEL, text, "the kernel's throughput"):
        print(f"| throughput, veth to veth | ≥ 95 % of no fence | {without} GB/s | {with_} GB/s | {share} % |")
    print("\n| the fence | claim | p50 | p99 |\n|---|---|---|---|")
    for what, p50, p99 in printed(FENCE, text, "the fence"):
        print(f"| {what} | {FENCE_CLAIMS.get(what, '')} | {p50} | {p99} |")


main()
