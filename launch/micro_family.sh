#!/usr/bin/env bash
# Makes the models that the package ships: the autoencoder, then every width of the micro family,
# and the records of their training.
# Hours on two cores. Stop it at any point and start it again: each run goes on where it was.
#
#   bash launch/micro_family.sh [WORKDIR]      default runs/micro
set -euo pipefail

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit
fi

cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
workdir="${1:-runs/micro}"
make_environment ""
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" TF_CPP_MIN_LOG_LEVEL=3
keep_memory_mapped

say "Autoencoder"
"$PYTHON" launch/train.py --config=configs/autoencoder.py:micro --workdir="$workdir/vae"
if [ ! -e "$workdir/vae/packed" ]; then
  "$PYTHON" launch/pack_model.py --source="$workdir/vae/export/final" --name=vae
  touch "$workdir/vae/packed"
fi

for width in 8 16 32 48; do
  say "Width $width"
  "$PYTHON" launch/train.py --config="configs/pretrain.py:micro-$width" \
    --workdir="$workdir/micro-$width" --config.cache_dir="$workdir/cache"
  "$PYTHON" launch/pack_model.py --source="$workdir/micro-$width/export/final" --name="micro-$width"
done

say "Quality along the training"
"$PYTHON" launch/study.py --config=configs/study.py:micro-training --workdir="$workdir/study" \
  --config.models="('$workdir/micro-*/export/step_*',)"
mkdir -p ldm_scaling/assets/records
cat "$workdir"/micro-*/training.jsonl "$workdir"/study/records.jsonl \
  >ldm_scaling/assets/records/micro-training.jsonl
