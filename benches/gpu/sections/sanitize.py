"""compute-sanitizer over our kernels: a child without torch's CUDA (driver.Mirrored), so that only ours are watched."""

import subprocess
import sys
from pathlib import Path
from shutil import which

import cases
from sections import correct

STEPS = [(60, 200, 1000, 16)]


def run(report, options, left, hopper):
    tool = which("compute-sanitizer") or next((p for p in ("/usr/local/cuda/bin/compute-sanitizer",) if Path(p).is_file()), None)
    if tool is None:
        report.note("there is no compute-sanitizer here")
        return
    runs = [("memcheck", "mirrored"), ("racecheck", "mirrored")] + ([("memcheck", "mirrored_hopper")] if hopper else [])
    for group, child in runs:
        seconds = left() - 3
        if seconds < 10:
            report.note(f"{group} {child}: no time left")
            continue
        command = [tool, "--tool", group, "--error-exitcode", "9", "--print-limit", "5", sys.executable, options.script, "--child", child,
                   "--carried", options.carried, "--out", options.out]
        def go():
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
            except subprocess.TimeoutExpired:
                report.note(f"{group} {child}: stopped after {seconds:.0f} s")
                return [f"not finished in {seconds:.0f} s"]
            print(done.stdout[-3000:], done.stderr[-1500:], sep="\n", flush=True)
            said = [line for line in done.stdout.splitlines() if line.startswith("=========") and "Error" in line or "hazard" in line]
            return [] if done.returncode == 0 else [f"exit {done.returncode}", *said[:4]]
        report.attempt(f"{group} of {child}", group, go)


def mirrored(e, report, hopper):
    """What the sanitizer watches."""
    if hopper:
        for shape in cases.SANITIZED:
            correct.encode_checks(e, report, "encode_hopper", "sanitized", shape, 0)
        return
    correct.run(e, report, cases.SANITIZED, [], ["merge", "certified", "encode_ampere"])
    for shape in STEPS:
        for precision in ("f32", "bf16"):
            correct.gradient_checks(e, report, shape, 0, precision, group="sanitized")
        correct.aux_checks(e, report, shape, 0, "bf16")
