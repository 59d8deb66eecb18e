"""Errors, durations, schedules, files, FLOPs, memory: imports no other package of cxrjax."""
