"""The whole import: plan, versions, endpoints; one outcome for each version, and none is silent."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from inference.artifacts.triton.repository import RepositoryModel
from inference.errors import Rejected
from inference.protocol.pipelines import Pipeline, decode
from serinus.control import Control, ControlError
from serinus.repository.planning import NO_OVERRIDES, Plan, is_ensemble, pipeline, plan
from serinus.repository.sending import READY, Outcome, Say, Sender
from serinus.repository.serving import serve


class Importer:
    """Imports models of one folder. It remembers which version each became, for the ensembles that name them."""

    def __init__(self, control: Control, root: Path, say: Say, *, approve: bool = False, deploy: bool = True) -> None:
        self._control = control
        self._root = root
        self._say = say
        self._sender = Sender(control, say)
        self._approve = approve
        self._deploy = deploy
        self._newest: dict[str, int] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._ensembles: dict[tuple[str, int], Pipeline] = {}

    def run(self, wanted: Iterable[str] = (), overrides: Mapping[str, Path] = NO_OVERRIDES) -> list[Outcome]:
        """Imports the models `wanted` (all without any), with the steps of their ensembles. overrides: model -> what
        takes the place of its config.pbtxt; code whose configuration comes from elsewhere is not approved by this.
        Raises Rejected for no folder.
        """
        return self.carry_out(plan(self._root, wanted, overrides), by_hand=frozenset(overrides))

    def carry_out(self, planned: Plan, by_hand: Collection[str] = ()) -> list[Outcome]:
        """by_hand: models whose code a person has to approve."""
        outcomes = [
            Outcome(one.name, 0, None, "refused", " ".join(filter(None, (one.reason, one.remedy))))
            for one in planned.refusals
        ]
        for model in planned.models:
            outcomes += self._model(model, approve=self._approve and model.name not in by_hand)
        return outcomes

    def _model(self, model: RepositoryModel, *, approve: bool) -> list[Outcome]:
        try:
            graphs = self._graphs(model)
        except Rejected as error:
            return [Outcome(model.name, 0, None, "refused", error.reason)]
        outcomes = self._sender.versions(model, graphs, approve=approve)
        for one in outcomes:
            if one.state == READY and one.version is not None:
                self._numbers[one.model, one.triton] = one.version
                if graphs is not None:
                    self._ensembles[one.model, one.version] = decode(graphs[one.triton])
        ready = [one for one in outcomes if one.state == READY and one.version is not None]
        if ready:
            # What clients get by default: the highest number of the folder that can be served.
            self._newest[model.name] = int(ready[-1].version or 0)
            if self._deploy:
                return [one for one in outcomes if one not in ready] + self._served(model, ready)
        return outcomes

    def _served(self, model: RepositoryModel, ready: list[Outcome]) -> list[Outcome]:
        self._say(f"{model.name}: serving")
        numbers = [one.version for one in ready if one.version is not None]
        try:
            serve(self._control, model, numbers, newest=numbers[-1])
        except ControlError as error:
            return [*ready[:-1], replace(ready[-1], state="failed", message=str(error))]
        return ready

    def _graphs(self, model: RepositoryModel) -> dict[int, bytes] | None:
        if not is_ensemble(model):
            return None
        made = pipeline(model, self._newest, self._numbers, self._ensembles)
        return {numbered.number: made for numbered in model.versions}
