"""A person's way through the console in a real browser, on the real platform: from a dropped file to moved traffic."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import artifacts, hostile
from tests.support.browser import Visitor, chromium, drop, executable, screenshots, upload_speed
from tests.support.deadlines import accepted_for_s
from tests.support.house import PASSWORD, House, until
from tests.support.load import Load

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine"),
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("house"),
]
WIDE = {"width": 1360, "height": 860}
NARROW = {"width": 360, "height": 740}
ROW = [0.5, -1.0, 0.25, 2.0, 0.0, 1.0]
HEAVY_MIB = 24


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def visitor(house: House, browser: Any) -> Iterator[Visitor]:
    """Logged in as the first admin; the test fails when the browser's console has anything to complain about."""
    person = Visitor(browser, house.console_url, viewport=WIDE, permissions=["clipboard-read", "clipboard-write"])
    person.log_in("admin", PASSWORD)
    yield person
    person.context.close()
    assert person.troubles == []


def begin_upload(page: Any, model: str) -> None:
    page.goto("/upload/")
    page.wait_for_selector("[data-island=uploader][data-awake]")
    page.fill("#model", model)


def press(page: Any, name: str, within: str = "body") -> None:
    page.locator(within).get_by_role("button", name=name, exact=True).click()


def until_ready(page: Any, model: str, number: int = 1) -> None:
    """The version's page, followed without a reload until its badge says so."""
    page.wait_for_url(f"**/models/{model}/versions/{number}/")
    page.evaluate("() => { document.body.dataset.same = 'yes'; }")
    page.locator(".head .badge", has_text="Ready").wait_for(timeout=60_000)
    assert page.locator("body").get_attribute("data-same") == "yes"
    assert page.locator(".checks li.passed").count() >= 4


def deploy(page: Any, endpoint: str, number: int) -> None:
    """From the version's page to the endpoint's page, and on it until the replica is ready."""
    page.fill("#endpoint", endpoint)
    press(page, f"Deploy version {number}")
    page.wait_for_url(f"**/endpoints/{endpoint}/")
    page.locator(".replicas li", has_text=f"v{number}").locator(".badge.good").wait_for(timeout=60_000)


def shares(house: House, endpoint: str) -> dict[int, int]:
    return {one["version"]: one["weight_bp"] for one in house.ok("GET", f"/api/endpoints/{endpoint}/")["variants"]}


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def held_files(house: House, model: str, number: int = 1) -> dict[str, str]:
    """path -> sha256 as computed here from what the server has stored."""
    version = house.ok("GET", f"/api/models/{model}/versions/{number}/")
    found = {}
    for file in version["files"]:
        (blob,) = (house.data_dir / "artifacts" / "blobs").rglob(file["sha256"])
        found[file["path"]] = sha256(blob)
    return found


def test_from_a_dropped_file_to_moved_traffic(house: House, visitor: Visitor, tmp_path: Path) -> None:
    page, reference = visitor.page, artifacts.onnx_heavy(tmp_path / "v1", HEAVY_MIB)
    file = tmp_path / "v1" / "model.onnx"

    begin_upload(page, "browsed")
    drop(page, "[data-drop]", file)
    page.get_by_text("1 file, 0 B of 24.0 MB").wait_for()
    upload_speed(page, 4 << 20)
    press(page, "Upload")
    page.get_by_text("8.0 MB of 24.0 MB").first.wait_for()
    press(page, "Pause")
    words = page.locator("[data-words]")
    words.get_by_text("paused").wait_for()
    before = words.inner_text()
    page.wait_for_timeout(700)
    assert words.inner_text() == before
    upload_speed(page, -1)
    press(page, "Resume")
    until_ready(page, "browsed")
    assert held_files(house, "browsed") == {"model.onnx": sha256(file)}
    page.screenshot(path=screenshots(tmp_path) / "real-version-light.png", full_page=True)

    deploy(page, "browsed", 1)
    wanted = reference({"x": np.array([ROW], np.float32)})["y"][0]
    page.get_by_label(re.compile("^x ")).fill(", ".join(map(str, ROW)))
    page.locator("[data-island=try-it] [data-send]").click()
    result = page.locator("[data-result]")
    result.get_by_text("version 1").wait_for()
    answer = json.loads(result.locator("details pre").text_content())
    np.testing.assert_allclose(answer["outputs"][0]["data"], wanted, atol=1e-5)
    assert result.locator(".answer b").inner_text() == f"[{int(wanted.argmax())}]"

    page.get_by_role("button", name="Copy the curl text").click()
    page.get_by_text("Copied.").wait_for()
    line = page.evaluate("() => navigator.clipboard.readText()")
    done = subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"SERINUS_API_KEY": house.key},
        capture_output=True,
        timeout=30,
        check=True,
    )
    np.testing.assert_allclose(json.loads(done.stdout)["outputs"][0]["data"], np.ones(3), atol=1e-5)
    for label in ("Python", "tritonclient"):
        page.get_by_role("tab", name=label, exact=True).click()
        page.get_by_role("button", name=f"Copy the {label} text").click()
        page.get_by_text("Copied.").last.wait_for()
        script = page.evaluate("() => navigator.clipboard.readText()")
        environment = os.environ | {"SERINUS_API_KEY": house.key}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, (label, done.stderr[-800:])
        values = re.search(r"\[+([-\d., e]+)\]+[^\[]*$", done.stdout.decode())
        assert values, (label, done.stdout)
        np.testing.assert_allclose([float(one) for one in re.split(r"[, ]+", values[1].strip())], np.ones(3), atol=1e-5)

    second_version(house, visitor, tmp_path)
    move_traffic(house, page, {1: 9000, 2: 1000})
    move_traffic(house, page, {1: 5000, 2: 5000})
    under_load(house, page, screenshots(tmp_path))


