"""``python -m ao_arm selftest``: whether every kernel that this CPU can run computes what the reference does."""
