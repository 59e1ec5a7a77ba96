"""How many examples hypothesis tries: `--hypothesis-profile=mutants` is for `make mutants`."""

from hypothesis import settings

settings.register_profile("usual", max_examples=150, deadline=None)
# each mutant is tried on the same few examples, so that a run can be repeated
settings.register_profile("mutants", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("usual")
