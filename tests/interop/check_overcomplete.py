"""overcomplete's classes take our state dicts and encode as we do; state dicts of its classes are imported and encode as they do."""

import json

import torch
from common import same

RULES = {"topk": (), "relu": (), "jump-relu": (), "batch-topk": (), "mp": ("--activation", "mp:4,selection=max")}


def classes():
    from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, MpSAE, RATopKSAE, TopKSAE

    return {c.__name__: c for c in (SAE, BatchTopKSAE, JumpSAE, MpSAE, RATopKSAE, TopKSAE)}


def made(config, state):
    """The model that sae.json describes, with our state dict in it."""
    options = {k: config[k] for k in ("top_k", "k") if k in config}
    model = classes()[config["class"]](config["input_shape"], config["nb_concepts"], encoder_module=config["encoder_module"],
                                       dictionary_params=config["dictionary_params"], **options)
    model.load_state_dict(state)
    if "running_threshold" in config:
        model.running_threshold = torch.tensor(config["running_threshold"])
    return model.eval()


def forward(model, rows):
    with torch.no_grad():
        codes = model.encode(rows)[1]
        return codes, model.decode(codes)


def theirs(x):
    """A model of each kind with parameters that are not zero, what import must be told, and what stands beside the file."""
    torch.manual_seed(0)
    d, n = x.shape[1], 64
    kinds = classes()
    points = torch.randn(10, d)
    yield "SAE", kinds["SAE"](d, n), [], {"class": "SAE"}
    yield "TopKSAE", kinds["TopKSAE"](d, n, top_k=4), ["--k", 4], None
    yield "TopKSAE-tied", kinds["TopKSAE"](d, n, top_k=4).tied(bias=True), ["--k", 4], None
    yield "TopKSAE-untied", kinds["TopKSAE"](d, n, top_k=4).untied(), ["--k", 4], None
    yield "TopKSAE-batch-norm", kinds["TopKSAE"](d, n, top_k=4, encoder_module="mlp_bn_1"), ["--k", 4], None
    yield "RATopKSAE", kinds["RATopKSAE"](d, n, points, top_k=4), ["--k", 4], None
    for normalization in ["identity", "max_l2", "l1", "max_l1"]:
        beside = {"class": "TopKSAE", "top_k": 4, "dictionary_params": {"normalization": normalization}}
        yield normalization, kinds["TopKSAE"](d, n, top_k=4, dictionary_params=beside["dictionary_params"]), [], beside
    yield "multiplier", kinds["TopKSAE"](d, n, top_k=4, dictionary_params={"use_multiplier": True}), ["--k", 4], None
    batch = kinds["BatchTopKSAE"](d, n, top_k=400)
    batch.running_threshold = torch.tensor(0.7)
    yield "BatchTopKSAE", batch, ["--threshold", 0.7], None
    yield "JumpSAE", kinds["JumpSAE"](d, n), [], None
    yield "MpSAE", kinds["MpSAE"](d, n, k=4), [], {"class": "MpSAE", "k": 4}


def run(lapidary, x, dictionaries):
    rows = torch.from_numpy(x)
    for name, flags in RULES.items():
        folder = lapidary.export(dictionaries[name], "overcomplete", f"overcomplete-{name}", *flags)
        state = torch.load(folder / "sae.pt", weights_only=True)
        config = json.loads((folder / "sae.json").read_text())
        shift = torch.tensor(config.get("input_shift", [0.0]))
        codes, decoded = forward(made(config, state), rows - shift)
        same(f"overcomplete {name} ({config['class']})", (codes, decoded + shift), lapidary.codes(dictionaries[name]))
    for name, model, flags, beside in theirs(x):
        with torch.no_grad():
            for key, value in model.named_parameters():
                if key.endswith("bias") or key == "thresholds":
                    value.add_(0.1 * torch.randn_like(value))
                if key.endswith("multiplier"):
                    value.fill_(0.3)
                if key.endswith("Relax"):
                    value.add_(0.05 * torch.randn_like(value))
            for key, value in model.named_buffers():
                if "running" in key:
                    value.add_(torch.rand_like(value))
        model.eval()
        folder = lapidary.work / f"theirs-{name}"
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), folder / "model.pth")
        if beside:
            (folder / "model.json").write_text(json.dumps(beside))
        imported = lapidary.imported(folder / "model.pth", f"imported-{name}", *flags)
        same(f"imported from overcomplete: {name}", lapidary.codes(imported), [t.numpy() for t in forward(model, rows)])
