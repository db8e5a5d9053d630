"""What parameters the kernels take: kernels/all.cu through the C preprocessor, as nvcc would read it.

`carry.sh` writes them beside the fatbin (kernels.json), so that a machine without a compiler knows them too.
"""

import json
import os
import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCALARS = {"u32", "i32", "u64", "f32", "TensorMap"}


def parameter(text):
    """(name, type, is a pointer) of one declared parameter."""
    text = re.sub(r"\b(const|__grid_constant__|__restrict__)\b", " ", text).strip()
    found = re.fullmatch(r"(\w+)\s*(\*?)\s*(\w+)", text)
    if not found or (not found[2] and found[1] not in SCALARS):
        raise ValueError(f"cannot read the parameter `{text}`")
    return [found[3], found[1], bool(found[2])]


def parse(source):
    """{kernel: [parameter, ..]} of preprocessed source."""
    kernels = {}
    for match in re.finditer(r'extern "C" __global__ void\s+((?:__\w+__\([^)]*\)\s*)*)(\w+)\(([^{;]*)\)\s*\{', source):
        parameters = [p for p in re.split(r",", re.sub(r"\s+", " ", match[3])) if p.strip()]
        kernels[match[2]] = [parameter(p) for p in parameters]
    return kernels


def preprocess(repository=REPOSITORY):
    compiler = os.environ.get("CXX", "g++")
    # __CUDACC__ takes the branches that nvcc takes; the bodies of Hopper kernels are not read, only their declarations.
    flags = ["-E", "-P", "-x", "c++", "-D__CUDACC__", "-D__CUDA_ARCH_FEAT_SM90_ALL", "-I", "kernels", "kernels/all.cu"]
    return subprocess.run([compiler, *flags], cwd=repository, check=True, capture_output=True, text=True).stdout


def load(carried):
    """Declarations out of the carried folder, or of the sources where that has none."""
    path = Path(carried) / "kernels.json"
    return json.loads(path.read_text()) if path.is_file() else parse(preprocess())


if __name__ == "__main__":
    print(json.dumps(parse(preprocess()), indent=0))