def second_version(house: House, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    artifacts.torch_export(tmp_path / "v2")
    page.goto("/models/browsed/")
    page.get_by_role("link", name="Upload").first.click()
    page.wait_for_selector("[data-island=uploader][data-awake]")
    assert page.locator("#model").input_value() in {"", "browsed"}
    page.fill("#model", "browsed")
    drop(page, "[data-drop]", tmp_path / "v2" / "model.pt2")
    press(page, "Upload")
    until_ready(page, "browsed", 2)
    deploy(page, "browsed", 2)
    assert shares(house, "browsed") == {1: 10_000, 2: 0}


def move_traffic(house: House, page: Any, wanted: dict[int, int]) -> None:
    """By the slider, with the keyboard and the mouse out of the way; the question names the effect."""
    slider = page.get_by_label("Share of version 2", exact=True)
    slider.fill(str(wanted[2]))
    press(page, "Move traffic")
    question = page.locator("dialog")
    assert f"→ {wanted[2] // 100} %" in question.inner_text()
    press(page, "Move traffic", "dialog")
    page.locator(".toast.success", has_text="The traffic is moved").wait_for()
    assert shares(house, "browsed") == wanted


def under_load(house: House, page: Any, shots: Path) -> None:
    """The chart and the figures move while requests come in, and both versions answer."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 6], "data": ROW}]}
    with Load(f"{house.gateway_url}/v2/models/browsed/infer", body, house.key, per_second=30) as load:
        chart = page.locator("[data-chart=rate]")
        chart.get_by_text("Figures as a table").click()
        row = chart.locator("tbody tr", has_text=re.compile(r"[1-9]"))
        row.first.wait_for(timeout=15_000)
        until("the rate is shown", lambda: float(page.locator("[data-bind=rps]").inner_text()) > 5, 15)
        chart.get_by_text("Figures as a table").click()
        page.wait_for_timeout(4000)
        page.screenshot(path=shots / "real-endpoint-light.png", full_page=True)
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(300)
        page.screenshot(path=shots / "real-endpoint-dark.png", full_page=True)
        page.emulate_media(color_scheme="light")
    assert load.failed == [], load.explain()
    assert {outcome.version for outcome in load.outcomes} == {"1", "2"}


def test_a_folder_and_a_zip_are_dropped(house: House, visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    artifacts.jax_export(tmp_path / "folder", weights=True)
    files = {file.name: sha256(file) for file in (tmp_path / "folder").iterdir()}
    begin_upload(page, "dropped")
    drop(page, "[data-drop]", tmp_path / "folder")
    page.get_by_text("3 files").wait_for()
    press(page, "Upload")
    until_ready(page, "dropped")
    assert {path.rpartition("/")[2]: mark for path, mark in held_files(house, "dropped").items()} == files

    artifacts.onnx_matmul(tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "plain" / "model.onnx", "model.onnx")
    begin_upload(page, "dropped")
    drop(page, "[data-drop]", tmp_path / "model.zip")
    press(page, "Upload")
    until_ready(page, "dropped", 2)
    page.locator(".mono", has_text="model.onnx").first.wait_for()


def test_a_hostile_file_is_refused_with_cause_and_remedy(visitor: Visitor, tmp_path: Path) -> None:
    page, marker = visitor.page, tmp_path / "touched"
    begin_upload(page, "poisoned")
    drop(page, "[data-drop]", hostile.raw_pickle(tmp_path, marker))
    press(page, "Upload")
    page.wait_for_url("**/models/poisoned/versions/1/")
    note = page.locator(".note.bad")
    note.wait_for(timeout=30_000)
    assert "pickle" in note.inner_text()
    assert "What to do:" in note.inner_text()
    page.locator(".head .badge", has_text="Rejected").wait_for()
    assert not page.get_by_role("button", name=re.compile("^Deploy")).count()
    assert not marker.exists()
    page.screenshot(path=screenshots(tmp_path) / "real-rejected-light.png", full_page=True)


def test_a_key_is_made_used_and_revoked(house: House, visitor: Visitor, echo: str) -> None:
    from tests.journeys.conftest import ECHO_BODY

    page = visitor.page
    page.goto("/keys/")
    page.fill("#name", "web-shop")
    page.locator(f"input[name=endpoints][value={echo}]").check()
    press(page, "Create key")
    token = page.locator("#token").inner_text()
    until("the gateway knows it", lambda: house.infer(echo, ECHO_BODY, key=token).status_code == 200, 5)
    page.goto("/keys/")
    assert token not in page.content()
    row = page.locator("tr", has_text="web-shop")

    def is_used() -> bool:
        page.reload()
        return "not used yet" not in row.inner_text()

    until("its use is told", is_used, 20, 1)
    assert "used" in row.inner_text()
    page.get_by_role("button", name="Revoke web-shop").click()
    press(page, "Revoke", "dialog")
    page.locator(".toast.success", has_text="is revoked").wait_for()
    assert accepted_for_s(lambda: house.infer(echo, ECHO_BODY, key=token).status_code) < 1.0


@pytest.mark.alone
def test_the_console_is_killed_during_an_upload(house: House, browser: Any, tmp_path: Path) -> None:
    """The page goes on by itself where the server's file ends; what is stored equals the file."""
    artifacts.onnx_heavy(tmp_path / "model", 40, seed=7)
    file = tmp_path / "model" / "model.onnx"
    excused = r"status of 404|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|WebSocket connection"
    visitor = Visitor(browser, house.console_url, excused=excused).log_in("admin", PASSWORD)
    page, asked = visitor.page, []
    page.on("request", lambda request: request.method == "POST" and asked.append(request.url))
    begin_upload(page, "survivor")
    drop(page, "[data-drop]", file)
    upload_speed(page, 6 << 20)
    press(page, "Upload")
    page.get_by_text("16.0 MB of 40.0 MB").first.wait_for()
    house.kill("console")
    upload_speed(page, -1)
    page.wait_for_url("**/models/survivor/versions/1/", timeout=60_000)
    page.locator(".head .badge", has_text="Ready").wait_for(timeout=60_000)
    assert held_files(house, "survivor") == {"model.onnx": sha256(file)}
    assert sum(url.endswith("/api/uploads/") for url in asked) == 1, "it went on, it did not begin again"
    assert visitor.troubles == []
    visitor.context.close()


PAGES = {
    "overview": "/",
    "models": "/models/",
    "model": "/models/echo/",
    "version": "/models/echo/versions/1/",
    "endpoints": "/endpoints/",
    "endpoint": "/endpoints/echo/",
    "fleet": "/fleet/",
    "keys": "/keys/",
    "people": "/people/",
    "audit": "/audit/",
    "upload": "/upload/",
}
IN_DARK = ("overview", "version", "endpoint", "fleet", "keys")
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "narrow": {"viewport": NARROW, "color_scheme": "light"},
}


@pytest.mark.parametrize("look", LOOKS)
def test_pages_with_real_rows(house: House, browser: Any, echo: str, tmp_path: Path, look: str) -> None:
    """Light, dark and on a telephone: no complaint under the strict policy, nothing scrolls sideways."""
    shots = screenshots(tmp_path)
    visitor = Visitor(browser, house.console_url, **LOOKS[look]).log_in("admin", PASSWORD)
    page, wide = visitor.page, {}
    for name in IN_DARK if look == "dark" else PAGES:
        page.goto(PAGES[name])
        page.wait_for_load_state("load")
        if page.locator("[data-connection]").count():
            page.locator("[data-connection][data-state=open]").first.wait_for()
        page.wait_for_timeout(200)
        page.screenshot(path=shots / f"real-{name}-{look}.png", full_page=True)
        wide[name] = visitor.too_wide_px
    visitor.context.close()
    assert {name: px for name, px in wide.items() if px > 0} == {}
    assert visitor.troubles == []
