#!/usr/bin/env bash
# Puts the unpacked source tree and a Python environment in place on this VM:
#     setup.sh DIGEST EXTRA [gs://...]...
# DIGEST is of the tree: where it is installed already, only the gs:// files and folders are looked
# after, which are copied into the folder that training runs in.
set -euo pipefail
cd "$HOME/maft_jax_run"
wanted="$1 $2"
extra=$2
shift 2

if [[ ! -f installed || "$(<installed)" != "$wanted" ]]; then
    if [[ -d job ]] && ! flock --nonblock job/lock true; then
        echo "a training runs here; stop it before its code is replaced" >&2
        exit 3
    fi
    rm -rf installed source
    mv source.new source
    # The VM's own Python may be older than 3.11; uv brings one where it is.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python '>=3.11,<3.13' venv
    python3 -m uv pip install --quiet --python venv/bin/python --editable "source[$extra]"
    echo "$wanted" >installed
fi
rm -rf source.new

mkdir -p work
ln -sfn ../source/configs work/configs
for address in "$@"; do
    gcloud storage cp --recursive --no-clobber "$address" work/
done
echo "maft_jax host=$(hostname) ready"
