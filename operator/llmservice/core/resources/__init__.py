"""Builders of child manifests: ``build_x(...) -> Manifest``, deterministic, nothing else."""
