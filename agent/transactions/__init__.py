"""The heart: plan (pure), steps, journal, guard, manager; no HTTP, no subprocess."""
