"""Times on the GPU: medians by events, inputs in rotation, nothing timed cold. Without a GPU everything runs once, so that a self-check
walks the same paths; those times mean nothing."""

import time

import torch


def median(runs, seconds=0.4, least=7, most=100):
    """Milliseconds of one of `runs`, functions without arguments that take turns. (median, first and last decile) of repetitions."""
    if not torch.cuda.is_available():
        begin = time.perf_counter()
        for run in runs:
            run()
        return (1e3 * (time.perf_counter() - begin) / len(runs),) * 3
    for run in runs:
        run()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    runs[0]()
    end.record()
    torch.cuda.synchronize()
    count = int(min(max(1000 * seconds / max(begin.elapsed_time(end), 1e-3), least), most))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for i, (begin, end) in enumerate(events):
        begin.record()
        runs[i % len(runs)]()
        end.record()
    torch.cuda.synchronize()
    times = sorted(b.elapsed_time(e) for b, e in events)
    return times[count // 2], times[count // 10], times[-1 - count // 10]


def peak(work):
    """(bytes above what was allocated before, the result) of `work()`, by torch's allocator."""
    if not torch.cuda.is_available():
        return 0, work()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, result


def settle():
    """Waits, and gives freed memory back."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
