"""All I/O; the API server is behind a Protocol of :mod:`llmservice.adapters.ports`."""
