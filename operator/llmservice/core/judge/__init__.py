"""The judge of canaries: guardrails and traffic in, promote, abort or inconclusive out.

Pure: it knows neither clock nor metrics endpoint. A rollout gives it a window of counts per
scrape and keeps its state in the status; ``llmservice judge replay`` gives it windows cut from a
recorded trace. Formulas and their sources are in ``docs/rollouts.md``.
"""
