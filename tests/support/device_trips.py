"""One trip through the real platform for every kind of device: the same on a fake one, on a GPU and on a TPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.support import artifacts
from tests.support.house import PASSWORD, House, until

ROWS = {"x": np.random.default_rng(5).standard_normal((5, 6)).astype(np.float32)}
MAKERS = {"torch": artifacts.torch_export, "jax": artifacts.jax_export}


def body(inputs: dict[str, Any]) -> dict[str, Any]:
    (array,) = inputs.values()
    data = array.ravel().tolist()
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(array.shape), "data": data}]}


def answer(house: House, endpoint: str, inputs: dict[str, Any]) -> np.ndarray:
    got = house.infer(endpoint, body(inputs))
    assert got.status_code == 200, got.text
    (output,) = got.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def upload(house: House, folder: Path, what: str, name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The direct call of the framework, and the version once it is validated."""
    reference = MAKERS[what](folder / name, **options)
    version = house.upload(name, folder / name)
    assert version["status"] == "ready", version
    return reference, version


def serve(
    house: House, folder: Path, what: str, *, device: str, replicas: int = 1, atol: float = 1e-5
) -> list[dict[str, Any]]:
    """Uploads, deploys on `device`, compares answers at several batch sizes; the ready replicas' rows."""
    name = f"{what}-on-{device.replace(':', '-')}"
    reference, version = upload(house, folder, what, name)
    house.deploy(name, version["number"], replicas=replicas, device=device)
    rows = until(
        f"{replicas} ready on {device}",
        lambda: len(found := house.ready_replicas(name)) == replicas and found,
        120,
    )
    house.serves(name, body(ROWS))
    for count in (1, 3, 5):
        given = {"x": ROWS["x"][:count]}
        np.testing.assert_allclose(answer(house, name, given), reference(given)["y"], atol=atol)
    return list(rows)


def devices(house: House) -> dict[str, dict[str, Any]]:
    (host,) = house.ok("GET", "/api/hosts/")["results"]
    return {device["name"]: device for device in host["devices"]}


def deployment(house: House, model: str) -> dict[str, Any]:
    rows = house.ok("GET", "/api/deployments/")
    rows = rows["results"] if isinstance(rows, dict) else rows
    return next(row for row in rows if row["model"] == model)


def log_of(house: House, replica: dict[str, Any]) -> str:
    """What the replica's process wrote about itself."""
    from inference.host.newborn import short

    name = f"replica-{short(replica['id'])}-{replica['generation']}.log"
    return (house.data_dir / "logs" / name).read_text(errors="replace")


def page(house: House, path: str) -> str:
    """A page of the console as the admin sees it."""
    with httpx.Client(base_url=house.console_url, follow_redirects=True, timeout=30) as client:
        form = client.get("/login/").text
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
        assert token
        given = {"username": house.credentials["admin_user"], "password": PASSWORD, "csrfmiddlewaretoken": token[1]}
        client.post("/login/", data=given, headers={"Referer": house.console_url + "/login/"})
        found = client.get(path)
        assert found.status_code == 200, found.text[:500]
        return found.text
