"""The listening socket: bound before anything starts and handed to every router, so that a restart loses nobody."""

from __future__ import annotations

import errno
import socket
from typing import Final

from falctl.config import ServerConfig, is_loopback
from falctl.errors import ConfigError

BACKLOG: Final = 4096
"""Connections that wait while a router restarts; the kernel cuts it to net.core.somaxconn."""


def bind(host: str, port: int, *, key: str = "port") -> socket.socket:
    """
    Return a socket that listens on *host*:*port*; port 0 takes a free one. *key* is what a person calls the port.

    Raises:
        ConfigError: the address is in use, not ours, or not an address; names the key and the fix.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        msg = f"server.host: {host!r} is no address of this machine ({error.strerror or error})"
        raise ConfigError(msg) from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(_explain(error, host, port, key=key)) from error
    return listener


def url_of(listener: socket.socket, *, scheme: str = "http") -> str:
    """Return the address to type; a socket that listens everywhere is reached on loopback."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"{scheme}://{shown}:{port}"


def public_url(url: str, server: ServerConfig) -> str:
    """Return the address for links that clients get: on a network it bears the first name of server.hosts."""
    if is_loopback(server.host) or not server.hosts:
        return url
    name = server.hosts[0]
    shown = f"[{name}]" if ":" in name and not name.startswith("[") else name
    return f"http://{shown}:{url.rpartition(':')[2]}"


def _explain(error: OSError, host: str, port: int, *, key: str) -> str:
    how = "falctl up --port " if key == "port" else f"{key} = "
    if error.errno == errno.EADDRINUSE:
        return f"server.{key}: {port} is in use{_holder(port)}; stop that, or take another: {how}{port + 1}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"server.{key}: {port} needs privileges; take one above 1023: {how}8808"
    return f"server.host: cannot listen on {host}:{port} ({error.strerror})"


def _holder(port: int) -> str:
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return ""
    return ""
