"""``python -m tests.sim --seed 17 [--policy fal]``: replay one history and say what became of its requests."""

from __future__ import annotations

import argparse
from collections import Counter

from falctl.core.policies import POLICIES
from tests.sim.world import World

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--policy", choices=POLICIES, default=POLICIES[0])
given = parser.parse_args()
world = World(given.seed, policy=given.policy)
world.run(120, over_s=100.0)
print(dict(Counter(world.fate.values())), f"loads={world.loads} bypass_max_s={world.bypass_max_s:.1f}")
