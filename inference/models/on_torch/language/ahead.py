"""Compiles what language models on the CPU need, and keeps it (`inference.protocol.compiled`)."""

from __future__ import annotations

from inference.models.on_torch.language import between, kernels, packed

# (bits, numbers of a group, their dtype): int8 and int4 as quantised at load, then GGUF's Q8_0, Q4_0, Q4_1 and Q4_K.
FORMS = (
    (8, 1, "bfloat16"), (4, 2, "bfloat16"), (8, 1, "float16"), (4, 1, "float16"), (4, 2, "float16"), (4, 2, "float32"),
)  # fmt: skip


def compile_ahead() -> str:
    """Gives what there is now, in words."""
    for form in FORMS:
        packed.share_of(packed.Form(*form))
    return f"{between.__name__}, {kernels.__name__}, {len(FORMS)} forms of weights"
