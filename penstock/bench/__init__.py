"""Workloads, offline, step and HTTP benchmarks, and their reports."""
