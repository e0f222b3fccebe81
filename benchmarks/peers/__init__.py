"""
The routing rules of peers, and of the best prototype known, as policies over falctl's real scheduler.

They are baselines: each is re-implemented from its rule, not its code, and is told the truth where that can only help
it. `falctl replay TRACE --policy auto,benchmarks.peers:SwarmUI` runs one beside ours.
"""

from benchmarks.peers.mect import Mect, MectLru
from benchmarks.peers.modelmesh import ModelMesh
from benchmarks.peers.ray_serve import RayServe, RayServeOne
from benchmarks.peers.swarmui import SwarmUI
from benchmarks.peers.tideline import Tideline

__all__ = ["Mect", "MectLru", "ModelMesh", "RayServe", "RayServeOne", "SwarmUI", "Tideline"]
