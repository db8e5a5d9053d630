#!/usr/bin/env bash
# Makes everything that `cargo build --features cuda` needs, in one folder and without root: NVIDIA's compiler out of Python wheels, and
# libraries to link with that look for the real ones only when the program runs. No GPU and no driver is needed to build.
#
#   scripts/cuda-toolkit.sh DIR          compiler and libraries (a download of about 110 MB)
#   scripts/cuda-toolkit.sh DIR --sass   and cuobjdump, to read what the compiler made
#   scripts/cuda-toolkit.sh DIR --check  only a stand-in for nvcc: enough for `cargo check` and clippy, nothing is downloaded
#
# Then: source DIR/env.sh && cargo build --release --features cuda --target-dir target/cuda
# A build with the stand-in needs a target folder of its own: candle keeps what an nvcc made for it when the nvcc changes.
# DIR/nvcc-quick leaves out candle's quantised kernels (minutes of compiling; Lapidary does not use them): NVCC=DIR/nvcc-quick.
# PYTHON=... chooses the Python (3.8 or newer, with venv).
set -euo pipefail

fail() {
    printf 'cuda-toolkit: %s\n  help: %s\n' "$1" "$2" >&2
    exit 1
}

[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
dir=$1 mode=${2:-build} python=${PYTHON:-python3}
case $mode in build | --sass | --check) ;; *) fail "unknown option $mode" "--sass, --check, or nothing" ;; esac
case $dir in *[[:space:]]*) fail "blanks in $dir" "nvcc cannot live in such a folder: choose another" ;; esac
mkdir -p "$dir"
dir=$(cd "$dir" && pwd -P)

mkdir -p "$dir/check"
cat >"$dir/check/nvcc" <<'END'
#!/usr/bin/env bash
# Stands in for nvcc where nothing is to be run: every output is empty.
out= folder=. kind= sources=()
while [ $# -gt 0 ]; do
    case $1 in
    --version | -V) echo 'Cuda compilation tools, release 13.0, V13.0.88'; exit 0 ;;
    --list-gpu-code) printf 'sm_80\nsm_90\n'; exit 0 ;;
    -o) out=$2; shift ;;
    --output-directory | -odir) folder=$2; shift ;;
    --ptx | -ptx) kind=ptx ;;
    --lib | -lib) kind=lib ;;
    -c | --compile) kind=object ;;
    *.cu | *.o) sources+=("$1") ;;
    esac
    shift
done
case $kind in
lib) ar rcs "$out" ;;
object) printf '' | cc -x c -c - -o "$out" ;;
ptx) if [ -n "$out" ]; then : >"$out"; else for s in "${sources[@]}"; do n=${s##*/}; : >"$folder/${n%.cu}.ptx"; done; fi ;;
*) [ -z "$out" ] || : >"$out" ;;
esac
END
chmod +x "$dir/check/nvcc"
if [ "$mode" = --check ]; then
    cat >"$dir/env.sh" <<END
export NVCC="$dir/check/nvcc" CUDA_COMPUTE_CAP=90 CUDARC_CUDA_VERSION=13000
END
    echo "source $dir/env.sh, then: cargo check --features cuda --target-dir target/cuda-check"
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || fail "this lays out a toolkit for Linux on x86-64" "install CUDA 13 as NVIDIA says and set CUDA_HOME"
for tool in "$python" cc g++ ar cargo; do
    command -v "$tool" >/dev/null || fail "no $tool" "install it (Debian: apt-get install python3-venv gcc g++ binutils; Rust: rustup.rs)"
done
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
[ "$mode" != --sass ] || wheels+=(nvidia-cuda-cuobjdump==13.2.51 nvidia-cuda-nvdisasm==13.2.51)
[ -x "$dir/venv/bin/python" ] || "$python" -m venv "$dir/venv" || fail "no virtual environment" "Debian: apt-get install python3-venv"
"$dir/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "${wheels[@]}" ||
    fail "pip could not install the compiler" "is a package index within reach? PIP_INDEX_URL and the like are honoured"
