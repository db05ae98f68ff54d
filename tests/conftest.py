"""What all tests share."""

from hypothesis import HealthCheck, settings

# In every run the same examples, however long they take: that says something about the machine, not
# about the code. `pytest --hypothesis-profile=explore` draws new ones.
settings.register_profile(
    "explore",
    parent=settings.get_profile("default"),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")
