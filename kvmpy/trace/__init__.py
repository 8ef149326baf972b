"""Watching a machine: listeners get a small event for every exit and for what devices have to say."""

from kvmpy.trace.event import KINDS, NUMBERS, Event, Listener
from kvmpy.trace.tracer import Tracer

__all__ = ["KINDS", "NUMBERS", "Event", "Listener", "Tracer"]
