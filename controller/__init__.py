"""Coldframe's controller: records, orchestration and the API of a fleet."""
