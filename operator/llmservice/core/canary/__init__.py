"""Canary rollouts: a machine that is data, what it sees, and what it wants of pods and traffic.

:mod:`machine` moves a :class:`state.Rollout` by one transition at a time; :mod:`intent` says what a
rollout wants of pods and routers; :mod:`look` gathers evidence. A rollout lives in the status, and
what is done follows from the one that was read there, never from one that is about to be written:
so whoever is killed between two writes, the next one goes on from the same place.
"""
