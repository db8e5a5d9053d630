"""What SAELens' and overcomplete's matching pursuit make of small random dictionaries, for tests/it/pursuit.rs.

python tests/golden/mp.py     (sae-lens 6.54.12, overcomplete 0.3.0, torch on the CPU; writes tests/golden/mp/mp.safetensors)
"""

from pathlib import Path

import torch
from overcomplete.sae import MpSAE
from sae_lens.saes.matching_pursuit_sae import _encode_matching_pursuit
from safetensors.torch import save_file

torch.manual_seed(0)
n, d, m, k = 24, 16, 48, 6
x = torch.randn(n, d)
raw = torch.randn(m, d)
unit = torch.nn.functional.normalize(raw, dim=1)
# Atoms in one orthant and rows in the opposite one: all inner products are negative.
orthant, against = unit.abs(), -x.abs()

tensors = {"x": x, "against": against, "unit": unit, "orthant": orthant, "loose": 0.5 * raw / raw.norm(dim=1).max()}


def saelens(x, w, threshold, steps, duplicate):
    return _encode_matching_pursuit(x, w, threshold, max_iterations=steps, stop_on_duplicate_support=duplicate)


def overcomplete(x, w):
    sae = MpSAE(d, nb_concepts=m, k=k)
    with torch.no_grad():
        sae.dictionary._weights.copy_(w)  # normalised by the library at each call
        sae.eval()
        return sae.encode(x)[1]


tensors["saelens_default"] = saelens(x, unit, 1e-2, None, True)
tensors["saelens_threshold"] = saelens(x, unit, 1.5, None, False)
tensors["saelens_fixed"] = saelens(x, unit, 0.0, k, False)
tensors["saelens_loose"] = saelens(x, tensors["loose"], 0.0, k, False)
tensors["saelens_against"] = saelens(against, orthant, 0.0, k, False)
tensors["overcomplete"] = overcomplete(x, unit)
tensors["overcomplete_loose"] = overcomplete(x, tensors["loose"])
tensors["overcomplete_against"] = overcomplete(against, orthant)
out = Path(__file__).parent / "mp" / "mp.safetensors"
out.parent.mkdir(exist_ok=True)
save_file({name: t.contiguous() for name, t in tensors.items()}, out)
for name, t in tensors.items():
    print(name, tuple(t.shape), "L0", round(float((t != 0).float().sum(1).mean()), 2))
