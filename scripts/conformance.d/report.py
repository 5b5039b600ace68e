#!/usr/bin/env python3
"""Judges the logs of scripts/conformance: what passed, what did not, and whether that is explained.

usage: report.py [--again] EXPLAINED OUT RUNTIME… -- TEST…

Reads OUT/RUNTIME/TEST.log and EXPLAINED, whose lines are `RUNTIME[?][,RUNTIME[?]…] TEST[/SUBTEST] REASON`. A failed test
is explained if each of its failures is: a line for the whole test covers all of them, a line for a subtest only that
one. Prints the table, writes it to OUT/table.txt and everything to OUT/result.json, sorted. Ends with 1 if on creto a
test failed or was skipped without a reason, or one passed that EXPLAINED says cannot (`?`: may). With --again it only
names the failures without a reason, for a second run; OUT/RUNTIME/TEST.first.log is then the first one's.
"""
import json, os, re, sys

ENDED = re.compile(r"^ *--- (PASS|FAIL|SKIP): (\S+) \(([\d.]+)s\)")
# What Go's test runner prints when the time is up: the tests that were under way, deepest last.
HUNG = re.compile(r"^\s+(Test\S+) \([\d.hms]+\)$")


def read(log, test):
    """The test's verdict and seconds, and the names of the failures and of what passed, subtests in place of their test."""
    ended, hung, timed_out = {}, [], False
    for line in log:
        if match := ENDED.match(line):
            ended[match[2]] = match[1], float(match[3])
        elif "panic: test timed out" in line:
            timed_out = True
        elif timed_out and (match := HUNG.match(line)):
            hung.append(match[1])
    verdict, seconds = ended.get(test, ("FAIL", None))
    failed = {name for name, (end, _) in ended.items() if end == "FAIL"} | set(hung)
    if verdict == "FAIL":
        failed.add(test)
    failed = {name for name in failed if not any(other.startswith(name + "/") for other in failed)}
    passed = {name for name, (end, _) in ended.items() if end == "PASS"}
    return {"verdict": verdict.lower(), "seconds": seconds, "failed": sorted(failed)}, passed


def explanations(path):
    """(runtime, test or subtest) → reason, and which of them pass by chance."""
    reasons, by_chance = {}, set()
    with open(path) as file:
        for line in file:
            if not line.strip() or line.startswith("#"):
                continue
            runtimes, name, reason = line.strip().split(" ", 2)
            for runtime in runtimes.split(","):
                key = runtime.removesuffix("?"), name
                reasons[key] = reason
                if runtime.endswith("?"):
                    by_chance.add(key)
    return reasons, by_chance


def main(args):
    again = args[0] == "--again"
    explained, out, *rest = args[1:] if again else args
    runtimes, tests = rest[: rest.index("--")], sorted(rest[rest.index("--") + 1 :])
    reasons, by_chance = explanations(explained)
    results, wrong = {runtime: {} for runtime in runtimes}, []
    for runtime in runtimes:
        for test in tests:
            with open(os.path.join(out, runtime, test + ".log"), errors="replace") as log:
                result, passed = read(log, test)
            result["runs"] = 1 + os.path.exists(os.path.join(out, runtime, test + ".first.log"))
            because = {}
            for name in result["failed"] or ([test] if result["verdict"] == "skip" else []):
                because[name] = reasons.get((runtime, name)) or reasons.get((runtime, test))
                if because[name] is None:
                    wrong.append((runtime, f"{name}: {result['verdict']}, unexplained"))
            for name in sorted(passed):
                if (runtime, name) in reasons and (runtime, name) not in by_chance:
                    wrong.append((runtime, f"{name}: passed, though {os.path.basename(explained)} says why it cannot"))
            if again and result["verdict"] == "fail" and None in because.values():
                print(runtime, test)
            results[runtime][test] = {**result, "because": because}
    if again:
        return 0

    lines = ["%-38s" % "test" + "".join(" %-5s" % runtime for runtime in runtimes) + " why"]
    for test in tests:
        row = [results[runtime][test] for runtime in runtimes]
        if any(result["verdict"] != "pass" or result["runs"] > 1 for result in row):
            whys = {}
            for runtime, result in zip(runtimes, row):
                if result["verdict"] == "pass" and result["runs"] > 1:
                    whys.setdefault(("", "failed once, passed alone"), []).append(runtime)
                for name, reason in result["because"].items():
                    whys.setdefault((name[len(test) :], reason or "UNEXPLAINED"), []).append(runtime)
            for first, ((subtest, reason), by) in enumerate(whys.items()):
                head = "%-38s" % test + "".join(" %-5s" % result["verdict"] for result in row)
                lines.append((head if first == 0 else " " * len(head)) + f" {'+'.join(by)}: {subtest + ': ' if subtest else ''}{reason}")
    for runtime in runtimes:
        count = lambda verdict: sum(result["verdict"] == verdict for result in results[runtime].values())
        unexplained = sum(None in result["because"].values() for result in results[runtime].values())
        lines.append(f"{runtime}: {count('pass')} passed, {count('fail')} failed, {count('skip')} skipped, of {len(tests)}; {unexplained} unexplained")
    print("", *lines, sep="\n")
    with open(os.path.join(out, "table.txt"), "w") as file:
        print(*lines, sep="\n", file=file)
    with open(os.path.join(out, "result.json"), "w") as file:
        json.dump(results, file, indent=1, sort_keys=True)
        file.write("\n")
    for runtime, what in wrong:
        print(f"{'error' if runtime == 'creto' else 'note'}: {runtime}: {what}; log: {out}/{runtime}/{what.split('/')[0].split(':')[0]}.log", file=sys.stderr)
    return int(any(runtime == "creto" for runtime, _ in wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
