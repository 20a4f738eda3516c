"""Devices, threads, memory and processes: what computes, not what is computed."""
