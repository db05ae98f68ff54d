"""The running operator: kopf as the shell, the loop, start and shutdown order."""
