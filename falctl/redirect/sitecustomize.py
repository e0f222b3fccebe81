"""
Points fal's Python client at a falctl, in the process that imports it.

Python runs this file at its start where `falctl exec` has put its folder on PYTHONPATH. That Python may be any from
3.8 on and need not have falctl, so nothing but the standard library is imported. The client's addresses are five
texts of one module, under the same names from fal-client 0.5.9 to 1.0; they are read at each call, so setting them
when the module has been imported is enough, however a script imported it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

ENV_URL = "FALCTL_URL"
"""Where the falctl listens, such as ``http://127.0.0.1:8808``; without it nothing is changed."""

_CLIENT = "fal_client.client"
_OURS = "sitecustomize"


def addresses(url: str) -> dict[str, str]:
    """Return the names in fal's client that hold an address, and what stands there for the falctl at *url*."""
    return {
        "RUN_URL_FORMAT": url + "/run/",
        "QUEUE_URL_FORMAT": url + "/queue/",
        "REALTIME_URL_FORMAT": "ws" + url[len("http") :] + "/run/",
        "REST_URL": url + "/fal/rest",
        "CDN_URL": url + "/fal/cdn",
    }


def redirect(module: ModuleType, url: str, key: str = "") -> None:
    """
    Let *module*, which is `fal_client.client`, call the falctl at *url*, with *key* in place of the environment's, if given.

    Raises:
        ImportError: a version of it that has not all of the names; rather no client than one that calls the cloud.
    """
    wanted = addresses(url)
    missing = [name for name in wanted if not hasattr(module, name)]
    if missing:
        msg = (
            f"falctl cannot point this version of fal_client at {url}: {_CLIENT} has no {', '.join(missing)}"
        )
        raise ImportError(msg)
    vars(module).update(wanted)
    if key:
        _give(module, key)


def _give(module: ModuleType, key: str) -> None:
    """Let *module* find *key* where it looks for credentials, by the names of its old and new versions."""

    def find() -> object:
        return module.AuthCredentials("Key", key)

    async def find_async() -> object:
        return find()

    finders = {
        "fetch_credentials": lambda: key,
        "fetch_auth_credentials": find,
        "fetch_auth_credentials_async": find_async,
    }
    vars(module).update({name: find for name, find in finders.items() if hasattr(module, name)})


def redirect_on_import(url: str, key: str = "") -> None:
    """Let fal's client of this process call the falctl at *url*, whenever it is imported; *key* as in `redirect`."""
    if _CLIENT in sys.modules:
        redirect(sys.modules[_CLIENT], url, key)
    else:
        sys.meta_path.insert(0, _Finder(url, key))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the client where everybody else does."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _CLIENT:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._url, self._key)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    """Loads as *loader* does, and then redirects."""

    def __init__(self, loader: importlib.abc.Loader, url: str, key: str) -> None:
        self._loader = loader
        self._url = url
        self._key = key

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # whoever reads its source, for a traceback

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        redirect(module, self._url, self._key)


def _run_the_users_own() -> None:
    """Run the sitecustomize that Python would have run, had ours not come before it."""
    here = os.path.realpath(os.path.dirname(__file__))  # noqa: PTH120 - pathlib costs a script's start 10 ms
    others = [entry for entry in sys.path if os.path.realpath(entry) != here]
    spec = importlib.machinery.PathFinder.find_spec(_OURS, others)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[_OURS] = module
        spec.loader.exec_module(module)


if __name__ == _OURS:
    if os.environ.get(ENV_URL):
        redirect_on_import(os.environ[ENV_URL])
    _run_the_users_own()
