"""
Write config.example.toml, every key with its default, from the code: `python -m tools.config_example`.

Prose starts with two #, a key with one, so that taking one # off every line gives a file that says the defaults.
"""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path
from typing import Final

from falctl.config_diff import LIVE
from falctl.config_keys import KEYS, SECTIONS, Key

PATH: Final = Path(__file__).parents[1] / "config.example.toml"

_HEAD: Final = """\
## falctl's configuration, with the default of every key. Copy this file to falctl.toml in the folder where you run
## `falctl up`, or name it with -c, and take the # off the keys that you change.
##
## A flag wins over an environment variable, and that over this file: --port, FALCTL_SERVER_PORT, port below [server].
## In a variable a list is written with commas: FALCTL_MODELS_ALLOW=org/one,org/two
## Durations are seconds or "250ms", "10s", "5m", "1h", "7d"; sizes are bytes or "512MiB", "8GiB".
## Keys marked "live" change in a running falctl when it reads its configuration anew; all others need a restart.
"""


def render() -> str:
    """Return the text of config.example.toml."""
    return "\n".join([_HEAD, *(_section(name) for name in SECTIONS)])


def _section(name: str) -> str:
    title = cleandoc(SECTIONS[name].__doc__ or "")
    keys = (_key(key) for key in KEYS.values() if key.section == name)
    return f"## {title}\n[{name}]\n{''.join(keys)}"


def _key(key: Key) -> str:
    notes = [note for note in (key.allowed(), "live" if key.name in LIVE else "") if note]
    note = f" ({'; '.join(notes)})" if notes else ""
    return f"\n## {key.field.description}{note}\n#{key.key} = {key.default}\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    print(f"wrote {PATH.name}")
