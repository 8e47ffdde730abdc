"""Compiles what encoders and language models on the CPU need, and keeps it (`inference.protocol.compiled`)."""

from __future__ import annotations

from inference.models.on_torch import encoder_kernels
from inference.models.on_torch.language import packed, program, walker

# (bits, numbers of a group, their dtype): int8 and int4 as quantised at load, then GGUF's Q8_0, Q4_0, Q4_1 and Q4_K.
FORMS = (
    (8, 1, "bfloat16"), (4, 2, "bfloat16"), (8, 1, "float16"), (4, 1, "float16"), (4, 2, "float16"), (4, 2, "float32"),
)  # fmt: skip


def compile_ahead() -> str:
    """Gives what there is now, in words. Models that keep weights in several forms compile how these are joined."""
    encoder_kernels.compiled()
    walker.compile_operations()
    program.walk_of(())
    for form in map(packed.Form._make, FORMS):
        program.walk_of((form,))
        packed.together_of(form)
        packed.dense_of(form)
    return f"encoders, language models and {len(FORMS)} forms of weights"
