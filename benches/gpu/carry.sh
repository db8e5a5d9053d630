#!/usr/bin/env bash
# Makes what a machine with a GPU, but without cargo and network, needs for benches/gpu/run.py: one folder of at most 56 MiB. No GPU is needed
# here and nothing is downloaded.
#
#   benches/gpu/carry.sh [DIR] [options]           DIR: target/gpu
#     --sparsify PYTHON     a Python that has eai-sparsify: its fused_encoder.py and xformers.py are carried, to be measured
#     --openai FILE         kernels.py of openai/sparse_autoencoder, to be measured
#     --rust                build lapidary with the feature `cuda` (env.sh of scripts/cuda-toolkit.sh sourced) and carry it
#     --binary FILE         carry this lapidary, built so before
#     --no-fatbin           leave kernels.fatbin as it is: for another run with the same kernels
#
# The compiler: $CUDA_HOME/bin/nvcc, else nvcc on PATH; scripts/cuda-toolkit.sh installs one without root.
# The peers' files go into DIR only. They are other people's: never add them to the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() {
    printf 'carry: %s\n  help: %s\n' "$1" "$2" >&2
    exit 1
}

dir=target/gpu sparsify='' openai='' rust='' binary='' fatbin=yes
[ $# -eq 0 ] || case $1 in -*) ;; *) dir=$1 && shift ;; esac
while [ $# -gt 0 ]; do
    case $1 in
    --sparsify) sparsify=${2:?} && shift ;;
    --openai) openai=${2:?} && shift ;;
    --binary) binary=${2:?} && shift ;;
    --rust) rust=yes ;;
    --no-fatbin) fatbin='' ;;
    *) fail "unknown option $1" "$(sed -n '/^#   bench/,/^#     --no/p' "$0")" ;;
    esac
    shift
done
mkdir -p "$dir"

if [ -n "$fatbin" ]; then
    nvcc=${CUDA_HOME:+$CUDA_HOME/bin/nvcc}
    [ -n "$nvcc" ] && [ -x "$nvcc" ] || nvcc=$(command -v nvcc) ||
        fail "there is no nvcc" "run scripts/cuda-toolkit.sh DIR and source DIR/env.sh"
    rm -f "$dir"/*.cubin
    # The flags of build/cuda.rs.
    echo "kernels.fatbin, by $nvcc"
    "$nvcc" -O3 -std=c++17 --fatbin --compress-mode=size -I kernels -gencode=arch=compute_80,code=sm_80 \
        -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_80,code=compute_80 -o "$dir/kernels.fatbin" kernels/all.cu
    variant() {
        echo "hopper_$1.cubin"
        "$nvcc" -O3 -std=c++17 -cubin -I kernels -gencode=arch=compute_90a,code=sm_90a "${@:2}" -o "$dir/hopper_$1.cubin" \
            kernels/encode_hopper.cu
    }
    variant bring_up_1 -DBRING_UP=1
    variant bring_up_2 -DBRING_UP=2
    variant stages_3 -DHOPPER_STAGES=3
    variant lag_500 -DHOPPER_LAG=500
    variant lag_1500 -DHOPPER_LAG=1500
fi
[ -s "$dir/kernels.fatbin" ] || fail "$dir/kernels.fatbin is not there, or empty" "leave --no-fatbin out"
python3 benches/gpu/declarations.py >"$dir/kernels.json.part"
mv "$dir/kernels.json.part" "$dir/kernels.json"

if [ -n "$sparsify" ]; then
    find='import importlib.util as u; print(u.find_spec("sparsify").submodule_search_locations[0])'
    from=$("$sparsify" -c "$find") || fail "$sparsify has no sparsify" "$sparsify -m pip install eai-sparsify"
    cp "$from/fused_encoder.py" "$from/xformers.py" "$dir/"
fi
if [ -n "$openai" ]; then
    grep -q 'class TritonDecoderAutograd' "$openai" || fail "$openai is not OpenAI's kernels.py" "it is sparse_autoencoder/kernels.py there"
    cp "$openai" "$dir/openai_kernels.py"
fi
if [ -n "$rust" ]; then
    cargo build --release --locked --features cuda --target-dir target/cuda
    binary=target/cuda/release/lapidary
fi
if [ -n "$binary" ]; then
    cp "$binary" "$dir/lapidary.part"
    strip "$dir/lapidary.part"
    python3 -c 'import lzma, shutil, sys
with open(sys.argv[1], "rb") as f, lzma.open(sys.argv[2], "wb", preset=6) as to: shutil.copyfileobj(f, to)' \
        "$dir/lapidary.part" "$dir/lapidary.xz"
    rm "$dir/lapidary.part"
fi
# What self-checks and earlier runs left.
rm -rf "$dir/simulator.so" "$dir/out"

bytes=$(du -cb "$dir"/* | tail -1 | cut -f1)
ls -l "$dir"
[ "$bytes" -le $((56 << 20)) ] || fail "$bytes bytes are more than 56 MiB" "carry the binary in a run of its own"
cat <<END2

$((bytes >> 10)) KiB in $dir. Copy it and benches/gpu to the machine with the GPU, and run there, from the folder that holds benches/:

    PYTHONUNBUFFERED=1 python3 benches/gpu/run.py --carried $dir --out "\${OUT:-out}" --seconds 570
END2
