"""Hypothesis without wall-clock deadlines."""

from hypothesis import HealthCheck, settings

settings.register_profile("gradroute", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("gradroute")
