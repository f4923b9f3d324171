#!/usr/bin/env bash
# From nothing to a scaling study on real images, in about a quarter of an hour on two cores:
# draws images, trains a model for a short while, sweeps the shipped micro family, writes report.html.
#
#   bash launch/quickstart.sh [WORKDIR]      default runs/quickstart
#
# Stop it at any point and start it again: it goes on where it was.
set -euo pipefail

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  exit
fi

cd "$(dirname "$0")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
workdir="${1:-runs/quickstart}"
mkdir -p "$workdir"

make_environment ""
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" TF_CPP_MIN_LOG_LEVEL=3 HF_HUB_OFFLINE=1
keep_memory_mapped

say "1/3  Drawing images with the largest shipped micro model"
if [ ! -e "$workdir/samples.png" ]; then
  "$PYTHON" launch/sample.py --model=micro-48 --output="$workdir/samples.png" \
    --prompt="red apple" --prompt="cat face" --prompt="flag: Japan" --prompt="woman firefighter" \
    --prompt="a blue apple" --prompt="green heart with a crown" --prompt="sleeping dog face" \
    --prompt="a red car under the moon" --steps=20 --guidance=2.5
fi
echo "   $workdir/samples.png"

say "2/3  Training a micro model from scratch, for a short while"
"$PYTHON" launch/train.py --config=configs/pretrain.py:micro-16 --workdir="$workdir/train" \
  --config.num_steps=150 --config.optimizer.warmup_steps=25 \
  --config.log_every=25 --config.checkpoint_every=50

say "3/3  A scaling study over the shipped micro family"
"$PYTHON" launch/study.py --config=configs/study.py:micro --workdir="$workdir/study"

say "Done. Open the report: $workdir/study/report/report.html"
