"""What this machine does: the rates that every estimate in the plan rests on."""

import torch

import timing


def rates(report):
    gib = 1 << 30
    source = torch.empty(4 * gib, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    ms, *_ = timing.median([lambda: target.copy_(source)], 0.3)
    report.number("probe.copy_tbs", 2 * source.numel() / ms / 1e9)
    del source, target
    size = 8192
    for name, dtype, tf32 in (("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("fp32", torch.float32, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        ms, *_ = timing.median([lambda: torch.mm(a, b.T, out=out)], 0.3)
        report.number(f"probe.{name}_tf", 2 * size ** 3 / ms / 1e9)
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        x = torch.randn(8192, 65536, device="cuda").to(dtype)
        ms, *_ = timing.median([lambda: torch.topk(x, 64, dim=-1, sorted=False)], 0.3)
        report.number(f"probe.topk_{name}_gel", x.numel() / ms / 1e6)
        del x


def products(e, report):
    """cuBLAS by our own handle: right, and what f32 results cost."""
    for dtype, limit in ((torch.bfloat16, 1e-5), (torch.float32, 1e-5)):
        def work():
            a, b = (torch.randn(s, 200, device="cuda").to(dtype) for s in (130, 700))
            c = e.empty(130, 256)
            e.product(a, b, c, 256, 300)
            want = a.double() @ b[300:556].double().T
            off = ((c - want).norm() / want.norm()).item()
            return [] if off < limit else [f"relative error {off:.1e}"]

        report.attempt(f"product {dtype}", "v1", work)
    if e.blas is None:
        report.note(f"cuBLAS by torch, with a copy: {e.without_blas}")


def run(e, report):
    properties = torch.cuda.get_device_properties(0)
    report.write(key="probe.device", value=f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
    products(e, report)
    for name in e.declarations:
        # Loading resolves names; sizes of parameters are compared at the first launch.
        report.attempt(f"kernel {name} is in the fatbin", "v1", lambda: [] if e.cuda.function(e.module, name) else ["null"])
    rates(report)
