#!/usr/bin/env python3
"""Everything about the CUDA kernels that only a GPU can say, in one run of at most ten minutes: see README.md.

    python3 benches/gpu/run.py --carried target/gpu --out "$OUT"     on the machine with the GPU
    python  benches/gpu/run.py --plan                                what it would launch; no GPU
    python  benches/gpu/run.py --self-check                          all of it that can run without a GPU
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import declarations  # noqa: E402
import report as reports  # noqa: E402
import targets  # noqa: E402

# Seconds each section may take, start of its process included. Each runs in a process of its own: a kernel that hangs or reads what it must
# not costs its section, not the run.
SECTIONS = {"probe": 30, "correct": 90, "hopper": 60, "sanitize": 60, "rust": 60, "encode": 120, "step": 110, "mem": 45}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = HERE.parents[1]
    parser.add_argument("--carried", default=str(root / "target" / "gpu"), help="what carry.sh made")
    parser.add_argument("--out", default=os.environ.get("OUT", str(root / "target" / "gpu-out")), help="results.jsonl, log.txt, table.txt")
    parser.add_argument("--seconds", type=float, default=560, help="for the whole run")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    parser.add_argument("--trust-hopper", action="store_true", help="time v2 although its section did not run")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--self-check", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--left", type=float, default=60, help=argparse.SUPPRESS)
    parser.add_argument("--hopper", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.script = str(Path(__file__).resolve())
    return options


def child(options):
    """One section, in this process."""
    name, deadline = options.child, time.monotonic() + options.left
    left = lambda: deadline - time.monotonic()
    declared = declarations.load(options.carried)
    fatbin = Path(options.carried) / "kernels.fatbin"
    report = reports.Report(Path(options.out) / "results.jsonl", name)
    if name.startswith("mirrored"):
        from driver import Mirrored
        from sections import sanitize
        sanitize.mirrored(Mirrored(declared, fatbin), report, name.endswith("hopper"))
        return report.failed
    if name == "sanitize":
        from sections import sanitize
        return sanitize.run(report, options, left, options.hopper)
    if name == "rust":
        from sections import rust
        return rust.run(report, options.carried, Path("/tmp") / f"lapidary-{os.getpid()}", left)
    import cases
    from driver import Gpu
    from sections import correct, encode, mem, probe, step
    e = Gpu(declared, fatbin, checked=name in ("correct", "hopper"))
    variants = {}
    for path in sorted(Path(options.carried).glob("hopper_*.cubin")) if e.hopper and name in ("hopper", "encode") else ():
        try:
            variants[path.stem.removeprefix("hopper_")] = e.variant(path)
        except Exception as error:
            report.note(f"{path.name}: {error}")
    steps = [(3, 72, 1000, 16), (600, 200, 5000, 64), (257, 2304, 16384, 64)]
    if name == "probe":
        probe.run(e, report)
    elif name == "correct":
        correct.run(e, report, cases.SHAPES, steps)
    elif name == "hopper":
        if not e.hopper:
            report.note("not a Hopper GPU: the fused encode for it is left out")
        else:
            pieces = {k: v for k, v in variants.items() if k.startswith("bring_up")}
            if len(pieces) < 2:
                report.note("the fused encode is not checked piece by piece: bring-up cubins were not carried")
            correct.run_hopper(e, report, pieces if len(pieces) == 2 else None, cases.SHAPES, steps[1:])
    elif name == "encode":
        encode.run(e, report, options.hopper, variants, options.carried, left)
    elif name == "step":
        step.run(e, report, options.hopper, options.carried, left)
    elif name == "mem":
        mem.run(e, report, options.hopper)
    return report.failed


def verdict_of_hopper(checks, trusted):
    """'', 'yes' or 'pair': which fused encodes of v2 may be timed."""
    good = lambda group: any(c["group"] == group for c in checks) and not any(c["faults"] for c in checks if c["group"] == group)
    return "pair" if good("hopper") and good("hopper_pair") else "yes" if good("hopper") or trusted else ""


def blame(results, section, faults):
    """What a section left unchecked counts as failed."""
    group = {"hopper": "hopper", "correct": "v1", "rust": "rust", "sanitize": "memcheck"}.get(section, "run")
    reports.Report(results, section, quiet=True).check(f"{section} came to its end", faults, group)


def conduct(options):
    begin = time.monotonic()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    results.write_text("")
    told = []
    chosen = [s for s in options.only.split(",") if s]
    unknown = [s for s in chosen if s not in SECTIONS]
    if unknown:
        sys.exit(f"no such section: {unknown}; there are {list(SECTIONS)}")
    with (out / "log.txt").open("w") as log:
        for name in chosen:
            left = min(SECTIONS[name], options.seconds - (time.monotonic() - begin) - 5)
            if left < 15:
                told.append((name, "no time", 0))
                continue
            hopper = verdict_of_hopper(reports.read(results)[1], options.trust_hopper)
            command = [sys.executable, "-u", options.script, "--child", name, "--left", str(left - 5), "--hopper", hopper,
                       "--carried", options.carried, "--out", options.out]
            log.write(f"== {name}\n")
            log.flush()
            print(f"{name} ..", flush=True)
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(left)
                how = "done" if code == 0 else f"exit {code}"
            except subprocess.TimeoutExpired:
                # Its own process group: the section and what it started.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                how = "stopped"
                blame(results, name, [f"stopped after {left:.0f} s"])
            if how.startswith("exit") and not any(c["faults"] for c in reports.read(results)[1] if c["section"] == name):
                # It died without saying why: the log has it.
                last = (out / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
                blame(results, name, [f"{how}: {''.join(last)[:200]}"])
            told.append((name, how, time.monotonic() - started))
    numbers, checks, notes = reports.read(results)
    lines = [f"FAILED {c['group']}: {c['check']}: {c['faults'][0][:160]}" for c in checks if c["faults"]][:12]
    lines += [f"note: {n['note'][:170]}" for n in notes if "note" in n][:8]
    lines += targets.table(numbers, checks, told)
    (out / "table.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 1 if any(c["faults"] for c in checks) else 0


def main():
    options = arguments()
    if options.plan or options.self_check:
        import selfcheck
        return selfcheck.plan(options) if options.plan else selfcheck.run(options)
    if options.child:
        return 1 if child(options) else 0
    return conduct(options)


if __name__ == "__main__":
    sys.exit(main() or 0)
