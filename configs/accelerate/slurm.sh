#!/bin/bash
# Two machines with four GPUs each under Slurm, one process per GPU; the job is requeued and resumed when its time is up.
# Tested with the variables below and two CPU processes, but not under Slurm.
# sbatch configs/accelerate/slurm.sh --config FILE ...
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500 ACCELERATE_MIXED_PRECISION=bf16

srun bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
              export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
              exec python scripts/train.py --resume auto "$@"' bash "$@"

[ $? -eq 75 ] && scontrol requeue "$SLURM_JOB_ID" # 75: a signal stopped the run after it saved a checkpoint
