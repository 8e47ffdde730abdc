"""What a rollout does next: single decisions, and whole rollouts in a world whose replicas come, crash and lag."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.protocol.routes import WEIGHT_TOTAL_BP
from rollouts import plans
from rollouts.facts import Decision, Facts, State, Verdict
from rollouts.phases import ACTIVE, FINAL, MOVES, Phase, Reason
from rollouts.plans import Analyze, Approve, Mirror, Pause, Plan, PlanSettings, SetScale, SetWeight, Traffic
from rollouts.stepping import decide

PASS = Verdict("pass", "fine", requests=10_000)
HOLD = Verdict("hold", "not sure yet", requests=10)
RAMP = Plan("ramp", [SetWeight(100), Analyze(), SetWeight(5000), Analyze(), SetWeight(10_000)])


@dataclass
class World:
    """Replicas that load one per tick and stop at once, unless told otherwise; no more than `room` run at a time."""

    plan: Plan
    capacity: int = 2
    room: int = 100
    state: State = field(init=False)
    now: float = 1000.0
    stable_wanted: int = field(init=False)
    stable_ready: int = field(init=False)
    canary_wanted: int = 0
    canary_ready: int = 0
    crashes: int = 0
    verdict: Verdict = HOLD
    smoke: tuple[bool, str] | None = (True, "answered as saved")
    load_error: str = ""
    log: list[Decision] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stable_wanted = self.stable_ready = self.capacity
        self.state = State(Phase.PENDING, 0, self.now, self.now, capacity=self.capacity)

    def facts(self) -> Facts:
        return Facts(
            self.now, self.stable_ready, self.stable_wanted, self.stable_ready, self.canary_ready, self.canary_wanted,
            self.crashes, self.load_error, smoke=self.smoke, verdict=self.verdict,
        )  # fmt: skip

    def settle(self) -> None:
        """Every decision that is due, written as the controller writes it."""
        for _ in range(24):
            decision = decide(self.plan, self.state, self.facts())
            if decision.is_nothing or decision.ask_smoke:
                return
            self.write(decision)
        raise AssertionError(f"it does not settle: {self.log[-4:]}")

    def write(self, decision: Decision) -> None:
        self.log.append(decision)
        if decision.stable_replicas is not None:
            self.stable_wanted = decision.stable_replicas
            self.stable_ready = min(self.stable_ready, self.stable_wanted)
        if decision.canary_replicas is not None:
            self.canary_wanted = decision.canary_replicas
            self.canary_ready = min(self.canary_ready, self.canary_wanted)
        state = self.state
        if decision.phase is not None:
            assert decision.phase in MOVES[state.phase]
            state = replace(state, phase=decision.phase, phase_at=self.now)
        if decision.step is not None:
            state = replace(state, step=decision.step, step_at=self.now, approvals=0)
        traffic = decision.traffic
        if traffic is not None:
            had = state.has_had_traffic or bool(traffic.weight_bp or traffic.mirror_bp)
            state = replace(
                state,
                weight_bp=traffic.weight_bp,
                mirror_bp=traffic.mirror_bp,
                match=traffic.match,
                has_had_traffic=had,
            )
        self.state = replace(state, reason=decision.reason)

    def load(self) -> None:
        """One replica of each version gets ready, as far as there is room."""
        if self.stable_ready < self.stable_wanted and self.stable_ready + self.canary_ready < self.room:
            self.stable_ready += 1
        if self.canary_ready < self.canary_wanted and self.stable_ready + self.canary_ready < self.room:
            self.canary_ready += 1

    def run(self, ticks: int = 200, dt: float = 15.0) -> World:
        for _ in range(ticks):
            self.settle()
            if self.state.phase in FINAL:
                return self
            self.now += dt
            self.load()
        return self


def test_a_candidate_that_passes_becomes_the_stable_version_by_a_flip() -> None:
    world = World(RAMP, verdict=PASS).run()
    assert world.state.phase is Phase.SUCCEEDED
    assert world.state.weight_bp == WEIGHT_TOTAL_BP
    assert world.stable_wanted == 2, "the old version keeps its replicas until it is put away"
    weights = [one.traffic.weight_bp for one in world.log if one.traffic is not None]
    assert weights == sorted(weights)


def test_it_waits_for_replicas_before_it_gives_a_share() -> None:
    world = World(RAMP, capacity=4, verdict=PASS)
    world.settle()
    assert world.state.phase is Phase.LOADING
    assert (world.canary_wanted, world.state.weight_bp) == (1, 0)
    world.load()
    world.settle()
    assert world.state.weight_bp == 100
    world.now += 15
    world.settle()
    assert world.canary_wanted == 2, "half of the traffic needs half of the replicas"
    assert world.state.weight_bp == 2500, "one of four carries a quarter"
    world.load()
    world.settle()
    assert world.state.weight_bp == 5000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"verdict": Verdict("fail", "more errors")}, Reason.GUARDRAIL),
        ({"verdict": Verdict("fail", "NaN", is_hard_stop=True)}, Reason.HARD_STOP),
        ({"load_error": "out of memory"}, Reason.LOAD_FAILED),
    ],
)
@pytest.mark.parametrize("held", [False, True], ids=["running", "paused"])
def test_the_guards_are_armed_in_every_phase_with_traffic(
    change: dict[str, object], reason: Reason, held: bool
) -> None:
    world = World(Plan("p", [SetWeight(1000), Pause(None), SetWeight(10_000)]))
    world.run(5)
    assert world.state.phase is Phase.PAUSED
    assert world.state.weight_bp == 1000
    world.state = replace(world.state, held=held)
    for name, value in change.items():
        setattr(world, name, value)
    world.settle()
    assert world.state.phase is Phase.ABORTING
    assert (world.state.weight_bp, world.state.reason) == (0, reason)
    world.run()
    assert world.state.phase is Phase.ROLLED_BACK
    assert world.canary_wanted == 0


def test_what_is_never_given_traffic_fails_and_is_not_rolled_back() -> None:
    world = World(RAMP, load_error="no such operator")
    world.run()
    assert world.state.phase is Phase.FAILED


def test_wrong_answers_to_the_golden_inputs_stop_it_before_the_first_request() -> None:
    world = World(RAMP, smoke=(False, "2 of 5 differ")).run()
    assert (world.state.phase, world.state.has_had_traffic) == (Phase.FAILED, False)
    assert any("2 of 5 differ" in one.words for one in world.log)


def test_replicas_that_do_not_come_in_time_stop_it() -> None:
    world = World(RAMP, capacity=2, room=2)
    world.run(60, dt=20.0)
    assert world.state.phase is Phase.FAILED
    assert any(one.reason is Reason.LOAD_TIMEOUT for one in world.log)


def test_what_cannot_be_decided_holds_and_goes_on_when_it_is_decided() -> None:
    world = World(RAMP)
    world.run(80)
    assert (world.state.phase, world.state.weight_bp) == (Phase.INCONCLUSIVE, 100)
    world.verdict = PASS
    world.run()
    assert world.state.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(("what", "end"), [("rollback", Phase.ROLLED_BACK), ("promote", Phase.SUCCEEDED)])
def test_a_plan_may_say_what_to_do_when_it_cannot_be_decided(what: str, end: Phase) -> None:
    plan = Plan("p", RAMP.steps, PlanSettings(on_inconclusive=what))  # type: ignore[arg-type]
    assert World(plan).run(400).state.phase is end


def test_an_unhealthy_split_holds_and_never_passes() -> None:
    world = World(RAMP, verdict=Verdict("unhealthy", "the split is wrong", requests=10_000)).run(50)
    assert (world.state.phase, world.state.reason) == (Phase.INCONCLUSIVE, Reason.UNHEALTHY)
    world.verdict = PASS
    assert world.run().state.phase is Phase.SUCCEEDED


def test_an_approval_is_waited_for() -> None:
    world = World(Plan("p", [SetWeight(1000), Approve("operator", 2), SetWeight(10_000)]), verdict=PASS)
    world.run(5)
    assert world.state.phase is Phase.AWAITING_APPROVAL
    world.state = replace(world.state, approvals=1)
    world.run(5)
    assert world.state.phase is Phase.AWAITING_APPROVAL
    world.state = replace(world.state, approvals=2)
    assert world.run().state.phase is Phase.SUCCEEDED


def test_a_pause_ends_by_itself_and_a_held_rollout_does_not() -> None:
    plan = Plan("p", [SetWeight(1000), Pause(60.0), SetWeight(10_000)])
    assert World(plan, verdict=PASS).run().state.phase is Phase.SUCCEEDED
    world = World(plan, verdict=PASS)
    world.run(3)
    world.state = replace(world.state, held=True)
    assert world.run(100).state.phase is Phase.PAUSED


def test_a_plan_that_only_reports_moves_no_traffic() -> None:
    world = World(plans.TEMPLATES["shadow-only"], verdict=PASS).run()
    assert (world.state.phase, world.state.weight_bp, world.state.mirror_bp) == (Phase.SUCCEEDED, 0, 0)
    assert any(one.traffic and one.traffic.mirror_bp for one in world.log)


def test_an_ab_test_ends_with_a_persons_decision() -> None:
    world = World(plans.TEMPLATES["ab"], verdict=PASS).run(100, dt=3600.0)
    assert (world.state.phase, world.state.reason) == (Phase.AWAITING_APPROVAL, Reason.DECISION)
    assert world.state.weight_bp == 5000


def test_a_step_that_judges_some_metrics_goes_on_when_those_are_met() -> None:
    plan = Plan("p", [SetWeight(1000), Analyze(metrics=["error_rate"]), SetWeight(10_000)])
    held = Verdict("hold", "latency is open", unmet=("slow_p99",), requests=500)
    assert World(plan, verdict=held).run().state.phase is Phase.SUCCEEDED
    open_too = replace(held, unmet=("slow_p99", "error_rate"))
    assert World(plan, verdict=open_too).run(20).state.phase is Phase.PROGRESSING


def test_a_share_falls_with_the_replicas_that_carry_it_and_comes_back() -> None:
    world = World(Plan("p", [SetWeight(5000), Pause(None)], PlanSettings(outcome="ask")), capacity=4)
    world.run(6)
    assert world.state.weight_bp == 5000
    world.canary_ready = 1
    world.settle()
    assert world.state.weight_bp == 2500
    world.load()
    world.settle()
    assert world.state.weight_bp == 5000


def test_a_candidate_without_any_replica_for_a_minute_is_given_up() -> None:
    world = World(Plan("p", [SetWeight(5000), Pause(None)], PlanSettings(outcome="ask")))
    world.run(4)
    world.canary_wanted = world.canary_ready = 0
    world.room = world.stable_ready
    world.run(30)
    assert world.state.phase is Phase.ROLLED_BACK


# -- where both versions do not fit -------------------------------------------------------------------------------------


def _without_surge(capacity: int = 3) -> World:
    return World(Plan("p", RAMP.steps, PlanSettings(surge=False)), capacity=capacity, room=capacity, verdict=PASS)


@pytest.mark.parametrize("capacity", [2, 3, 5])
def test_without_surge_replicas_are_exchanged_one_by_one(capacity: int) -> None:
    world = _without_surge(capacity)
    while world.state.phase not in FINAL:
        world.settle()
        assert world.stable_wanted + world.canary_wanted <= capacity
        assert world.stable_ready + world.canary_ready >= capacity - 1
        world.now += 15
        world.load()
        assert world.now < 10_000
    assert world.state.phase is Phase.SUCCEEDED
    assert (world.stable_wanted, world.canary_wanted) == (0, capacity)


def test_without_surge_an_abort_walks_the_same_way_back() -> None:
    world = _without_surge(4)
    while world.canary_ready < 2:
        world.settle()
        world.now += 15
        world.load()
    world.settle()
    world.verdict = Verdict("fail", "slower")
    world.settle()
    assert world.state.phase is Phase.ABORTING
    assert world.state.weight_bp > 0, "two of four replicas cannot carry everything"
    while world.state.phase not in FINAL:
        assert world.stable_ready + world.canary_ready >= 3
        world.now += 15
        world.load()
        world.settle()
        assert world.now < 10_000
    assert (world.stable_wanted, world.canary_wanted, world.state.weight_bp) == (4, 0, 0)


def test_without_surge_a_broken_candidate_loses_its_traffic_at_once() -> None:
    world = _without_surge(4)
    while world.canary_ready < 2:
        world.settle()
        world.now += 15
        world.load()
    world.verdict = Verdict("fail", "NaN", is_hard_stop=True)
    world.settle()
    assert world.state.weight_bp == 0


# -- the laws, in any world ---------------------------------------------------------------------------------------------

_VERDICTS = st.sampled_from([HOLD, PASS, PASS, Verdict("unhealthy", "split"), Verdict("fail", "worse")])
_STEPS = st.lists(
    st.one_of(
        st.sampled_from([SetWeight(w) for w in (1, 100, 500, 2500, 5000, 9999, 10_000)]),
        st.sampled_from(
            [Mirror(10_000), Mirror(0), SetScale(replicas=2), SetScale(percent=50), Pause(30.0), Approve()]
        ),
        st.just(Analyze(max_duration_s=60.0)),
    ),
    min_size=1,
    max_size=8,
)


@st.composite
def _plans(draw: st.DrawFn) -> Plan:
    steps = draw(_STEPS)
    weights = sorted(step.weight_bp for step in steps if isinstance(step, SetWeight))
    rising = iter(weights)
    steps = [SetWeight(next(rising)) if isinstance(step, SetWeight) else step for step in steps]
    settings = PlanSettings(
        surge=draw(st.booleans()),
        outcome=draw(st.sampled_from(["promote", "report", "ask"])),
        on_inconclusive=draw(st.sampled_from(["hold", "promote", "rollback"])),
    )
    return plans.checked(Plan("p", steps, settings))


@given(plan=_plans(), capacity=st.integers(2, 5), data=st.data())
def test_no_version_has_more_traffic_than_its_replicas_carry(plan: Plan, capacity: int, data: st.DataObject) -> None:
    """Law 1, whatever crashes and whatever the judge says; and nothing moves once it has ended."""
    world = World(plan, capacity, room=100 if plan.settings.surge else capacity)
    for _ in range(60):
        world.verdict = data.draw(_VERDICTS) if world.state.has_had_traffic else HOLD
        world.settle()
        _check(world)
        if world.state.phase in FINAL:
            assert decide(plan, world.state, world.facts()).is_nothing
            return
        world.now += data.draw(st.sampled_from([1.0, 15.0, 70.0]))
        if data.draw(st.integers(0, 9)) == 0 and world.canary_ready:
            world.canary_ready -= 1
        if data.draw(st.integers(0, 3)):
            world.load()


def _check(world: World) -> None:
    weight, plan = world.state.weight_bp, world.plan
    if world.state.phase is Phase.SUCCEEDED:
        return
    if plan.settings.surge:
        assert weight * world.capacity <= WEIGHT_TOTAL_BP * world.canary_ready
        assert world.stable_wanted == world.stable_ready == world.capacity
    else:
        assert world.stable_wanted + world.canary_wanted <= world.capacity
        if world.state.phase in ACTIVE - {Phase.ABORTING} and world.canary_ready + world.stable_ready:
            assert weight <= WEIGHT_TOTAL_BP * world.canary_ready // (world.canary_ready + world.stable_ready)
    if world.state.phase in {Phase.ROLLED_BACK, Phase.FAILED}:
        assert (weight, world.state.mirror_bp) == (0, 0)
        assert world.stable_wanted == world.capacity


@given(weights=st.lists(st.integers(1, 9999), min_size=1, max_size=5), capacity=st.integers(1, 6))
def test_a_candidate_that_always_passes_always_gets_there(weights: list[int], capacity: int) -> None:
    steps: list[plans.Step] = []
    for weight in sorted(weights):
        steps += [SetWeight(weight), Analyze()]
    world = World(Plan("p", [*steps, SetWeight(10_000)]), capacity, verdict=PASS).run(100)
    assert world.state.phase is Phase.SUCCEEDED
    assert Traffic(world.state.weight_bp) == Traffic(WEIGHT_TOTAL_BP)
