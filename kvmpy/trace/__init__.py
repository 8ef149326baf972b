"""Watching a machine: listeners get a small event for every exit and for what devices have to say."""

from kvmpy.trace.tracer import Event, Listener, Tracer

__all__ = ["Event", "Listener", "Tracer"]
