"""LLMService: a Kubernetes operator that runs vLLM inference services.

Layers, enforced by import-linter: ``api`` (the contract) < ``core`` (pure decisions) <
``adapters`` (all I/O) < ``handlers`` (the running operator) and ``cli``.
"""
