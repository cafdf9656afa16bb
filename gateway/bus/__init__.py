"""Frames between the worker that holds an agent's socket and the worker that holds a client. base.py has the Protocol, one module each its kinds."""
