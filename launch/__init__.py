"""Runs maft_jax on rented and shared machines: Cloud TPU VMs, GKE, SLURM.

    python -m launch.tpu --help      queued resources of Cloud TPU VMs
    python -m launch.gke --help      JobSets on Google Kubernetes Engine
    python -m launch.slurm --help    GPU clusters

These commands run from a checkout and need nothing but Python's standard library: they drive
gcloud, kubectl and sbatch, and copy the checkout. They are not installed with the package.
"""
