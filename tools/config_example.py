"""
Write config.example.toml, every key with its default, from the code: `python -m tools.config_example`.

Prose starts with two #, a key with one, so that taking one # off every line gives a file that says the defaults.
"""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path
from typing import Final

from falctl.config import AppConfig
from falctl.config_diff import LIVE
from falctl.config_keys import KEYS, SECTIONS, Key, app_key

_EXAMPLES: Final = {
    "app": '"draw.py::Draw"',
    "gpus": "[0, 1]",
    "count": "0",
    "cpu_count": "0",
    "max_models": "2",
    "keep_alive": '"10m"',
    "preload": '["sdxl-turbo"]',
}

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
    return "\n".join([_HEAD, *(_section(name) for name in SECTIONS), _apps()])


def _section(name: str) -> str:
    title = cleandoc(SECTIONS[name].__doc__ or "")
    keys = (_key(key) for key in KEYS.values() if key.section == name)
    return f"## {title}\n[{name}]\n{''.join(keys)}"


def _apps() -> str:
    """Return the tables of two apps, as prose: a file that has them has no `runners.app`."""
    title = cleandoc(AppConfig.__doc__ or "")
    notes = (
        f"##   {key} = {_EXAMPLES[key]}\n##     {field.description}{_note(app_key('apps.NAME', key))}\n"
        for key, field in AppConfig.model_fields.items()
    )
    return f"## {title}\n## Apps need a restart to change. Two may share a card if both name it.\n## [apps.NAME]\n{''.join(notes)}"


def _key(key: Key) -> str:
    return f"\n## {key.field.description}{_note(key)}\n#{key.key} = {key.default}\n"


def _note(key: Key) -> str:
    notes = [note for note in (key.allowed(), "live" if key.name in LIVE else "") if note]
    return f" ({'; '.join(notes)})" if notes else ""


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    print(f"wrote {PATH.name}")
