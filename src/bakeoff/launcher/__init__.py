"""Where the jobs of a sweep run: on this machine's processors and GPUs, in Slurm's queue, on Ray's workers."""
