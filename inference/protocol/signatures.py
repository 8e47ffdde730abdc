"""What clients see of a version: its model's signature without what the server fills in and keeps for itself."""

from __future__ import annotations

import msgspec

from inference.protocol import generation
from inference.protocol.oip import Signature
from inference.protocol.settings import RuntimeSettings


def public_signature(signature: Signature, settings: RuntimeSettings) -> Signature:
    """`signature` without constants, without a stateful model's control inputs, state inputs and state outputs, and
    without the tensors that carry the OpenAI doors' requests to a language model.
    """
    inputs, outputs = hidden_inputs(settings), hidden_outputs(settings)
    if signature.platform == generation.PLATFORM:
        inputs, outputs = inputs | generation.HIDDEN, outputs | generation.HIDDEN
    if not inputs and not outputs:
        return signature
    return msgspec.structs.replace(
        signature,
        inputs=[spec for spec in signature.inputs if spec.name not in inputs],
        outputs=[spec for spec in signature.outputs if spec.name not in outputs],
    )


def hidden_inputs(settings: RuntimeSettings) -> set[str]:
    """Inputs that no client gives."""
    sequence = settings.sequence
    filled = {control.name for control in sequence.controls} if sequence else set()
    kept = {state.input for state in sequence.states} if sequence else set()
    return filled | kept | settings.constants.keys()


def hidden_outputs(settings: RuntimeSettings) -> set[str]:
    """Outputs that no client gets."""
    return {state.output for state in settings.sequence.states} if settings.sequence else set()
