"""`--device module:Class,name=value,...`: a device of the user's own, imported from the current directory or the Python path."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from types import ModuleType
from typing import Any

from kvmpy.devices.base import Device
from kvmpy.devices.virtio.device import VirtioDevice
from kvmpy.errors import ConfigError
from kvmpy.irq import Line


def make_device(spec: str) -> Device | VirtioDevice:
    """The device that a specification names. ConfigError says what is wrong with it."""
    where, *assignments = spec.split(",")
    module_name, colon, class_name = where.rpartition(":")
    if not colon or not module_name or not class_name:
        raise ConfigError(f"--device {spec}: write module:Class or file.py:Class, then ,name=value for each argument")
    module = _load(module_name, spec)
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"--device {spec}: {module_name} has no {class_name}")
    if not (inspect.isclass(found) and issubclass(found, (Device, VirtioDevice))):
        raise ConfigError(f"--device {spec}: {class_name} is not a kvmpy.Device")
    arguments = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--device {spec}: {assignment!r} is not name=value")
        arguments[name] = _value(found, name, text)
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"--device {spec}: {error}") from None
    device: Device | VirtioDevice = found(**arguments)
    return device


def _load(name: str, spec: str) -> ModuleType:
    if name.endswith(".py"):
        if not os.path.isfile(name):
            raise ConfigError(f"--device {spec}: there is no file {name}")
        module_spec = importlib.util.spec_from_file_location(os.path.basename(name)[:-3], name)
        assert module_spec is not None and module_spec.loader is not None
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        module_spec.loader.exec_module(module)
        return module
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module is there, what it imports is not: its author wants the traceback
        raise ConfigError(f"--device {spec}: there is no module {name} in {here} or on the Python path") from None


def _value(device: type[Any], name: str, text: str) -> Any:
    """Numbers in any notation, true and false, else text; a parameter annotated Line takes an interrupt number."""
    value: Any
    try:
        value = int(text, 0)
    except ValueError:
        value = {"true": True, "false": False}.get(text.lower(), text)
    parameter = inspect.signature(device).parameters.get(name)
    if parameter is not None and parameter.annotation in (Line, "Line", "kvmpy.Line"):
        if not isinstance(value, int):
            raise ConfigError(f"{name}={text}: an interrupt number is wanted")
        return Line(value)
    return value
