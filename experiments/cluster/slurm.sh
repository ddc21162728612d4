#!/bin/bash
# An array of workers that do one sweep together. Edit the lines marked <--, then:
#
#   fljax sweep digits_privacy_utility --dry-run        what it will do
#   sbatch experiments/cluster/slurm.sh                 workers; may be submitted again at any time
#   fljax query results/digits_privacy_utility "select count(*) from trials"
#   fljax sweep digits_privacy_utility                  when all are done: table, figures, page

#SBATCH --job-name=fljax
#SBATCH --array=0-7                  # <-- workers
#SBATCH --time=04:00:00              # <-- of one worker; a job that runs out of it goes into the queue again
#SBATCH --cpus-per-task=4            # <--
#SBATCH --mem=16G                    # <--
##SBATCH --partition=gpu             # <-- one # less to use it
##SBATCH --gpus-per-task=1           # <--
#SBATCH --requeue
#SBATCH --signal=B:TERM@120          # two minutes before the end: a checkpoint is written
#SBATCH --output=slurm-%A_%a.log

EXPERIMENT=digits_privacy_utility    # <-- name or TOML file
OUT=results/$EXPERIMENT              # <-- on a disk that all nodes share
source .venv/bin/activate            # <-- where fljax is installed

# The first worker writes the plan and joins in; the others wait for it.
if [ "$SLURM_ARRAY_TASK_ID" = 0 ]; then
  fljax sweep "$EXPERIMENT" --out "$OUT" --quiet &
else
  until [ -f "$OUT/manifest.json" ]; do sleep 5; done
  fljax worker "$OUT" --wait --quiet &
fi
worker=$!
trap 'kill -TERM $worker; wait $worker; scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; exit 0' TERM
wait $worker
