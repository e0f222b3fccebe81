"""The folder that `falctl exec` puts on PYTHONPATH; `sitecustomize` in it stands alone."""
