"""Compiled arithmetic: one C11 file a job, called by the module that owns the job.

What is computed and why is said by the callers (quant, packaging): here are only loops. Every size and pointer is
checked in Python before it gets here.
"""
