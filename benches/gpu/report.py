"""What a section finds out, line by line into a file, so that a section that dies keeps what it had."""

import json
import time
from pathlib import Path


class Report:
    def __init__(self, path, section, quiet=False):
        self.file, self.section, self.quiet, self.started = Path(path), section, quiet, time.monotonic()
        self.failed = 0

    def write(self, **line):
        line = {"section": self.section, "at": round(time.monotonic() - self.started, 1), **line}
        with self.file.open("a") as out:
            out.write(json.dumps(line) + "\n")

    def number(self, key, value):
        """A measurement by its key."""
        self.write(key=key, value=value)
        if not self.quiet:
            print(f"  {key} = {value:.4g}" if isinstance(value, float) else f"  {key} = {value}", flush=True)

    def note(self, text):
        self.write(note=text)
        print(f"  note: {text}", flush=True)

    def check(self, name, faults, group, **more):
        """`group`: what stands or falls with it: v1, hopper, certified, ..."""
        self.failed += bool(faults)
        self.write(check=name, group=group, faults=faults[:5], **more)
        if faults or not self.quiet:
            print(f"  {'FAILED' if faults else 'ok'}: {group}: {name}{'' if not faults else ': ' + '; '.join(faults[:3])}", flush=True)

    def attempt(self, name, group, work):
        """`work()` returns faults, or (faults, numbers to keep); an exception is a fault. True unless the device is lost."""
        try:
            found = work()
            faults, more = found if isinstance(found, tuple) else (found, {})
            self.check(name, faults, group, **more)
        except Exception as e:  # whatever it is, the run goes on
            first = (str(e).strip() or repr(e)).splitlines()[0][:300]
            self.check(name, [f"{type(e).__name__}: {first}"], group)
            return not any(w in str(e) for w in ("CUDA error 7", "illegal memory", "launch failure", "misaligned", "unspecified launch"))
        return True


def read(path):
    """(numbers, checks, notes) of a file of lines."""
    numbers, checks, notes = {}, [], []
    if Path(path).is_file():
        for line in Path(path).read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a section that was killed while it wrote
            if "key" in entry:
                numbers[entry["key"]] = entry["value"]
            elif "check" in entry:
                checks.append(entry)
            else:
                notes.append(entry)
    return numbers, checks, notes
