#!/bin/bash
# One simulation over several processes and hosts: a task per GPU, or per host without GPUs. Edit the lines marked <--,
# then:
#
#   fljax run digits_fedavg --dry-run                       memory, operations and time, on one device
#   sbatch experiments/cluster/slurm_simulation.sh          may be submitted again at any time: it goes on
#   fljax query results/digits_fedavg                       when it is done
#
# The processes find each other by the variables of srun. The clients of every round are spread over all devices; the
# first process writes files. For many simulations use slurm.sh: one process each, nothing to connect.

#SBATCH --job-name=fljax
#SBATCH --nodes=1                    # <--
#SBATCH --ntasks=2                   # <-- processes of the one simulation, over all nodes
#SBATCH --cpus-per-task=1            # <--
#SBATCH --time=04:00:00              # <-- a job that runs out of it goes into the queue again
##SBATCH --mem=16G                   # <-- of each node; one # less to use it
##SBATCH --partition=gpu             # <--
##SBATCH --gpus-per-task=1           # <--
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120            # two minutes before the end to all processes: they write a checkpoint and stop
#SBATCH --output=slurm-%j.log

EXPERIMENT=${EXPERIMENT:-digits_fedavg}   # <-- name or TOML file
OUT=${OUT:-results/$EXPERIMENT}           # <-- on a disk that all nodes share
source "${VENV:-.venv}/bin/activate"      # <-- where fljax is installed

# --resume begins anew where there is no checkpoint. A process that fails ends the others.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  fljax run "$EXPERIMENT" --out "$OUT" --resume "$@"
code=$?
if [ "$code" = 143 ]; then           # stopped by Slurm's signal, its checkpoint written
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$code"
