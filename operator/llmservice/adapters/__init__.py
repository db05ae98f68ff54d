"""All I/O, each piece behind a Protocol of :mod:`llmservice.adapters.ports`."""
