"""Strategies that draw any row."""

from __future__ import annotations

from hypothesis import strategies as st

from falctl.board.rows import FleetRow, GpuRow, LifeRow, MemoryRow, RouterRow, RunnerRow

ANY_TEXT = st.text(st.characters())
"""Every code point, lone surrogates included."""

st.register_type_strategy(str, ANY_TEXT)
st.register_type_strategy(float, st.floats(allow_nan=False))

FLEETS = st.from_type(FleetRow)
ROUTERS = st.from_type(RouterRow)
RUNNERS = st.from_type(RunnerRow)
LIVES = st.from_type(LifeRow)
GPUS = st.from_type(GpuRow)
MEMORIES = st.from_type(MemoryRow)
