"""Imported by the tests' standby before it forks: what replicas on a CPU compile when they load an encoder or a language
model is compiled once, in float32. Other forms of weights are still compiled by each replica that has them.
"""

from inference.models.on_torch import encoder_kernels
from inference.models.on_torch.language import program, walker

encoder_kernels.compiled()
walker.compile_operations()
program.walk_of(())
