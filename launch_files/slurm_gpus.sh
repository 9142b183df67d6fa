#!/usr/bin/env bash
# Trains a named config on GPU nodes of Slurm, one process a node:
#
#   sbatch launch_files/slurm_gpus.sh --config=mm1_3b --data_dir=/shared/data --output_dir=/shared/runs/mm1_3b
#
#SBATCH --job-name=mm1
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# Two minutes before the end, every process gets SIGTERM, saves, and ends with 143.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

VENV="${VENV:-venv}"

# The processes find each other by SLURM_*. A node that dies ends the step: the others then have
# lost a peer, and the job asks for its nodes again.
command=("$VENV/bin/python" -m mm1_jax.launch "$@" --config.trainer.watchdog.abort=true)
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' srun --kill-on-bad-exit=1 "${command[@]}" && echo
  exit 0
fi
srun --kill-on-bad-exit=1 "${command[@]}"
status=$?
case "$status" in
  0 | 2 | 3) exit "$status" ;;
  *) scontrol requeue "$SLURM_JOB_ID" ;;
esac
