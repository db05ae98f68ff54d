"""``python -m llmservice`` is the ``llmservice`` command."""

from llmservice.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
