"""Find the class that APP names, and refuse in one line what cannot be served."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeGuard

from falctl.app import App, endpoints_of
from falctl.errors import ConfigError
from falctl.host.fal.adapter import adapt, is_fal_app, paths_of
from falctl.host.fal.sdk import HOW_TO_INSTALL, is_missing
from falctl.host.telling import from_the_app, said, user_line
from falctl.wire import RESERVED_PREFIXES

log = logging.getLogger(__name__)

OWN_PATHS: Final = ("/health", "/openapi.json", "/docs")
"""GET on these is answered by every host without taking a slot."""

_HOW: Final = "write APP as module:Class or path.py::Class"


def load_app(name: str, *, cwd: Path) -> type[App]:
    """
    Import and return the class that *name* names, relative to *cwd*.

    The folder of the app goes to the end of the module search path: a file beside it shadows nothing.

    Raises:
        ConfigError: one line that says what is wrong with *name*, the module or the class.
    """
    if "::" in name:
        path, _, class_name = name.rpartition("::")
        module = _import_file((cwd / path).resolve(), named=name)
    else:
        module_name, colon, class_name = name.partition(":")
        if not (module_name and colon and class_name):
            msg = f"APP {name!r} names no class; {_HOW}"
            raise ConfigError(msg)
        module = _import_module(module_name, cwd=cwd, named=name)
    found = _find_class(module, class_name, named=name)
    return _checked(found, named=name)


def _import_file(path: Path, *, named: str) -> ModuleType:
    if not path.is_file():
        msg = f"APP {named!r}: there is no file {path}"
        raise ConfigError(msg)
    # The prefix keeps `torch.py` or `app.py` from standing in for a module that another import means.
    spec = importlib.util.spec_from_file_location(f"falctl_app_{path.stem}", path)
    if spec is None or spec.loader is None:
        msg = f"APP {named!r}: {path} is no Python file; {_HOW}"
        raise ConfigError(msg)
    sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise _import_failed(error, named=named) from error
    return module


def _import_module(module_name: str, *, cwd: Path, named: str) -> ModuleType:
    sys.path.append(str(cwd))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and (module_name == missing or module_name.startswith(missing + ".")):
            msg = f"APP {named!r}: there is no module {missing!r} here ({cwd}) or in this Python's packages"
            raise ConfigError(msg) from error
        raise _import_failed(error, named=named) from error
    except BaseException as error:
        raise _import_failed(error, named=named) from error
    return module


def _import_failed(error: BaseException, *, named: str) -> ConfigError:
    if is_missing(error):
        return ConfigError(f"APP {named!r} needs fal's SDK, which is not installed here: {HOW_TO_INSTALL}")
    log.error("app.import_failed app=%s", named, exc_info=from_the_app(error))
    return ConfigError(f"APP {named!r} cannot be imported: {said(error)}{user_line(error)}")


def _find_class(module: ModuleType, class_name: str, *, named: str) -> type[Any]:
    names = vars(module)
    if class_name not in names:
        apps = sorted(name for name, value in names.items() if _is_app(value) or is_fal_app(value))
        instead = f"; it has {', '.join(apps)}" if apps else ""
        msg = f"APP {named!r}: {module.__file__} has no class {class_name!r}{instead}"
        raise ConfigError(msg)
    found: object = names[class_name]
    if isinstance(found, type) and (_is_app(found) or is_fal_app(found)):
        return found
    msg = f"APP {named!r}: {class_name} is not a subclass of falctl.App or fal.App"
    raise ConfigError(msg)


def _is_app(value: object) -> TypeGuard[type[App]]:
    return isinstance(value, type) and issubclass(value, App) and value is not App


def _checked(found: type[Any], *, named: str) -> type[App]:
    if _is_app(found):
        _check_paths([(e.path, e.method) for e in endpoints_of(found)], package="falctl", named=named)
        _check_slots(found, named=named)
        return found
    _check_paths(paths_of(found), package="fal", named=named)
    return adapt(found, named=named)


def _check_paths(endpoints: list[tuple[str, str]], *, package: str, named: str) -> None:
    if not endpoints:
        msg = f'APP {named!r} has no endpoint; mark a method with @{package}.endpoint("/")'
        raise ConfigError(msg)
    for path, count in Counter(path for path, _ in endpoints).items():
        methods = " and ".join(method for its, method in endpoints if its == path)
        if count > 1:
            msg = f"APP {named!r}: the endpoints {methods} have one path, {path!r}"
            raise ConfigError(msg)
        if any(
            path == prefix or path.startswith(prefix + "/") for prefix in (*RESERVED_PREFIXES, *OWN_PATHS)
        ):
            msg = f"APP {named!r}: endpoint {methods} has the path {path!r}, which falctl keeps for itself; choose another"
            raise ConfigError(msg)


def _check_slots(app_class: type[App], *, named: str) -> None:
    slots: object = app_class.max_multiplexing
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 1:
        msg = f"APP {named!r}: max_multiplexing is {slots!r}; it must be an int of at least 1"
        raise ConfigError(msg)
