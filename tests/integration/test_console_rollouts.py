"""The pages of rollouts: who sees what, which buttons there are for whom, what they say, what they do."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from django.test import Client

from accounts.models import AuditEntry, Membership, Role
from console.live import feed_of
from inference.errors import NotFound
from rollouts.models import Rollout
from rollouts.plans import Analyze, Approve, Pause, Plan, SetWeight
from tests.support.cast import Cast, make_cast
from tests.support.rollout_show import begin, controller, judged, tick_until, traffic
from tests.support.rollouts import PASS, Word, drive, stage

pytestmark = pytest.mark.django_db
RAMP = Plan("ramp", [SetWeight(1000), Analyze(), SetWeight(5000), Analyze(), SetWeight(10_000)])
ASKS = Plan("asks", [SetWeight(2500), Approve("operator"), SetWeight(10_000)])
WAITS = Plan("waits", [SetWeight(1000), Pause(None), SetWeight(10_000)])


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)


@pytest.fixture
def cast() -> Cast:
    return make_cast()


def client_of(person: Any) -> Client:
    client = Client()
    client.force_login(person, backend="accounts.login.LimitedBackend")
    return client


def page_of(person: Any, path: str) -> str:
    response = client_of(person).get(path)
    assert response.status_code == 200, (path, response.status_code)
    return str(response.content.decode())


def running(
    cast: Cast, plan: Plan = RAMP, *, phase: str = "progressing", step: int = 1, by: str = "developer"
) -> Rollout:
    endpoint, _, candidate = stage(cast.actor(by), of=cast.red)
    ticker, _, _ = controller()
    return tick_until(begin(endpoint, candidate, plan, cast.actor(by)), ticker, phase, step=step)


def url_of(rollout: Rollout) -> str:
    return f"/rollouts/{rollout.pk}/"


def buttons(html: str) -> list[str]:
    return re.findall(r'formaction="/rollouts/[0-9a-f-]+/(\w+)/"', html)


def test_the_page_tells_where_it_stands(cast: Cast) -> None:
    rollout = running(cast)
    traffic(rollout, seconds=40)
    judged(rollout)
    html = page_of(cast.developer, url_of(rollout))
    assert "digits: version 1 → 2" in html
    assert "10 % of the traffic" in html
    assert html.count('aria-current="step"') == 1
    assert "It waits for the judge, at most" in html
    assert "Slower than the median" in html
    assert re.search(r"about [\d,]+ more requests", html)
    assert "The split of the traffic is as asked for" in html
    assert buttons(html) == ["promote", "pause", "extend", "promote_full", "abort"]
    assert re.search(r"Moves 10 % = about \d[\d.]* requests/s back to version 1", html)
    assert len(html.encode()) < 100_000


def test_a_viewer_sees_all_and_may_nothing(cast: Cast) -> None:
    rollout = running(cast)
    html = page_of(cast.teammate, url_of(rollout))
    assert buttons(html) == []
    assert "What happened" in html
    for verb in ("promote", "promote_full", "pause", "resume", "extend", "abort"):
        assert client_of(cast.teammate).post(f"{url_of(rollout)}{verb}/").status_code == 403
    rollout.refresh_from_db()
    assert rollout.phase == "progressing"


def test_what_others_roll_out_does_not_exist(cast: Cast) -> None:
    rollout = running(cast)
    stranger = client_of(cast.stranger)
    for path in (url_of(rollout), f"{url_of(rollout)}readings.json", f"/rollouts/{uuid.uuid4()}/"):
        assert stranger.get(path).status_code == 404
    assert stranger.post(f"{url_of(rollout)}abort/").status_code == 404
    assert stranger.post("/endpoints/digits/rollback/").status_code == 404
    assert "digits" not in page_of(cast.stranger, "/rollouts/")
    with pytest.raises(NotFound):
        feed_of(cast.actor("stranger"), f"rollout:{rollout.pk}")
    with pytest.raises(NotFound):
        feed_of(cast.actor("developer"), "rollout:../..")


@pytest.mark.parametrize(
    ("verb", "phase", "step"),
    [("promote", "progressing", 2), ("promote_full", "promoting", 5), ("pause", "paused", 1), ("abort", "aborting", 1)],
)
def test_a_button_does_what_it_says(cast: Cast, verb: str, phase: str, step: int) -> None:
    rollout = running(cast)
    response = client_of(cast.developer).post(f"{url_of(rollout)}{verb}/", {"reason": "as agreed"}, follow=True)
    assert response.redirect_chain == [(url_of(rollout), 302)]
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.step) == (phase, step)
    assert "as agreed" in response.content.decode()
    entry = AuditEntry.objects.get(verb=f"{verb.removesuffix('_full')}_rollout")
    assert (entry.actor, entry.reason) == ("developer", "as agreed")


def test_a_refusal_is_a_message(cast: Cast) -> None:
    rollout = running(cast)
    html = client_of(cast.developer).post(f"{url_of(rollout)}resume/", follow=True).content.decode()
    assert "nobody paused this rollout" in html


def test_paused_it_can_be_resumed(cast: Cast) -> None:
    rollout = running(cast)
    client_of(cast.developer).post(f"{url_of(rollout)}pause/")
    html = page_of(cast.developer, url_of(rollout))
    assert buttons(html) == ["promote", "resume", "extend", "promote_full", "abort"]
    assert "It stays here until somebody resumes" in html
    client_of(cast.developer).post(f"{url_of(rollout)}resume/")
    rollout.refresh_from_db()
    assert (rollout.phase, rollout.held) == ("progressing", False)


def test_only_another_operator_approves(cast: Cast) -> None:
    rollout = running(cast, ASKS, phase="awaiting_approval")
    assert "0 of 1 approval" in page_of(cast.developer, url_of(rollout))
    assert "approve" not in buttons(page_of(cast.developer, url_of(rollout)))
    assert "approve" not in buttons(page_of(cast.teammate, url_of(rollout)))
    assert client_of(cast.teammate).post(f"{url_of(rollout)}approve/").status_code == 403
    assert buttons(page_of(cast.owner, url_of(rollout)))[0] == "approve"
    client_of(cast.owner).post(f"{url_of(rollout)}approve/", {"reason": "looks good"})
    rollout.refresh_from_db()
    assert [one["by"] for one in rollout.approvals] == ["owner"]
    assert "approve" not in buttons(page_of(cast.owner, url_of(rollout)))


def test_who_started_it_has_no_approve_button(cast: Cast) -> None:
    rollout = running(cast, ASKS, phase="awaiting_approval", by="owner")
    assert "approve" not in buttons(page_of(cast.owner, url_of(rollout)))


def test_after_success_one_can_go_back(cast: Cast) -> None:
    endpoint, _, candidate = stage(cast.actor("developer"), of=cast.red)
    ticker, _, clock = controller(Word(PASS))
    rollout = drive(begin(endpoint, candidate, RAMP, cast.actor("developer")), ticker, clock)
    assert rollout.phase == "succeeded"
    html = page_of(cast.developer, url_of(rollout))
    assert "Go back to version 1" in html
    assert buttons(html) == []
    assert html.count('class="failed"') == 0
    assert "Go back" not in page_of(cast.teammate, url_of(rollout))
    response = client_of(cast.developer).post("/endpoints/digits/rollback/", {"reason": "customers complain"})
    back = Rollout.objects.get(is_rollback=True)
    assert response["Location"] == url_of(back)
    assert (back.stable_id, back.candidate_id) == (rollout.candidate_id, rollout.stable_id)
    assert "Go back" not in page_of(cast.developer, url_of(rollout)), "one is active"


def test_a_failed_one_shows_where_it_ended(cast: Cast) -> None:
    rollout = running(cast)
    traffic(rollout, seconds=120, errors=0.3)
    judged(rollout)
    client_of(cast.developer).post(f"{url_of(rollout)}abort/")
    ticker, _, clock = controller()
    drive(rollout, ticker, clock)
    assert rollout.phase == "rolled_back"
    html = page_of(cast.developer, url_of(rollout))
    assert html.count('class="failed"') == 1
    assert "Fails" in html
    assert buttons(html) == []


def test_parts_are_fragments(cast: Cast) -> None:
    rollout = running(cast)
    for part, has in (("rollout", "track"), ("judge", "Guardrails"), ("events", "What happened")):
        html = page_of(cast.developer, f"{url_of(rollout)}?part={part}")
        assert has in html
        assert "<html" not in html


def test_readings_are_a_plot_of_the_interval(cast: Cast) -> None:
    rollout = running(cast)
    traffic(rollout, seconds=120)
    judged(rollout, looks=8)
    client = client_of(cast.teammate)
    told = client.get(f"{url_of(rollout)}readings.json?metric=error_rate").json()
    assert told["metric"] == "error_rate"
    assert 1 <= len(told["points"]) <= 8
    for point in told["points"]:
        assert point["low"] <= point["difference"] <= point["high"]
        assert point["margin"] == 0.002
    assert [one["at"] for one in told["points"]] == sorted(one["at"] for one in told["points"])
    assert client.get(f"{url_of(rollout)}readings.json?metric=nothing").status_code == 404


def test_the_topic_tells_both_arms_and_what_changed(cast: Cast) -> None:
    rollout = running(cast)
    traffic(rollout, seconds=60, per_s=50)
    read = feed_of(cast.actor("teammate"), f"rollout:{rollout.pk}").read
    before = read()
    assert before["weight_bp"] == 1000
    assert before["stable_rps"] == pytest.approx(45, rel=0.2)
    assert before["candidate_rps"] == pytest.approx(5, rel=0.3)
    assert before["rate_per_s"] == pytest.approx(before["stable_rps"] + before["candidate_rps"], abs=0.05)
    assert {side for point in before["points"] for side in point["arms"]} == {"stable", "candidate"}
    client_of(cast.developer).post(f"{url_of(rollout)}pause/")
    after = read()
    assert after["phase"] == "paused"
    changed = {name for name, mark in after["stamps"].items() if before["stamps"][name] != mark}
    assert changed == {"rollout", "events"}


def test_copies_are_the_candidates_figures_while_it_has_no_other(cast: Cast) -> None:
    from rollouts.plans import Mirror

    copies = Plan("copies", [Mirror(10_000), Pause(None)])
    rollout = running(cast, copies, phase="paused")
    traffic(rollout, seconds=60, per_s=20, arm="shadow")
    told = feed_of(cast.actor("teammate"), f"rollout:{rollout.pk}").read()
    assert told["candidate_rps"] > 0
    assert told["rate_per_s"] == told["stable_rps"], "copies are no callers"
    assert "Compared" in page_of(cast.teammate, url_of(rollout))


def test_the_list_has_the_active_ones_first(cast: Cast) -> None:
    rollout = running(cast)
    html = page_of(cast.teammate, "/rollouts/")
    assert "digits v1 → v2" in html
    assert "Now" in html
    before = feed_of(cast.actor("teammate"), "rollouts").read()
    client_of(cast.developer).post(f"{url_of(rollout)}abort/")
    assert feed_of(cast.actor("teammate"), "rollouts").read() != before
    ticker, _, clock = controller()
    drive(rollout, ticker, clock)
    html = page_of(cast.teammate, "/rollouts/?before=nonsense")
    assert "<h2>Now</h2>" not in html
    assert "digits v1 → v2" in html
    assert "digits v1" not in page_of(cast.teammate, "/rollouts/?before=1")


def test_a_developer_elsewhere_is_a_viewer_here(cast: Cast) -> None:
    rollout = running(cast)
    Membership.objects.create(user=cast.stranger, team=cast.red, role=Role.VIEWER)
    assert buttons(page_of(cast.stranger, url_of(rollout))) == []
    assert client_of(cast.stranger).post(f"{url_of(rollout)}abort/").status_code == 403
