"""Faults by chance under load, judged by what the clients got and by nothing else."""
