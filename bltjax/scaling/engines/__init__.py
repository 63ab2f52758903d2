"""Who runs the jobs of a study: this machine, a Ray cluster, a Slurm cluster. None of them keeps a queue of its own."""