wheel=$("$dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13
[ -x "$wheel/bin/nvcc" ] || fail "the wheels hold no nvcc" "remove $dir and run again"

home=$dir/cuda
rm -rf "$home"
mkdir -p "$home/lib64/stubs"
for part in bin include nvvm; do ln -s "$wheel/$part" "$home/$part"; done
ln -s lib64 "$home/lib"
ln -s "$wheel"/lib/libcudart_static.a "$wheel"/lib/libcudadevrt.a "$home/lib64/"

# The names that the Rust bindings want of each library.
cudarc=${CUDARC_SRC:-$(cargo metadata --format-version 1 --all-features --locked | "$dir/venv/bin/python" -c '
import json, os, sys
print(next(os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"] == "cudarc"))')} ||
    fail "the source of the crate cudarc was not found" "run this in Lapidary's folder after \`cargo fetch\`, or set CUDARC_SRC"

# A library to link with holds one jump per function. The first call opens the real library; where there is none, functions answer with
# the error that says so, and a program built like this still runs on the CPU.
lazy() { # library, module of cudarc, prefix, code of "not there", real names
    local library=$1 module=$2 prefix=$3 code=$4
    shift 4
    local work=$dir/lazy/$library names
    mkdir -p "$work"
    names=$(grep -hoE "pub unsafe fn ${prefix}[A-Z][A-Za-z0-9_]*" "$cudarc/src/$module/sys/mod.rs" | awk '{print $4}' | sort -u)
    [ "$(wc -w <<<"$names")" -gt 9 ] || fail "no functions $prefix* in $cudarc" "this script knows cudarc 0.19"
    {
        printf '#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <pthread.h>\n'
        printf 'static const char *const names[] = {%s};\n' "$(printf '"%s",' $names)"
        printf 'static const char *const files[] = {%s};\n' "$(printf '"%s",' "$@")"
        printf '__attribute__((visibility("hidden"))) void *lazy_%s_table[sizeof names / sizeof *names];\n' "$library"
        cat <<END
static void *opened;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void open_it(void) {
    for (unsigned i = 0; !opened && i < sizeof files / sizeof *files; i++) opened = dlopen(files[i], RTLD_NOW | RTLD_GLOBAL);
}
static int absent(void) { return $code; }
__attribute__((visibility("hidden"))) void *lazy_${library}_find(unsigned long i) {
    pthread_once(&once, open_it);
    void *f = opened ? dlsym(opened, names[i]) : 0;
    return lazy_${library}_table[i] = f ? f : (void *)absent;
}
END
    } >"$work/find.c"
    {
        printf '.text\n'
        local i=0
        for name in $names; do
            printf '.globl %s\n.type %s,@function\n%s:\n movq lazy_%s_table+%d(%%rip),%%rax\n testq %%rax,%%rax\n je 1f\n jmp *%%rax\n1: movl $%d,%%eax\n jmp lazy_%s_slow\n.size %s,.-%s\n' \
                "$name" "$name" "$name" "$library" $((8 * i)) "$i" "$library" "$name" "$name"
            i=$((i + 1))
        done
        # All that may hold an argument is kept over the search.
        printf 'lazy_%s_slow:\n' "$library"
        printf ' pushq %%%s\n' rdi rsi rdx rcx r8 r9 rbp
        printf ' subq $128,%%rsp\n'
        for x in 0 1 2 3 4 5 6 7; do printf ' movups %%xmm%d,%d(%%rsp)\n' "$x" $((16 * x)); done
        printf ' movl %%eax,%%edi\n call lazy_%s_find\n' "$library"
        for x in 0 1 2 3 4 5 6 7; do printf ' movups %d(%%rsp),%%xmm%d\n' $((16 * x)) "$x"; done
        printf ' addq $128,%%rsp\n'
        printf ' popq %%%s\n' rbp r9 r8 rcx rdx rsi rdi
        printf ' jmp *%%rax\n.section .note.GNU-stack,"",@progbits\n'
    } >"$work/jump.s"
    cc -O2 -fPIC -c "$work/find.c" -o "$work/find.o"
    cc -c "$work/jump.s" -o "$work/jump.o"
    ar rcs "$home/lib64/stubs/liblazy_$library.a" "$work/find.o" "$work/jump.o"
    printf 'INPUT(%s)\n' "$home/lib64/stubs/liblazy_$library.a" >"$home/lib64/stubs/lib$library.so"
}
lazy cuda driver cu 100 libcuda.so.1 libcuda.so
lazy cublas cublas cublas 1 libcublas.so.13
lazy cublasLt cublaslt cublasLt 1 libcublasLt.so.13
lazy curand curand curand 101 libcurand.so.10
lazy nvrtc nvrtc nvrtc 11 libnvrtc.so.13
lazy nccl nccl nccl 2 libnccl.so.2
printf 'INPUT(%s -ldl -lrt -lpthread)\n' "$home/lib64/libcudart_static.a" >"$home/lib64/libcudart.so"

cat >"$dir/nvcc-quick" <<'END'
#!/usr/bin/env bash
# nvcc, but candle's kernels for quantised and mixture-of-experts models become functions that stop the program and say their name.
real=$(dirname "$(readlink -f "$0")")/cuda/bin/nvcc
out= source= object=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
    -o) j=$((i + 1)); out=${!j} ;;
    -c) object=1 ;;
    *.cu) source=${!i##*/} ;;
    esac
done
case $object:${CARGO_MANIFEST_DIR:-}:$source in
1:*candle-kernels*:mmvq_gguf.cu) names=$(grep -oE 'pub fn [A-Za-z0-9_]+' "$CARGO_MANIFEST_DIR/src/ffi.rs" | awk '{print $3}' | grep -vE 'mmq_quantize|moe_align' | sort -u) ;;
1:*candle-kernels*:mmq_instance_*.cu | 1:*candle-kernels*:moe_*.cu) names= ;;
*) exec "$real" "$@" ;;
esac
{
    printf '#include <stdio.h>\n#include <stdlib.h>\n'
    for name in $names; do printf 'void %s(void){fputs("%s is not in this build (nvcc-quick)\\n",stderr);abort();}\n' "$name" "$name"; done
} | exec cc -x c -fPIC -c - -o "$out"
END
chmod +x "$dir/nvcc-quick"
cat >"$dir/env.sh" <<END
# Source this, then: cargo build --release --features cuda --target-dir target/cuda
export CUDA_HOME="$home" NVCC="$home/bin/nvcc" PATH="$home/bin:\$PATH" CUDARC_CUDA_VERSION=13000
# For which chip candle's own kernels are made: 90 is H100 and H200 alone; 80 runs on newer ones too, translated at start.
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
END
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
printf 'extern "C" __global__ void probe(float* x) { x[threadIdx.x] += 1.0f; }\n' >"$probe/probe.cu"
"$home/bin/nvcc" --fatbin -gencode=arch=compute_90a,code=sm_90a -o "$probe/probe.fatbin" "$probe/probe.cu" ||
    fail "nvcc is there and cannot compile" "CUDA 13.0 takes g++ up to 15; here it is $(g++ -dumpfullversion)"
echo "$("$home/bin/nvcc" --version | grep -o 'release.*'), $(du -sh "$dir" | cut -f1); next: source $dir/env.sh"
