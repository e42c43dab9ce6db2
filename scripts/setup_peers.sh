#!/usr/bin/env bash
# The libraries that scripts/bench_train.py measures against, in an environment of their own: setup_peers.sh [DIR]
# Versions are pinned; torch is the one that saekit is tested with, in the build that pip picks on this machine.
set -euo pipefail
dir=${1:-.peers}
here=$(cd "$(dirname "$0")" && pwd)
torch=$(grep -E '^torch==' "$here/../constraints.txt")
"${PYTHON:-python3}" -m venv "$dir"
"$dir/bin/pip" install -q --disable-pip-version-check "$torch"
"$dir/bin/pip" install -q --disable-pip-version-check -c "$here/peers-constraints.txt" "$torch" sae-lens eai-sparsify nnsight einops
"$dir/bin/pip" install -q --disable-pip-version-check --no-deps -c "$here/peers-constraints.txt" dictionary-learning
"$dir/bin/python" -c "import sae_lens, sparsify, dictionary_learning"
echo "The peers are ready in $dir."
