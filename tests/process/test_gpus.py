"""GPUs on a machine that has none: which runner gets which card, and what happens when a card or NVML fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nvml import (
    GPU_IS_LOST,
    HANG_ALL,
    HANG_LOAD,
    LIB_RM_VERSION_MISMATCH,
    FakeNvml,
    GiB,
    card,
    mig_card,
)
from tests.fakes.nvml.fixtures import MakeNvml
from tests.process.harness import REPOSITORY, Ended, Falctl, end_of
from tests.wait import until

pytestmark = pytest.mark.process

APP = f"{Path(__file__).with_name('card_app.py')}::CardApp"
CUDA_TORCH = REPOSITORY / "tests" / "fakes" / "cuda_torch"
NEWS_S = 10.0
"""A change of a card is on the board within a second or two; unknown after five of silence."""


@pytest.fixture
def four(make_nvml: MakeNvml) -> FakeNvml:
    return make_nvml(*(card(i) for i in range(4)))


def falctl(machine: FakeNvml, *args: str, config: str = "", env: dict[str, str] | None = None) -> Falctl:
    environ = {**machine.environ, **(env or {})}
    return Falctl(APP, args=args, config=config, env=environ, python_path=[CUDA_TORCH])


def refused(machine: FakeNvml, *args: str, config: str = "", env: dict[str, str] | None = None) -> Ended:
    environ = {**machine.environ, **(env or {})}
    return end_of(APP, args=args, config=config, env=environ, python_path=[CUDA_TORCH])


def environments(f: Falctl) -> list[dict[str, str]]:
    """Return the environment of every runner, by runner: as the app sees it, asked until each has answered."""
    found: dict[int, dict[str, str]] = {}

    def ask() -> bool:
        answer: dict[str, Any] = f.post("/environ").json
        found[answer["runner"]] = answer["environ"]
        return len(found) == f.board().runners

    until(ask, within_s=30.0, what="every runner has answered")
    return [found[i] for i in sorted(found)]


def serving(f: Falctl, count: int) -> set[int]:
    """Return the runners that answer requests, asked until *count* different ones have."""
    found: set[int] = set()

    def ask() -> bool:
        found.add(f.post("/who").json["runner"])
        return len(found) >= count

    until(ask, within_s=30.0, what=f"{count} runners have answered")
    return found


def all_ok(f: Falctl, *rows: int) -> None:
    """Wait until these cards are well: one that is not looked at for five seconds, as on a busy machine, is unknown."""
    until(
        lambda: [f.gpu(i).state for i in rows] == ["ok"] * len(rows), within_s=NEWS_S, what=f"{rows} are ok"
    )


def pins(f: Falctl) -> list[str]:
    return [environ["CUDA_VISIBLE_DEVICES"] for environ in environments(f)]


# --- which runner gets which card ----------------------------------------------------------------


def test_every_card_gets_one_runner_that_sees_it_alone(four: FakeNvml) -> None:
    with falctl(four) as f:
        seen = environments(f)
        assert [environ["CUDA_VISIBLE_DEVICES"] for environ in seen] == four.uuids
        assert {environ["CUDA_DEVICE_ORDER"] for environ in seen} == {"PCI_BUS_ID"}
        assert {f.post("/who").json["device"] for _ in range(4)} == {"cuda"}
        assert [f.life(i).gpus for i in range(4)] == [(0,), (1,), (2,), (3,)]
        assert [f.gpu(i).gpu_uuid for i in range(4)] == four.uuids
        assert "falctl: 4 GPU runners of" in f.log
        assert f.stop() == 0


@pytest.mark.parametrize(
    ("choice", "cards"), [("0,2", [0, 2]), ("3,1", [3, 1]), ("GPU-2fa1c71e-0000-4000-8000-000000000002", [2])]
)
def test_the_flag_chooses_cards_and_their_order(four: FakeNvml, choice: str, cards: list[int]) -> None:
    with falctl(four, "--gpus", choice) as f:
        assert pins(f) == [four.uuids[i] for i in cards]
        assert [f.gpu(row).gpu_index for row in range(len(cards))] == cards


def test_a_card_named_twice_has_two_runners_and_one_row(four: FakeNvml) -> None:
    with falctl(four, config="[runners]\ngpus = [1, 1]\n") as f:
        assert pins(f) == [four.uuids[1]] * 2
        assert f.board().gpus == 1
        assert [f.life(i).gpus for i in range(2)] == [(0,), (0,)]


def test_a_runner_may_have_two_cards_in_the_order_given(four: FakeNvml) -> None:
    with falctl(four, config="[runners]\ngpus = [[1, 0]]\n") as f:
        assert pins(f) == [f"{four.uuids[1]},{four.uuids[0]}"]
        assert f.life(0).gpus == (0, 1)
        assert [f.gpu(row).gpu_index for row in (0, 1)] == [1, 0]


@pytest.mark.parametrize(
    ("outer", "args", "cards"),
    [("2,0", (), [2, 0]), ("3,GPU-1", (), [3, 1]), ("1,9,2", (), [1]), ("2,0", ("--gpus", "2"), [2])],
)
def test_the_callers_cuda_visible_devices_cuts_and_orders(
    four: FakeNvml, outer: str, args: tuple[str, ...], cards: list[int]
) -> None:
    with falctl(four, *args, env={"CUDA_VISIBLE_DEVICES": outer}) as f:
        assert pins(f) == [four.uuids[i] for i in cards]


def test_a_caller_that_hides_every_card_gets_cpu_runners_and_is_told(four: FakeNvml) -> None:
    with falctl(four, env={"CUDA_VISIBLE_DEVICES": ""}) as f:
        assert pins(f) == ["", ""]
        assert "falctl: no GPU is visible here: starting 2 CPU runners" in f.log
        assert {f.gpu(i).kind for i in range(f.board().gpus)} == {"cpu"}


def test_a_sick_driver_does_not_matter_to_who_wants_no_gpu(make_nvml: MakeNvml) -> None:
    machine = make_nvml(card(0), init=LIB_RM_VERSION_MISMATCH)
    with falctl(machine, "--gpus", "none") as f:
        assert pins(f) == ["", ""]


@pytest.mark.parametrize("env", [{}, {"FAKE_CUDA_NAMES_PARENTS": "1"}])
def test_a_mig_instance_is_a_card_whichever_uuid_cuda_gives_it(
    make_nvml: MakeNvml, env: dict[str, str]
) -> None:
    machine = make_nvml(mig_card(0, instances=2), card(1))
    instance = machine.cards[0].instances[1].uuid
    with falctl(machine, "--gpus", f"{instance},1", env=env) as f:
        assert pins(f) == [instance, machine.uuids[1]]
        assert f.gpu(0).total_bytes == 10 * GiB


# --- refusals ------------------------------------------------------------------------------------


def refusal_of(ended: Ended) -> str:
    """Return the one line for its user, of a start that failed in a runner."""
    assert ended.code == 1
    (line,) = [line for line in ended.lines if line.startswith("falctl: ")]
    return line


@pytest.mark.parametrize("choice", ["7", "GPU-feedbeef", "0,4"])
def test_an_unknown_card_is_refused_in_one_line(four: FakeNvml, choice: str) -> None:
    ended = refused(four, "--gpus", choice)
    assert ended.code == 2
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith("falctl: runners.gpus: no GPU ")
    assert f"0 ({four.uuids[0]})" in ended.lines[0]


def test_a_hidden_card_is_refused(four: FakeNvml) -> None:
    ended = refused(four, "--gpus", "0", env={"CUDA_VISIBLE_DEVICES": "1"})
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert f"no GPU 0; visible here: 1 ({four.uuids[1]})" in ended.lines[0]


@pytest.mark.parametrize("args", [(), ("--gpus", "0")])
def test_a_mig_parent_is_refused_with_its_instances_named(make_nvml: MakeNvml, args: tuple[str, ...]) -> None:
    machine = make_nvml(mig_card(0, instances=2), card(1))
    ended = refused(machine, *args)
    assert (ended.code, len(ended.lines)) == (2, 1)
    instances = ",".join(instance.uuid for instance in machine.cards[0].instances)
    assert (
        f"is in MIG mode and cannot be used whole; name its instances instead: --gpus {instances}"
        in ended.lines[0]
    )


def test_a_driver_upgraded_under_us_is_refused_in_one_line(make_nvml: MakeNvml) -> None:
    ended = refused(make_nvml(card(0), init=LIB_RM_VERSION_MISMATCH))
    assert (ended.code, len(ended.lines)) == (1, 1)
    assert ended.lines[0].startswith("falctl: the NVIDIA driver was upgraded while it is loaded")


def test_a_cpu_build_of_torch_is_refused_and_never_runs_silently(four: FakeNvml) -> None:
    ended = end_of(APP, env=four.environ, args=("--gpus", "0"))  # the real torch of this environment
    line = refusal_of(ended)
    assert line.startswith("falctl: gpu0.0: this torch cannot use GPUs (driver 999.42, torch ")
    assert "built for CUDA none): install a CUDA build of torch" in line
    assert "--gpus none" in line


def test_a_card_that_nvml_lists_and_cuda_does_not_is_refused(four: FakeNvml) -> None:
    ended = refused(four, config="[runners]\ngpus = [[0, 1]]\n", env={"FAKE_CUDA_HIDES": four.uuids[1]})
    line = refusal_of(ended)
    assert line.startswith("falctl: gpu0+1.0: torch sees 0fa1c71e-0000-4000-8000-000000000000, wanted ")
    assert (
        f"wanted {four.uuids[0]}, {four.uuids[1]} (driver 999.42, torch 2.11.0+fake built for CUDA 13.0)"
        in line
    )


def test_no_card_at_all_in_cuda_is_refused_with_the_fix(four: FakeNvml) -> None:
    line = refusal_of(refused(four, "--gpus", "0", env={"FAKE_CUDA_HIDES": four.uuids[0]}))
    assert f"torch sees no GPU, wanted {four.uuids[0]} (driver 999.42, torch 2.11.0+fake" in line
    assert "update the driver, or install a torch built for the CUDA release" in line


@pytest.mark.parametrize("cards", ["[0]", "[[1, 0]]"])
def test_what_cuda_complains_of_is_in_the_line(four: FakeNvml, cards: str) -> None:
    env = {"FAKE_CUDA_BREAKS": four.uuids[0]}
    line = refusal_of(refused(four, config=f"[runners]\ngpus = {cards}\n", env=env))
    assert "CUDA error: uncorrectable ECC error encountered Compile with" in line


def test_a_card_that_falls_off_while_runners_start_ends_the_start(make_nvml: MakeNvml) -> None:
    machine = make_nvml(card(0), card(1, late_error=GPU_IS_LOST))
    line = refusal_of(refused(machine))
    assert (
        line == f"falctl: gpu1.1: GPU 1 ({machine.uuids[1]}) is lost; see `nvidia-smi` and dmesg for its XID"
    )


# --- what the board tells ------------------------------------------------------------------------


def test_the_rows_say_what_nvml_says_and_follow_it(make_nvml: MakeNvml) -> None:
    machine = make_nvml(card(0, util_pct=12), card(1, util_pct=-1, power_mw=-1))
    with falctl(machine) as f:
        until(lambda: f.gpu(0).util_pct == 12, within_s=NEWS_S, what="the first sample")
        until(lambda: f.gpu(1).temp_c == 41, within_s=NEWS_S, what="the first sample of the other card")
        first, second = (f.gpu(i) for i in (0, 1))
        assert (first.kind, first.state, first.gpu_index, first.name) == ("cuda", "ok", 0, "Fake H000")
        assert (first.used_bytes, first.total_bytes) == (GiB, 80 * GiB)
        assert (first.temp_c, first.power_w, first.power_limit_w) == (40, 100.0, 700.0)
        assert (second.util_pct, second.power_w) == (None, None)

        machine.change(0, used_bytes=60 * GiB, util_pct=99, temp_c=81, power_mw=650_000, limit_mw=600_000)
        until(lambda: f.gpu(0).util_pct == 99, within_s=NEWS_S, what="the change")
        all_ok(f, 0)
        told = f.status()["cards"][0]
        assert told["used_bytes"] == 60 * GiB
        assert (told["temp_c"], told["power_w"], told["power_limit_w"]) == (81, 650.0, 600.0)
        assert (told["gpu_uuid"], told["state"], told["stale"]) == (machine.uuids[0], "ok", False)
        assert f.gpu(1).temp_c == 41


def test_a_card_that_falls_off_takes_its_runner_and_no_other(four: FakeNvml) -> None:
    with falctl(four) as f:
        pids = f.pids()
        four.change(2, error=GPU_IS_LOST)
        life = f.wait_state(2, "failed", within_s=NEWS_S)
        assert life.reason == f"GPU 2 ({four.uuids[2]}) is lost; see `nvidia-smi` and dmesg for its XID"
        assert life.pid == 0
        assert f.gpu(2).state == "lost"
        assert not Path(f"/proc/{pids['runner2']}").exists()
        assert serving(f, 3) == {0, 1, 3}
        all_ok(f, 0, 1, 3)
        assert {f.life(i).pid for i in (0, 1, 3)} == {pids[f"runner{i}"] for i in (0, 1, 3)}
        told = f.status()
        assert told["cards"][2]["state"] == "lost"
        assert (told["runners"][2]["state"], told["runners"][2]["restarts"]) == ("failed", 0)
        assert f.stop() == 0


def test_an_xid_replaces_its_runner_or_leaves_it_to_the_app_or_takes_it_for_good(four: FakeNvml) -> None:
    with falctl(four) as f:
        pids = f.pids()
        four.tell_xid(0, 31)
        four.tell_xid(1, 94)
        until(lambda: f.life(1).epoch == 2, within_s=NEWS_S, what="another process")
        f.wait_state(1, "ready")
        f.wait_line(rf"killed epoch=1 reason=GPU 1 \({four.uuids[1]}\): XID 94, contained ECC error")
        assert f.life(1).pid != pids["runner1"]
        f.wait_line(rf"gpu.xid GPU 0 \({four.uuids[0]}\): XID 31, GPU memory page fault; left to the app")
        assert [f.life(i).epoch for i in (0, 2, 3)] == [1] * 3
        assert serving(f, 4) == {0, 1, 2, 3}
        four.tell_xid(3, 79)
        life = f.wait_state(3, "failed", within_s=NEWS_S)
        assert life.reason == (
            f"GPU 3 ({four.uuids[3]}): XID 79, it has fallen off the bus; it has to be reset, see `nvidia-smi` and dmesg"
        )
        assert life.restarts == 0
        assert serving(f, 3) == {0, 1, 2}


def test_a_card_with_two_runners_takes_both(four: FakeNvml) -> None:
    with falctl(four, config="[runners]\ngpus = [0, 1, 0]\n") as f:
        four.change(0, error=GPU_IS_LOST)
        for runner in (0, 2):
            f.wait_state(runner, "failed", within_s=NEWS_S)
        assert {f.post("/who").json["runner"] for _ in range(4)} == {1}


def test_when_nvml_hangs_for_one_card_or_altogether_all_serve_on_and_it_can_be_stopped(
    four: FakeNvml,
) -> None:
    with falctl(four) as f:
        four.change(1, hang=HANG_ALL)
        until(lambda: f.gpu(1).state == "unknown", within_s=2 * NEWS_S, what="the row is unknown")
        assert serving(f, 4) == {0, 1, 2, 3}
        four.change(0, util_pct=55)
        until(lambda: f.gpu(0).util_pct == 55, within_s=NEWS_S, what="another card is still looked at")
        all_ok(f, 0, 2, 3)
        four.change(1, hang=0, util_pct=66)
        until(lambda: f.gpu(1).util_pct == 66, within_s=NEWS_S, what="the card answers again")
        all_ok(f, 1)

        four.hold(hang=True)
        until(
            lambda: all(f.gpu(i).state == "unknown" for i in range(4)),
            within_s=2 * NEWS_S,
            what="all rows are unknown",
        )
        assert serving(f, 4) == {0, 1, 2, 3}
        assert f.stop() == 0


def test_a_card_that_never_answers_after_the_start_turns_unknown_too(make_nvml: MakeNvml) -> None:
    with falctl(make_nvml(card(0, hang=HANG_LOAD), card(1))) as f:
        until(lambda: f.gpu(0).state == "unknown", within_s=2 * NEWS_S, what="the row is unknown")
        all_ok(f, 1)
