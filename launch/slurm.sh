#!/usr/bin/env bash
# Trains as a SLURM job, one process a GPU, and puts itself into the queue again until the last step
# is done. From the root of the checkout, on a file system that all nodes see:
#
#   sbatch --nodes=4 launch/slurm.sh --config=configs/pretrain.py:320 --workdir=/shared/c320
#
# The workdir is seen by all nodes too. Options of sbatch go before the script, as --partition,
# --account, or --gpus-per-node=4 --ntasks-per-node=4 (one process a GPU is what JAX expects here).
#SBATCH --job-name=ldm-scaling
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  exit
fi
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "slurm: not in a SLURM job; submit it: sbatch launch/slurm.sh ..." >&2
  exit 2
fi
cd "$SLURM_SUBMIT_DIR" # sbatch runs a copy of this file from elsewhere
# shellcheck source=launch/environment.sh
source launch/environment.sh
[ -n "${PYTHON:-}" ] || make_environment gpu

# Ten minutes before the time is up, training gets SIGTERM, saves and ends well (--signal above).
srun --kill-on-bad-exit=1 "$PYTHON" launch/train.py "$@"
status=0
"$PYTHON" launch/progress.py "$@" || status=$?
if [ "$status" -eq 3 ]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
