"""Raft, pure: `core.Core` is the algorithm, `messages` what goes in and out. No effect happens in this package."""
