"""Coldframe's agent: the daemon that runs on each KVM host."""
