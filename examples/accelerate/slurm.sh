#!/bin/bash
#SBATCH --job-name=esvit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# sbatch examples/accelerate/slurm.sh RECIPE [--section.field VALUE ...]
set -euo pipefail

# The first start finds no recipe in the run's folder, every later one does and continues.
output_dir=${OUTPUT_DIR:-outputs/slurm_run}
resume=false
[ -f "$output_dir/recipe.yaml" ] && resume=true

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MAIN_PROCESS_IP=${nodes%%$'\n'*}
export MAIN_PROCESS_PORT=$((20000 + SLURM_JOB_ID % 10000))

# Five minutes before the end: SIGTERM to the training processes themselves, not to their launchers, which would
# kill them after 30 seconds. They save a checkpoint and end; then the job goes back into the queue.
stop_and_requeue() {
    srun --overlap --nodes="$SLURM_NNODES" --ntasks-per-node=1 pkill -TERM -f -- '-u examples/pretrain.py' || true
    wait "$run" || true
    scontrol requeue "$SLURM_JOB_ID"
}
trap stop_and_requeue USR1

srun bash -c 'accelerate launch --config_file examples/accelerate/four_machines.yaml \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$MAIN_PROCESS_IP" --main_process_port "$MAIN_PROCESS_PORT" \
    examples/pretrain.py "$@"' bash "$@" --run.output_dir "$output_dir" --run.resume "$resume" &
run=$!
wait "$run"
